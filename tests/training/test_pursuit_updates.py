"""Updates of the atoms against their identities, their optima and finite differences."""

import pytest
import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit, refit
from sparsight.training.pursuit_updates import (
    co_activations,
    cross_moments,
    ksvd_update,
    mod_update,
    online_update,
    stop_gradient_loss,
    unit_norm,
    worst_reconstructed,
)

D, M, N, K = 8, 20, 300, 4


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def atoms(seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(rows(M, D, seed), dim=1)


def problem() -> tuple[Tensor, Tensor, SparseCode]:
    """Activations, atoms, and codes that pad their rows with unused slots."""
    x, directions = rows(N, D, 1), atoms()
    code = gradient_pursuit(x, directions, K)
    padded = torch.nn.functional.pad(code.indices, (0, 2)), torch.nn.functional.pad(code.values, (0, 2))
    return x, directions, SparseCode(*padded, M)


def squared_error(x: Tensor, code: SparseCode, directions: Tensor) -> float:
    return float((x - code.to_dense() @ directions).square().sum())


def test_moments_equal_the_dense_products() -> None:
    x, _, code = problem()
    dense = code.to_dense()
    torch.testing.assert_close(co_activations(code), dense.T @ dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cross_moments(code, x), dense.T @ x, rtol=1e-12, atol=1e-12)


def test_mod_leaves_a_residual_orthogonal_to_the_codes() -> None:
    x, directions, code = problem()
    updated = mod_update(co_activations(code), cross_moments(code, x), directions)
    dense = code.to_dense()
    assert ((x - dense @ updated).T @ dense).abs().max() < 1e-10
    assert ((x - dense @ directions).T @ dense).abs().max() > 1


def test_mod_minimises_the_error_drawn_towards_the_old_atoms_by_its_ridge() -> None:
    """The gradient of `|X - F D'|^2 + delta |D' - D|^2` vanishes, and latents without use stay."""
    x, directions, code = problem()
    silent = code.indices < 3
    code = SparseCode(code.indices, code.values.masked_fill(silent, 0), M)
    gram, cross = co_activations(code), cross_moments(code, x)
    delta = 0.7 * float(gram.diagonal()[3:].mean())
    updated = mod_update(gram, cross, directions, ridge=0.7)
    gradient = gram @ updated - cross + delta * (updated - directions)
    assert gradient[3:].abs().max() < 1e-10
    assert torch.equal(updated[:3], directions[:3])


def test_mod_without_ridge_refuses_latents_that_are_always_active_together() -> None:
    values = torch.tensor([[1.0, 1.0], [2.0, 2.0]]).double()
    twins = SparseCode(torch.tensor([[0, 1], [0, 1]]), values, 2)
    with pytest.raises(ValueError, match="always active together; set ridge > 0"):
        mod_update(co_activations(twins), cross_moments(twins, rows(2, 3, 0)), rows(2, 3, 1))


def test_online_sweeps_end_where_mod_does() -> None:
    x, directions, code = problem()
    gram, cross = co_activations(code), cross_moments(code, x)
    mod = mod_update(gram, cross, directions)
    errors = [float((online_update(gram, cross, directions, sweeps=n) - mod).norm()) for n in (1, 4, 300)]
    assert errors[0] > errors[1] > 1e-6
    assert errors[2] < 1e-9


def test_one_online_sweep_suffices_for_orthogonal_codes() -> None:
    x = rows(N, D, 1)
    single = SparseCode(torch.arange(N)[:, None] % M, rows(N, 1, 2).abs(), M)  # one latent in each token
    gram, cross = co_activations(single), cross_moments(single, x)
    expected = mod_update(gram, cross, atoms())
    torch.testing.assert_close(online_update(gram, cross, atoms()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 3])
def test_ksvd_never_raises_the_error_and_keeps_codes_non_negative_and_atoms_unit(rounds: int) -> None:
    x, directions, code = problem()
    error = squared_error(x, code, directions)
    for _ in range(6):
        code, directions = ksvd_update(code, x, directions, rounds=rounds)
        lower = squared_error(x, code, directions)
        assert lower < error
        error = lower
        assert code.values.min() >= 0
        torch.testing.assert_close(directions.norm(dim=1), torch.ones(M, dtype=torch.float64))


def test_ksvd_of_one_latent_is_the_best_non_negative_rank_one_fit() -> None:
    """Of non-negative data (Perron): the leading singular vectors."""
    x = rows(40, D, 3).abs()
    start = torch.nn.functional.normalize(rows(1, D, 4).abs(), dim=1)
    code = SparseCode(torch.zeros(40, 1, dtype=torch.int64), x @ start.T, 1)
    code, found = ksvd_update(code, x, start, rounds=60)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(found[0], v[0].abs(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(code.values[:, 0], (u[:, 0] * s[0]).abs(), rtol=1e-9, atol=1e-9)


def test_ksvd_with_inertia_never_raises_the_error_and_moves_less_the_more_there_is() -> None:
    x, directions, code = problem()
    moved = []
    for inertia in (0.0, 10.0, 1e9):
        new_code, new = ksvd_update(code, x, directions, inertia=torch.full((M,), inertia, dtype=torch.float64))
        assert squared_error(x, new_code, new) <= squared_error(x, code, directions)
        moved.append(float((new - directions).norm()))
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 1e-5


def test_ksvd_keeps_the_atom_of_a_latent_that_its_tokens_do_not_want() -> None:
    opposite = SparseCode(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.float64), 1)
    d = torch.tensor([[1.0, 0.0]]).double()
    x = torch.tensor([[0.0, 2.0], [0.0, -2.0]]).double()  # no direction fits both: `f E` is 0
    code, found = ksvd_update(opposite, x, d)
    assert torch.equal(found, d)
    assert bool(torch.isfinite(code.values).all())


def total_loss(x: Tensor, directions: Tensor, support: Tensor, code: str) -> float:
    """The loss when the values follow the atoms, on fixed supports."""
    if code == "refit":
        values = refit(x, directions, support).to_dense()
    else:
        # Raw gradient pursuit on fixed supports: one line search after each atom, in the order of choice.
        values = torch.zeros(len(x), M, dtype=torch.float64)
        for t in range(support.shape[1]):
            mask = torch.zeros(len(x), M, dtype=torch.bool).scatter_(1, support[:, : t + 1], True)
            gradient = ((x - values @ directions) @ directions.T) * mask
            step = gradient.square().sum(1) / (gradient @ directions).square().sum(1)
            values = values + step[:, None] * gradient
    return float((x - values @ directions).square().sum(dim=1).mean())


@pytest.mark.parametrize(("code", "agrees"), [("refit", True), ("raw", False)])
def test_the_stop_gradient_derivative_is_the_total_one_for_refitted_codes_and_only_for_them(
    code: str, agrees: bool
) -> None:
    """Envelope theorem, by central differences along random changes of the atoms."""
    g = torch.Generator().manual_seed(5)
    directions = atoms()
    chosen = torch.rand(60, M, generator=g).topk(K, dim=1).indices
    x = torch.zeros(60, M).double().scatter_(1, chosen, torch.rand(60, K, generator=g).double() + 0.5) @ directions
    x += 0.05 * rows(60, D, 6)
    raw = gradient_pursuit(x, directions, K)
    keep = (raw.values > 1e-3).all(dim=1)  # away from the boundary of the feasible set
    x, raw = x[keep], raw[keep]
    refitted = refit(x, directions, raw.indices)
    keep = (refitted.values > 1e-3).all(dim=1)
    x, raw, refitted = x[keep], raw[keep], refitted[keep]
    assert len(x) > 20
    held = refitted if code == "refit" else raw
    assert total_loss(x, directions, raw.indices, code) == pytest.approx(squared_error(x, held, directions) / len(x))
    leaf = directions.clone().requires_grad_()
    stop_gradient_loss(held, x, leaf).backward()
    assert leaf.grad is not None
    worst = 0.0
    for seed in range(5):
        change, h = rows(M, D, 20 + seed), 1e-5
        ends = [total_loss(x, directions + s * h * change, raw.indices, code) for s in (1, -1)]
        measured = (ends[0] - ends[1]) / (2 * h)
        worst = max(worst, abs(measured - float((leaf.grad * change).sum())) / abs(measured))
    assert (worst < 1e-6) == agrees
    assert agrees or worst > 0.01


def test_unit_norm_moves_norms_into_the_codes_and_replaces_zero_atoms() -> None:
    x = rows(3, D, 0)
    x[1] = 0
    unit, norms = unit_norm(x, atoms()[:3])
    torch.testing.assert_close(unit * norms[:, None], x)
    assert torch.equal(unit[1], atoms()[1])
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_the_worst_reconstructed_come_first_and_exact_ones_never() -> None:
    residual = torch.diag(torch.tensor([1.0, 0.0, 3.0, 3.0]))
    assert torch.equal(worst_reconstructed(residual, 2), torch.eye(4)[[2, 3]])
    assert torch.equal(worst_reconstructed(residual, 4), torch.eye(4)[[2, 3, 0]])
