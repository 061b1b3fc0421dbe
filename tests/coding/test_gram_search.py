"""The fast search chooses what the dense one chooses, and its bound is one."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sparsight.coding import GramTable, gradient_pursuit, kept_search, matching_pursuit, orthogonal_matching_pursuit
from sparsight.coding.kernels import choice, gram
from sparsight.coding.kernels.gram import GramSearch

CODERS = {
    "gradient pursuit": gradient_pursuit,
    "three steps": partial(gradient_pursuit, inner_steps=3),
    "orthogonal": orthogonal_matching_pursuit,
    "matching": matching_pursuit,
}


def atoms_of(kind: str, n_latents: int, d: int, g: torch.Generator) -> Tensor:
    """Dictionaries from harmless to hostile."""
    atoms = torch.randn(n_latents, d, generator=g, dtype=torch.float64)
    if kind == "shared direction":
        atoms[:, 0] += d**0.5
    if kind == "near duplicates":
        half = n_latents // 2
        atoms[half : 2 * half] = atoms[:half] + 0.05 * atoms[half : 2 * half]
    if kind == "bundle":  # all within a few degrees of each other
        atoms[:, 0] += 20 * d**0.5
    return atoms / atoms.norm(dim=1, keepdim=True)


KINDS = ["random", "shared direction", "near duplicates", "bundle"]


def problem(kind: str, n: int = 50, n_latents: int = 400, d: int = 32, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    atoms = atoms_of(kind, n_latents, d, g)
    x = torch.randn(n, 12, generator=g, dtype=torch.float64).abs().unsqueeze(1)
    x = (x @ atoms[torch.randint(n_latents, (n, 12), generator=g)]).squeeze(1)
    x = x + 0.05 * torch.randn(x.shape, generator=g, dtype=torch.float64)
    return x.to(dtype), atoms.to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_every_choice_is_that_of_the_dense_search(coder, nonnegative, kind):
    x, atoms = problem(kind)
    dense = coder(x, atoms, 10, nonnegative=nonnegative, search="dense")
    fast = coder(x, atoms, 10, nonnegative=nonnegative, search="gram")
    torch.testing.assert_close(fast.to_dense(), dense.to_dense(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_the_losses_agree_to_rounding(kind):
    x, atoms = problem(kind, dtype=torch.float32)
    losses = []
    for search in ("dense", "gram"):
        code = gradient_pursuit(x, atoms, 16, search=search)
        losses.append((x - code.decode(atoms)).square().sum().item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", [gradient_pursuit, orthogonal_matching_pursuit, matching_pursuit])
def test_kept_scores_are_never_further_off_than_their_bound(monkeypatch, coder, nonnegative, kind):
    """Held against scores computed afresh in float64, at every step of every row, for every atom that can be chosen."""
    x, atoms = problem(kind, n=20)
    slack = []
    bound_of = GramSearch._error

    def watched(self, indices, values, products):
        bound = bound_of(self, indices, values, products)
        residual = self.x - torch.einsum("bt,btd->bd", values, atoms[indices])
        off = (residual @ atoms.T - self.scores[:, : len(atoms)]).abs()
        if not self.repeats:
            off.scatter_(1, indices, 0.0)
        off = torch.nan_to_num(off, nan=0.0, posinf=0.0)  # masked atoms
        per_atom = bound.repeat_interleave(gram.GROUP, dim=1)[:, : len(atoms)]
        slack.append((off - per_atom).max().item())
        return bound

    monkeypatch.setattr(GramSearch, "_error", watched)
    coder(x, atoms, 10, nonnegative=nonnegative, search="gram")
    assert len(slack) >= 4
    assert max(slack) <= 0


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_rows_scanned_afresh_choose_the_same(monkeypatch, coder, nonnegative):
    scanned = []
    scan = GramSearch._scan

    def watched(self, rows, *arguments):
        scanned.append(int(rows.sum()))
        return scan(self, rows, *arguments)

    monkeypatch.setattr(GramSearch, "_scan", watched)
    monkeypatch.setattr(gram, "MOST_GROUPS", 1)
    x, atoms = problem("shared direction", n=20)
    dense = coder(x, atoms, 10, nonnegative=nonnegative, search="dense")
    fast = coder(x, atoms, 10, nonnegative=nonnegative, search="gram")
    assert sum(scanned) > 0
    torch.testing.assert_close(fast.to_dense(), dense.to_dense(), rtol=1e-6, atol=1e-9)


def test_random_atoms_need_hardly_a_further_dense_product(monkeypatch):
    scanned = []
    scan = GramSearch._scan
    monkeypatch.setattr(
        GramSearch, "_scan", lambda self, rows, *a: scanned.append(int(rows.sum())) or scan(self, rows, *a)
    )
    x, atoms = problem("random", n_latents=4000, d=128)
    gradient_pursuit(x, atoms, 12, search="gram")
    assert sum(scanned) < 0.05 * len(x) * 12


def test_sums_of_table_rows_round_no_worse_than_the_bound_assumes():
    g = torch.Generator().manual_seed(0)
    table = (0.2 * torch.randn(500, 128, generator=g)).half()
    indices = torch.randint(500, (300, gram.APPLIED_PER_STEP), generator=g)
    weights = (10 * torch.randn(indices.shape, generator=g)).half()
    exact = torch.einsum("bt,btc->bc", weights.double(), table[indices].double())
    off = (gram._weighted_rows(table, indices, weights).double() - exact).abs()
    size = torch.einsum("bt,btc->bc", weights.double().abs(), table[indices].double().abs())
    assert (off <= gram.HALF_ROUNDING * (gram.APPLIED_PER_STEP + 1) * size + gram.TINY_HALF).all()


def test_coherence_is_the_largest_product_with_another_atom_of_the_group():
    _, atoms = problem("near duplicates", n_latents=130)
    table = GramTable(atoms)
    products = (atoms @ atoms.T).abs().fill_diagonal_(0)
    for group in range(3):
        true = products[:, group * gram.GROUP : (group + 1) * gram.GROUP].amax(1)
        kept = table.coherence[:, group].double()
        assert (kept >= true).all()
        assert (kept <= true + 0.002).all()


def test_a_table_serves_many_calls_and_refuses_other_atoms():
    x, atoms = problem("random")
    table = GramTable(atoms)
    once = gradient_pursuit(x, atoms, 8, search=table)
    assert torch.equal(once.indices, gradient_pursuit(x, atoms, 8, search="dense").indices)
    moved = atoms.roll(1, dims=0)
    with pytest.raises(ValueError, match="make a new GramTable"):
        gradient_pursuit(x, moved, 8, search=table)


def test_a_table_is_made_only_where_it_pays():
    wide = torch.zeros(1, 512).expand(4096, 512)
    assert choice._pays(wide, n_rows=10_000, k=32)
    assert not choice._pays(wide, n_rows=100, k=32)  # too few rows
    assert not choice._pays(wide[:1].expand(2**17, 512), n_rows=10_000, k=32)  # too much memory
    assert not choice._pays(wide[:512, :32], n_rows=10_000, k=32)  # dense products cost nothing


def test_a_table_to_keep_is_judged_by_the_rows_of_all_calls():
    atoms = torch.nn.functional.normalize(torch.randn(1024, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    assert isinstance(kept_search(atoms, n_rows=1024, k=4), GramTable)
    assert kept_search(atoms, n_rows=1023, k=4) == "auto"


def test_huge_weights_stay_out_of_half_precision():
    """Two atoms a hair apart carry weights of opposite sign near 1e5; sums of table rows must not overflow."""
    d = 16
    atoms = torch.eye(d, dtype=torch.float64)
    twin = atoms[0] + 1e-4 * atoms[1]
    atoms = torch.cat([atoms[:1], twin.unsqueeze(0) / twin.norm(), atoms[2:]])
    x = torch.zeros(1, d, dtype=torch.float64)
    x[0, :4] = torch.tensor([1.0, 9.0, 4e-4, 5e-4])  # the two small entries are found after the huge weights
    dense = orthogonal_matching_pursuit(x, atoms, 4, nonnegative=False, search="dense")
    fast = orthogonal_matching_pursuit(x, atoms, 4, nonnegative=False, search="gram")
    assert dense.values.abs().max() > 8e4
    torch.testing.assert_close(fast.to_dense(), dense.to_dense(), rtol=1e-6, atol=1e-6)
