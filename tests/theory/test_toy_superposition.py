"""Toy superposition against closed forms, quadrature, regular shapes and known optima."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsight.errors import TrainingError
from sparsight.theory.superposition import (
    Group,
    ToyInputs,
    ToyModel,
    antipodal_loss,
    best_two_in_one,
    dimensionality,
    expected_loss,
    groups,
    ignoring_loss,
    interference,
    lengths,
    superposition_below,
    train_toy,
)
from sparsight.theory.superposition.inputs import Arrangement

SHARE = st.floats(0.01, 1.0)


def polygon(n: int) -> Tensor:
    """`n` directions in the plane, evenly."""
    angles = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    return torch.stack([angles.cos(), angles.sin()])


def antiprism() -> Tensor:
    """Eight points: two squares, one above the other, turned by an eighth, as far apart as makes a tight frame."""
    height, radius = (1 / 3) ** 0.5, (2 / 3) ** 0.5
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    heights = height * torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    return torch.stack([radius * angles.cos(), radius * angles.sin(), heights])


def tetrahedron() -> Tensor:
    return torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("W", "share"),
    [
        (torch.tensor([[1.0, -1.0]]), 1 / 2),
        (polygon(3), 2 / 3),
        (tetrahedron(), 3 / 4),
        (polygon(5), 2 / 5),
        (antiprism(), 3 / 8),
        (torch.eye(3), 1.0),
    ],
    ids=["digon", "triangle", "tetrahedron", "pentagon", "antiprism", "alone"],
)
def test_regular_shapes_share_their_dimensions_evenly(W: Tensor, share: float) -> None:
    expected = torch.full_like(W[0], share)
    torch.testing.assert_close(dimensionality(3.7 * W), expected)
    n, m = W.shape[1], W.shape[0]
    torch.testing.assert_close(interference(W), (n / m - 1) * lengths(W).square())


def test_no_direction_has_no_dimension() -> None:
    W = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert dimensionality(W).tolist() == [1.0, 0.0, 1.0]
    assert interference(W).tolist() == [0.0, 0.0, 0.0]
    assert dimensionality(torch.zeros(2, 3)).tolist() == [0.0] * 3


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_features_share_no_more_dimensions_than_there_are(seed: int, m: int, n: int, rank: int) -> None:
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(m, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, n, generator=g, dtype=torch.float64)
    shares = dimensionality(W)
    assert float(shares.sum()) <= min(m, n, rank) + 1e-9
    assert bool(((shares >= 0) & (shares <= 1 + 1e-12)).all())


def test_groups_are_those_that_share() -> None:
    W = torch.zeros(5, 10, dtype=torch.float64)
    W[:2, [0, 3, 4, 6, 9]] = polygon(5)
    W[2, [1, 5]] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    W[3, 7] = 1.0
    W[4, 8] = 0.1
    W += 1e-3 * torch.randn(5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [Group((0, 3, 4, 6, 9), 2), Group((1, 5), 1), Group((7,), 1)]
    assert groups(W) == expected
    assert groups(torch.zeros(2, 3)) == []


@given(SHARE, SHARE)
@settings(max_examples=25, deadline=None)
def test_quadrature_gives_the_closed_forms(p: float, r: float) -> None:
    assert expected_loss((1.0, 0.0), (0.0, p / 2), p, r) == pytest.approx(ignoring_loss(p, r), abs=1e-9)
    assert expected_loss((1.0, -1.0), (0.0, 0.0), p, r) == pytest.approx(antipodal_loss(p, r), rel=1e-4)


def test_quadrature_gives_the_mean_over_draws() -> None:
    """Of the model itself: its loss, its inputs."""
    inputs = ToyInputs(2, (0.6,))
    model = ToyModel(1, 2, 1, torch.Generator().manual_seed(0))
    model.W.data = torch.tensor([[[1.1, -0.6]]])
    model.b.data = torch.tensor([[-0.05, 0.1]])
    importance, g = torch.tensor([[1.0, 0.3]]), torch.Generator().manual_seed(1)
    means = torch.stack([model.loss(inputs.draw(4000, g), importance)[0].detach() for _ in range(50)])
    error = float(means.std() / 50**0.5)
    assert float(means.mean()) == pytest.approx(expected_loss((1.1, -0.6), (-0.05, 0.1), 0.6, 0.3), abs=4 * error)


@given(SHARE)
@settings(max_examples=50, deadline=None)
def test_both_ways_cost_the_same_at_the_boundary(r: float) -> None:
    p = superposition_below(r)
    assert antipodal_loss(p, r) == pytest.approx(ignoring_loss(p, r))
    assert antipodal_loss(0.9 * p, r) < ignoring_loss(0.9 * p, r)
    assert antipodal_loss(1.1 * p, r) > ignoring_loss(1.1 * p, r)


@pytest.mark.parametrize(("r", "below", "above"), [(0.5, 0.4, 0.5), (0.1, 0.15, 0.2)])
def test_the_second_weight_drops_to_nothing_between_two_densities(r: float, below: float, above: float) -> None:
    """A transition of first order: at the best weights, not at those of the closed forms, which lie on either side."""
    assert below < superposition_below(r) < above
    inside, outside = best_two_in_one(below, r, starts=2), best_two_in_one(above, r, starts=2)
    assert abs(inside.w[1]) > 0.75
    assert inside.w[0] * inside.w[1] < 0
    assert abs(outside.w[1]) < 0.02
    assert inside.loss <= antipodal_loss(below, r)
    assert outside.loss == pytest.approx(ignoring_loss(above, r), rel=1e-4)


def test_training_ends_at_the_best_weights() -> None:
    """With many features present every copy does, and the best of eight copies where there is superposition."""
    model = train_toy(
        ToyInputs(2, (0.8,) * 2 + (0.3,) * 8), 1, torch.tensor([[1.0, 0.5]]), steps=800, batch=512, lr=2e-2
    )
    ends = []
    for W, b in zip(model.W, model.b, strict=True):
        (w1, w2), (b1, b2) = W[0].tolist(), b.tolist()
        ends.append((w1, w2, b1, b2))
    losses = [expected_loss((w1, w2), (b1, b2), 0.8, 0.5) for w1, w2, b1, b2 in ends[:2]]
    assert losses == pytest.approx([ignoring_loss(0.8, 0.5)] * 2, rel=0.02)
    best = min(expected_loss((w1, w2), (b1, b2), 0.3, 0.5) for w1, w2, b1, b2 in ends[2:])
    assert best == pytest.approx(best_two_in_one(0.3, 0.5, starts=0).loss, rel=0.03)


def test_first_weights_are_of_length_one_on_average() -> None:
    model = ToyModel(3, 2000, 8, torch.Generator().manual_seed(0))
    assert lengths(model.W).square().mean(dim=1).tolist() == pytest.approx([1.0] * 3, rel=0.05)
    assert not bool(model.b.any())


def test_equal_seeds_give_equal_models() -> None:
    first, second, other = (
        train_toy(ToyInputs(4, (0.2, 0.5)), 2, torch.ones(1, 4), steps=20, batch=16, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.W, second.W)
    assert not torch.equal(first.W, other.W)
    assert not torch.equal(first.W[0], first.W[1])


@pytest.mark.parametrize("arrangement", get_args(Arrangement))
def test_features_are_there_as_often_as_asked(arrangement: Arrangement) -> None:
    x = ToyInputs(6, (0.1, 0.4), arrangement).draw(20_000, torch.Generator().manual_seed(0))
    there = (x > 0).double()
    for p, each in zip((0.1, 0.4), there, strict=True):
        assert each.mean(dim=0).tolist() == pytest.approx([p] * 6, abs=0.015)
        both = (each[:, 0] * each[:, 1]).mean()
        assert float(both) == pytest.approx({"independent": p**2, "together": p, "apart": 0}[arrangement], abs=0.01)
        assert float((each[:, 0] * each[:, 2]).mean()) == pytest.approx(p**2, abs=0.01)
    assert float(x[x > 0].mean()) == pytest.approx(0.5, abs=0.01)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToyInputs(0, (0.5,)), "n must be"),
        (lambda: ToyInputs(2, ()), "density"),
        (lambda: ToyInputs(2, (0.0,)), "density"),
        (lambda: ToyInputs(2, (float("nan"),)), "density"),
        (lambda: ToyInputs(2, (0.6,), "apart"), r"\(0, 0.5\]"),
        (lambda: ToyInputs(3, (0.2,), "together"), "even number"),
        (lambda: ToyInputs(2, (0.2,), "near"), "arrangement"),
        (lambda: ToyModel(1, 2, 0, torch.Generator()), "hidden"),
        (lambda: train_toy(ToyInputs(2, (0.2,)), 1, torch.ones(1, 3)), r"\[1, 2\]"),
        (lambda: train_toy(ToyInputs(2, (0.2,)), 1, -torch.ones(1, 2)), "0 or more"),
        (lambda: train_toy(ToyInputs(2, (0.2,)), 1, torch.full((1, 2), torch.nan)), "finite"),
        (lambda: train_toy(ToyInputs(2, (0.2,)), 1, torch.ones(1, 2), steps=0), "steps"),
        (lambda: superposition_below(1.5), "importance"),
        (lambda: best_two_in_one(0.0, 0.5), "density"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    # beartype speaks first where a literal is wrong
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_loss_that_is_not_finite_is_said() -> None:
    with pytest.raises(TrainingError, match="lower lr"):
        train_toy(ToyInputs(2, (0.5,)), 1, torch.ones(1, 2), steps=101, batch=4, lr=1e30)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_five_rare_features_in_a_plane_make_a_pentagon(seed: int) -> None:
    model = train_toy(ToyInputs(5, (0.05,) * 10), 2, torch.ones(1, 5), steps=4000, batch=512, lr=3e-3, seed=seed)
    regular = [bool(((dimensionality(W) - 0.4).abs() < 0.02).all()) for W in model.W]
    assert sum(regular) >= 6
    for W, is_regular in zip(model.W, regular, strict=True):
        if is_regular:
            assert groups(W) == [Group((0, 1, 2, 3, 4), 2)]


@pytest.mark.parametrize(("arrangement", "order"), [("apart", "own first"), ("together", "own last")])
def test_opposites_cost_nothing_where_they_never_meet(arrangement: Arrangement, order: str) -> None:
    """Pairs of features that are never there together, and of others, on one dimension each."""
    x = ToyInputs(4, (0.3,), arrangement).draw(5000, torch.Generator().manual_seed(0))
    model = ToyModel(1, 4, 2, torch.Generator().manual_seed(0))

    def loss(pairs: list[tuple[int, int]]) -> float:
        model.W.data = torch.zeros(1, 2, 4)
        for row, (i, j) in enumerate(pairs):
            model.W.data[0, row, [i, j]] = torch.tensor([1.0, -1.0])
        return float(model.loss(x, torch.ones(1, 4))[0].detach())

    own, others = loss([(0, 1), (2, 3)]), loss([(0, 2), (1, 3)])
    assert others == pytest.approx(4 * 0.3**2 / 6, rel=0.1)
    if order == "own first":
        assert own == 0
    else:
        assert own == pytest.approx(4 * 0.3 / 6, rel=0.1)
