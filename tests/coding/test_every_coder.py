"""What every coder promises, whatever its method: a new one joins by a line in `CODERS`."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsight.coding import (
    GramTable,
    SparseCode,
    fista,
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
    refit,
)
from sparsight.coding.kernels.compiled import is_available


def compiled(coder):
    """The same coder in compiled code, however small the problem."""
    return lambda x, atoms, k, **options: coder(x, atoms, k, search=GramTable(atoms, compiled=True), **options)


PURSUITS = {
    "matching pursuit": matching_pursuit,
    "orthogonal matching pursuit": orthogonal_matching_pursuit,
    "gradient pursuit": gradient_pursuit,
    "gradient pursuit, three steps": partial(gradient_pursuit, inner_steps=3),
    "gradient pursuit, polished": partial(gradient_pursuit, polish=True),
    "gradient pursuit, by table": partial(gradient_pursuit, search="gram"),
    "orthogonal matching pursuit, by table": partial(orthogonal_matching_pursuit, search="gram"),
    "matching pursuit, by table": partial(matching_pursuit, search="gram"),
}
if is_available():
    PURSUITS |= {
        "gradient pursuit, compiled": compiled(gradient_pursuit),
        "gradient pursuit, three steps, compiled": compiled(partial(gradient_pursuit, inner_steps=3)),
        "gradient pursuit, polished, compiled": compiled(partial(gradient_pursuit, polish=True)),
        "orthogonal matching pursuit, compiled": compiled(orthogonal_matching_pursuit),
        "matching pursuit, compiled": compiled(matching_pursuit),
    }


def lasso(x: Tensor, atoms: Tensor, k: int, *, nonnegative: bool = True) -> SparseCode:
    """A lasso whose penalty goes with the row; `k` has no meaning for it."""
    largest = (x @ atoms.T).abs().nan_to_num(1, 1, 1).amax(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return fista(x, atoms, 0.3 * largest, nonnegative=nonnegative, max_steps=300)


def refitted(x: Tensor, atoms: Tensor, k: int, *, nonnegative: bool = True) -> SparseCode:
    picks = SparseCode.from_dense(x @ atoms.T, k)
    return refit(x, atoms, picks.indices, nonnegative=nonnegative)


CODERS = {**PURSUITS, "lasso": lasso, "refitted encoder": refitted}

every_coder = pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
every_pursuit = pytest.mark.parametrize("coder", PURSUITS.values(), ids=PURSUITS)
both_signs = pytest.mark.parametrize("nonnegative", [True, False])


def draw(seed: int, n: int, d: int, n_latents: int, *, coherence: float = 0.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n_latents, d, generator=g, dtype=dtype)
    atoms[:, 0] += coherence * d**0.5
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    return torch.randn(n, d, generator=g, dtype=dtype), atoms


def loss(x: Tensor, code: SparseCode, atoms: Tensor) -> Tensor:
    return (x - code.decode(atoms)).square().sum(dim=1)


@every_coder
@both_signs
def test_empty_batches_have_empty_codes(coder, nonnegative):
    x, atoms = draw(0, 0, 6, 10)
    code = coder(x, atoms, 3, nonnegative=nonnegative)
    assert len(code) == 0
    assert code.n_latents == 10


@every_pursuit
def test_k_of_zero_asks_for_nothing(coder):
    x, atoms = draw(0, 4, 6, 10)
    code = coder(x, atoms, 0)
    assert code.values.shape == (4, 0)
    assert (code.decode(atoms) == 0).all()


@every_pursuit
@pytest.mark.parametrize("k", [-1, 11])
def test_k_out_of_range_is_refused(coder, k):
    x, atoms = draw(0, 4, 6, 10)
    with pytest.raises(ValueError, match=f"k must be between 0 and n_latents=10, got k={k}"):
        coder(x, atoms, k)


@every_pursuit
@pytest.mark.parametrize("tol", [-0.1, 1.0, float("nan")])
def test_tolerance_out_of_range_is_refused(coder, tol):
    x, atoms = draw(0, 4, 6, 10)
    with pytest.raises(ValueError, match="tol must be in"):
        coder(x, atoms, 2, tol=tol)


def test_no_line_search_at_all_is_refused():
    x, atoms = draw(0, 4, 6, 10)
    with pytest.raises(ValueError, match="inner_steps must be at least 1"):
        gradient_pursuit(x, atoms, 2, inner_steps=0)


@every_coder
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_refused_by_its_number(coder, bad):
    x, atoms = draw(0, 4, 6, 10)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="in row 2, column 1"):
        coder(x, atoms, 2)


@every_coder
@pytest.mark.parametrize("factor", [2.0, 0.0, float("nan")])
def test_an_atom_that_is_not_of_unit_norm_is_refused_by_its_number(coder, factor):
    x, atoms = draw(0, 4, 6, 10)
    broken = atoms.clone()
    broken[7] *= factor
    with pytest.raises(ValueError, match=r"unit norm, got norm .* for atom 7"):
        coder(x, broken, 2)


def test_dtypes_that_differ_or_are_too_short_are_refused():
    x, atoms = draw(0, 4, 6, 10)
    for pair in [(x.float(), atoms), (x.half(), atoms.half())]:
        with pytest.raises(ValueError, match="both be float32 or both float64"):
            gradient_pursuit(*pair, 2)


@every_coder
@both_signs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_rows_get_zero_codes_and_spoil_nobody(coder, nonnegative, dtype):
    x, atoms = draw(1, 6, 8, 20, dtype=dtype)
    x[[0, 3]] = 0
    code = coder(x, atoms, 5, nonnegative=nonnegative)
    assert code.values.dtype == dtype
    assert code.values.isfinite().all()
    assert (code.l0()[[0, 3]] == 0).all()
    others = coder(x[[1, 2, 4, 5]], atoms, 5, nonnegative=nonnegative)
    torch.testing.assert_close(code.decode(atoms)[[1, 2, 4, 5]], others.decode(atoms), rtol=0, atol=1e-5)


@every_pursuit
@both_signs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_is_one_atom_stops_after_it(coder, nonnegative, dtype):
    _, atoms = draw(2, 1, 8, 20, dtype=dtype)
    code = coder(3 * atoms, atoms, 5, nonnegative=nonnegative)
    assert (code.l0() == 1).all()
    torch.testing.assert_close(code.to_dense(), 3 * torch.eye(20, dtype=dtype), rtol=0, atol=1e-5)


@every_pursuit
@both_signs
def test_orthonormal_atoms_give_the_largest_projections(coder, nonnegative):
    """For orthonormal atoms the best k-term code is known in closed form, and all pursuits find it."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
    x = torch.randn(32, 8, generator=g, dtype=torch.float64)
    projections = (x @ atoms.T).relu() if nonnegative else x @ atoms.T
    expected = SparseCode.from_dense(projections, 3).to_dense()
    code = coder(x, atoms, 3, nonnegative=nonnegative).to_dense()
    torch.testing.assert_close(code, expected, rtol=0, atol=1e-12)


@every_pursuit
@both_signs
def test_equal_scores_go_to_the_lowest_index(coder, nonnegative):
    atoms = torch.eye(4, dtype=torch.float64)[[3, 1, 1, 0, 2]]
    x = torch.ones(3, 4, dtype=torch.float64)
    code = coder(x, atoms, 2, nonnegative=nonnegative)
    assert code.indices.tolist() == [[0, 1]] * 3


@every_coder
@both_signs
def test_rows_do_not_depend_on_their_batch(coder, nonnegative):
    x, atoms = draw(3, 12, 16, 60, dtype=torch.float64)
    whole = coder(x, atoms, 6, nonnegative=nonnegative).to_dense()
    alone = torch.cat([coder(row, atoms, 6, nonnegative=nonnegative).to_dense() for row in x.split(1)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-10)
    backwards = coder(x.flip(0), atoms, 6, nonnegative=nonnegative).to_dense().flip(0)
    torch.testing.assert_close(whole, backwards, rtol=0, atol=1e-10)


@every_coder
@both_signs
@pytest.mark.parametrize("factor", [1e-20, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_scale_with_the_activations(coder, nonnegative, factor, dtype):
    x, atoms = draw(4, 20, 16, 60, dtype=dtype)
    once = coder(x, atoms, 6, nonnegative=nonnegative).to_dense()
    scaled = coder(factor * x, atoms, 6, nonnegative=nonnegative).to_dense()
    assert scaled.isfinite().all()
    precision = 1e-5 if dtype == torch.float32 else 1e-11
    if coder is lasso:  # solved to its gap, no further
        precision = max(precision, 1e-3)
    torch.testing.assert_close(scaled / factor, once, rtol=0, atol=precision)


@every_pursuit
def test_a_tolerance_stops_a_row_once_no_atom_scores_above_it(coder):
    x, atoms = draw(5, 30, 16, 40)
    code = coder(x, atoms, 16, tol=0.3)
    scores = (x - code.decode(atoms)) @ atoms.T
    free = scores.masked_fill(code.to_dense() > 0, 0).amax(1)
    stopped = code.l0() < 16
    assert stopped.any()
    if any(coder is other for name, other in PURSUITS.items() if name.startswith("matching pursuit")):
        assert (free <= 0.3 * x.norm(dim=1) + 1e-12)[stopped].all()
    assert (code.l0() <= coder(x, atoms, 16).l0()).all()
    assert (code.l0() < 16).any()


@every_pursuit
@both_signs
@pytest.mark.parametrize("coherence", [0.0, 1.0])
def test_the_loss_never_rises_with_k_on_twenty_thousand_trials(coder, nonnegative, coherence):
    """500 signals at each of 10 steps, of both signs and over two kinds of atoms, for each coder."""
    x, atoms = draw(6, 500, 8, 24, coherence=coherence)
    before = x.square().sum(1)
    for k in range(1, 11):
        after = loss(x, coder(x, atoms, k, nonnegative=nonnegative), atoms)
        assert (after <= before + 1e-11).all()
        before = after


@every_coder
@both_signs
def test_float32_agrees_with_float64(coder, nonnegative):
    x, atoms = draw(7, 50, 24, 80)
    exact = loss(x, coder(x, atoms, 6, nonnegative=nonnegative), atoms)
    short = coder(x.float(), atoms.float(), 6, nonnegative=nonnegative)
    rough = loss(x, SparseCode(short.indices, short.values.double(), 80), atoms)
    assert ((rough - exact).abs() < 1e-4 * x.square().sum(1)).float().mean() > 0.97  # ties may go another way


@every_coder
@both_signs
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 5),
    d=st.integers(1, 12),
    n_latents=st.integers(1, 20),
    share=st.floats(0, 1),
    coherence=st.sampled_from([0.0, 1.0, 30.0]),
    copies=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_and_any_atoms_give_a_lawful_code(
    coder, nonnegative, seed, n, d, n_latents, share, coherence, copies, dtype
):
    """Copies of atoms, atoms almost parallel, k up to n_latents, zero rows and exact rows, all at once."""
    x, atoms = draw(seed, n, d, n_latents, coherence=coherence, dtype=dtype)
    if copies:
        atoms = torch.cat([atoms, atoms, -atoms])
    k = round(share * len(atoms))
    x = torch.cat([x, torch.zeros(1, d, dtype=dtype), 2 * atoms[:1], atoms[:1] - atoms[-1:]])
    code = coder(x, atoms, k, nonnegative=nonnegative)
    assert code.values.isfinite().all()
    assert ((code.indices >= 0) & (code.indices < len(atoms))).all()
    if coder is not lasso:
        assert (code.l0() <= k).all()
    if nonnegative:
        assert (code.values >= 0).all()
    for row, slots in zip(code.indices, code.values != 0, strict=True):
        used = row[slots].tolist()
        assert len(set(used)) == len(used)
    slack = 1e-4 if dtype == torch.float32 else 1e-10
    assert (loss(x, code, atoms) <= x.square().sum(1) * (1 + slack) + slack).all()
