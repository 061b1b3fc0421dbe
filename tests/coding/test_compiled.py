"""Exact search in compiled code: the codes of the dense search, a bound that is one, the same bits in any batch."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from test_gram_search import CODERS, KINDS, problem

from sparsight.coding import GramTable, gradient_pursuit, kept_search, matching_pursuit, orthogonal_matching_pursuit
from sparsight.coding.diagnostics import kkt_residual
from sparsight.coding.kernels import compiled
from sparsight.coding.kernels.swept_table import GROUP, SweptTable

needs_numba = pytest.mark.skipif(not compiled.is_available(), reason="no numba here: COMPILED CODE IS NOT CHECKED")
RULES = {"matching": matching_pursuit, "gradient": gradient_pursuit, "orthogonal": orthogonal_matching_pursuit}


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_codes_are_those_of_the_dense_search(coder, nonnegative, kind):
    x, atoms = problem(kind)
    dense = coder(x, atoms, 10, nonnegative=nonnegative, search="dense")
    fast = coder(x, atoms, 10, nonnegative=nonnegative, search=GramTable(atoms, compiled=True))
    torch.testing.assert_close(fast.to_dense(), dense.to_dense(), rtol=1e-6, atol=1e-8)


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
def test_losses_agree_to_rounding_in_float32(kind):
    x, atoms = problem(kind, dtype=torch.float32)
    losses = []
    for search in ("dense", GramTable(atoms, compiled=True)):
        code = gradient_pursuit(x, atoms, 16, search=search)
        losses.append((x - code.decode(atoms)).square().sum().item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@needs_numba
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_kept_scores_are_never_further_off_than_their_bound(rule, nonnegative, kind):
    """Held against float64 scores after one to eight choices, when every weight has moved since the last sweep."""
    x, atoms = problem(kind, n=20)
    rows, table = compiled._load()[0], SweptTable(atoms)
    for k in range(1, 9):
        shared = compiled._shared(rows, table, x.dtype, rule, nonnegative, 0.0, 1)
        task = rows.Problem(x.numpy(), *shared)
        block = compiled._fresh_block(rows, x, torch.empty(20, table.products.shape[1]), k, rule)
        compiled._scan(np.arange(20), x, table, block)
        rows.advance(np.arange(20), task, block)
        errors = rows.bounds(np.arange(20), task, block)
        off = np.abs(block.residual @ atoms.numpy().T - block.scores[:, :400])
        if rule != "matching":
            np.put_along_axis(off, block.indices, 0.0, axis=1)
        off[~np.isfinite(off)] = 0.0  # masked atoms
        assert (off <= np.repeat(errors, GROUP, axis=1)[:, :400]).all()
        assert (errors[block.status == rows.FINISHED] > 0).all()


@needs_numba
def test_entries_of_the_swept_table_are_off_by_no_more_than_it_says():
    _, atoms = problem("near duplicates", n_latents=130)
    table = SweptTable(atoms)
    products = atoms @ atoms.T
    off = (table.products[:, :130].double() * table.unit - products).abs()
    assert off.max() <= table.error
    assert (table.products[:, 130:] == 0).all()
    others = products.abs().fill_diagonal_(0)
    for group in range(3):
        true = others[:, group * GROUP : (group + 1) * GROUP].amax(1)
        assert (table.coherence[:, group] >= true).all()
        assert (table.coherence[:, group] <= true + 2 * table.error).all()


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_a_row_has_the_same_bits_in_any_batch(coder, dtype):
    x, atoms = problem("shared direction", n=33, dtype=dtype)
    run = partial(coder, atoms=atoms, k=10, search=GramTable(atoms, compiled=True))
    whole = run(x)
    for pieces in (x.split(1), x.split(7)):
        codes = [run(piece) for piece in pieces]
        assert torch.equal(torch.cat([code.indices for code in codes]), whole.indices)
        assert torch.equal(torch.cat([code.values for code in codes]), whole.values)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(x[order]).values, whole.values[order])


@needs_numba
def test_neither_threads_nor_blocks_change_a_bit(monkeypatch):
    x, atoms = problem("near duplicates", n=40, dtype=torch.float32)
    table = GramTable(atoms, compiled=True)
    once = gradient_pursuit(x, atoms, 10, search=table)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(compiled, "BLOCK_BYTES", 2**15)
    again = gradient_pursuit(x, atoms, 10, search=table)
    assert torch.equal(once.indices, again.indices)
    assert torch.equal(once.values, again.values)


@needs_numba
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", [gradient_pursuit, orthogonal_matching_pursuit, matching_pursuit])
def test_rows_scanned_again_choose_the_same(monkeypatch, coder, nonnegative):
    """Without noise the residual shrinks below what sixteen bits tell apart: those rows need fresh scores."""
    scans = []
    scan = compiled._scan
    monkeypatch.setattr(compiled, "_scan", lambda waiting, *rest: scans.append(len(waiting)) or scan(waiting, *rest))
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(2000, 24, generator=g, dtype=torch.float64), dim=1)
    x = (atoms[torch.randint(2000, (20, 2), generator=g)] * torch.tensor([[2.0], [1.0]])).sum(dim=1)
    fast = coder(x, atoms, 20, nonnegative=nonnegative, search=GramTable(atoms, compiled=True))
    dense = coder(x, atoms, 20, nonnegative=nonnegative, search="dense")
    torch.testing.assert_close(fast.to_dense(), dense.to_dense(), rtol=1e-6, atol=1e-9)
    if coder is not orthogonal_matching_pursuit:  # which is done after two choices
        assert len(scans) > 1
        assert scans[1] < 21


@needs_numba
def test_random_atoms_need_no_second_scan(monkeypatch):
    scans = []
    scan = compiled._scan
    monkeypatch.setattr(compiled, "_scan", lambda waiting, *rest: scans.append(len(waiting)) or scan(waiting, *rest))
    x, atoms = problem("random", n_latents=4000, d=128)
    gradient_pursuit(x, atoms, 12, search=GramTable(atoms, compiled=True))
    assert scans == [50]


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nonnegative_weights_satisfy_their_optimality_conditions(dtype):
    x, atoms = problem("bundle", dtype=dtype)
    code = orthogonal_matching_pursuit(x, atoms, 20, search=GramTable(atoms, compiled=True))
    worst = kkt_residual(x, code, atoms).max()
    assert worst < (1e-5 if dtype == torch.float32 else 1e-11)


@needs_numba
def test_huge_weights_cost_scans_and_no_accuracy():
    """Two atoms a hair apart carry weights of opposite sign near 1e5; two small entries are found after them."""
    atoms = torch.eye(16, dtype=torch.float64)
    twin = atoms[0] + 1e-4 * atoms[1]
    atoms = torch.cat([atoms[:1], twin.unsqueeze(0) / twin.norm(), atoms[2:]])
    x = torch.zeros(1, 16, dtype=torch.float64)
    x[0, :4] = torch.tensor([1.0, 9.0, 4e-4, 5e-4])
    table = GramTable(atoms, compiled=True)
    dense = orthogonal_matching_pursuit(x, atoms, 4, nonnegative=False, search="dense")
    fast = orthogonal_matching_pursuit(x, atoms, 4, nonnegative=False, search=table)
    assert dense.values.abs().max() > 8e4
    torch.testing.assert_close(fast.to_dense(), dense.to_dense(), rtol=1e-6, atol=1e-6)


@needs_numba
def test_compiled_code_is_used_where_the_problem_repays_its_start(monkeypatch):
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    wide = torch.zeros(1, 512).expand(4096, 512)
    assert compiled.is_used(wide)
    assert compiled.is_used(wide, row_steps=32 * 10_000)
    assert not compiled.is_used(wide, row_steps=32 * 1000)
    assert not compiled.is_used(wide[:512])
    monkeypatch.setenv(compiled.VARIABLE, "1")
    assert compiled.is_used(wide[:2], row_steps=1)
    monkeypatch.setenv(compiled.VARIABLE, "0")
    assert not compiled.is_used(wide)


@needs_numba
def test_searches_made_for_the_caller_follow_the_environment(monkeypatch):
    x, atoms = problem("random", n=8)
    wide = torch.nn.functional.normalize(torch.randn(1024, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    for wish in ("0", "1"):
        monkeypatch.setenv(compiled.VARIABLE, wish)
        table = kept_search(wide, n_rows=1024, k=4)
        assert isinstance(table, GramTable)
        assert (table.swept is not None) == (wish == "1")
        calls = []
        monkeypatch.setattr(compiled, "_scan", lambda *a, calls=calls, scan=compiled._scan: calls.append(1) or scan(*a))
        gradient_pursuit(x, atoms, 4, search="gram")
        assert bool(calls) == (wish == "1")


def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv(compiled.VARIABLE, "yes")
    with pytest.raises(ValueError, match="SPARSIGHT_COMPILED must be 0"):
        compiled.is_used(torch.eye(2))


def test_without_numba_everything_works_and_the_doctor_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "sparsight.coding.kernels.compiled_rows", raising=False)
    monkeypatch.setattr(compiled, "_load", compiled._load.__wrapped__)
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    assert not compiled.is_used(torch.zeros(1, 512).expand(4096, 512))
    assert "numba" in compiled.status()
    assert compiled.status().startswith("torch (")
    x, atoms = problem("random", n=5)
    assert len(gradient_pursuit(x, atoms, 4, search=GramTable(atoms))) == 5
    monkeypatch.setenv(compiled.VARIABLE, "1")
    with pytest.raises(ValueError, match=r"pip install 'sparsight\[compiled\]'"):
        gradient_pursuit(x, atoms, 4, search="gram")


def test_coders_do_not_import_numba_before_they_need_it():
    program = "import sys, sparsight.coding; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
