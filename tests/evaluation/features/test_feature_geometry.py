"""Shapes: a planted circle with its period, line, helix, tree, simplex, nothing; dimensions by each count."""

import math

import pytest
import torch
from planted_features import directions, documents

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.class_means import ClassMeans, Products, shared_between_strata
from sparsight.evaluation.features.dimension import heldout_correlations, leading, participation_ratio
from sparsight.evaluation.features.geometry import circle_columns, fitted, geometry, tree_columns
from sparsight.evaluation.features.labelled import Part
from sparsight.evaluation.features.leace import Leace
from sparsight.evaluation.features.scores import Resampling

D, N = 16, 1800
QUICK = Resampling(n_resamples=40)


def products(means: torch.Tensor, noise: float, seed: int, strata: int = 1):
    """Tokens around planted class means, in three sets of documents, and the products that shapes are judged by."""
    g = torch.Generator().manual_seed(seed)
    c = means.shape[-2]
    means = means.expand(strata, c, D)
    sets = []
    for _ in range(3):
        y = torch.randint(c, (N // 3,), generator=g)
        s = torch.randint(strata, (N // 3,), generator=g)
        x = means[s, y] + noise * torch.randn(N // 3, D, generator=g, dtype=torch.float64) + 5
        sets.append((x, y, s))
    (x0, y0, s0), (x1, y1, s1), (x2, y2, s2) = sets
    first = ClassMeans.of(x0, y0, s0, c, strata)
    both = ClassMeans.of(torch.cat([x0, x1]), torch.cat([y0, y1]), torch.cat([s0, s1]), c, strata)
    halves = Products.of(first, x1, y1, s1, documents(N // 3))
    judged = Products.of(both, x2, y2, s2, documents(N // 3))
    return halves, judged, both, ClassMeans.of(x2, y2, s2, c, strata)


def shape_of(means: torch.Tensor, kind: str, noise: float = 0.3, seed: int = 41):
    halves, judged, _, _ = products(means, noise, seed)
    c = means.shape[-2]
    values = torch.arange(c, dtype=torch.float64)
    return geometry(halves, judged, kind, values=values, period=float(c), share_of_variance=0.5, resampling=QUICK)


def circle(c: int, period: float, radius: float = 2.0) -> torch.Tensor:
    angle = 2 * math.pi * torch.arange(c, dtype=torch.float64) / period
    plane = directions(2, D, torch.Generator().manual_seed(42))
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1) @ plane


def r2(found, family: str) -> float:
    return next(f.r2.value for f in found.families if f.family == family)


def test_a_planted_circle_of_weekdays_is_a_circle_of_period_seven():
    found = shape_of(circle(7, 7), "cyclic")
    assert (found.family, found.periods) == ("circle", [7.0])
    assert r2(found, "circle") > 0.95
    assert next(f.share for f in found.families if f.family == "circle") == pytest.approx(1, abs=0.02)
    assert r2(found, "line") < 0.5


def test_the_period_of_a_circle_is_found_among_ordered_values():
    found = shape_of(circle(20, 10), "ordinal")
    assert (found.family, found.periods) == ("circle", [10.0])


def test_a_circle_gone_round_twice_is_found_as_the_second_harmonic():
    found = shape_of(circle(7, 3.5), "cyclic")
    assert (found.family, found.periods) == ("circle", [3.5])


def test_two_planted_circles_are_both_found():
    other = directions(4, D, torch.Generator().manual_seed(42))[2:]
    angle = 2 * math.pi * torch.arange(12, dtype=torch.float64) / 6
    second = 1.5 * torch.stack([angle.cos(), angle.sin()], dim=1) @ other
    found = shape_of(circle(12, 12) + second, "cyclic")
    assert (found.family, found.periods) == ("two circles", [12.0, 6.0])


def test_a_planted_line_is_a_line():
    direction = directions(1, D, torch.Generator().manual_seed(43))
    found = shape_of(torch.arange(8, dtype=torch.float64)[:, None] * direction, "ordinal")
    assert found.family == "line"
    assert r2(found, "line") > 0.98


def test_uneven_steps_on_one_axis_are_a_direction_and_no_line():
    direction = directions(1, D, torch.Generator().manual_seed(43))
    places = torch.tensor([0.0, 5, 1, 7, 3, 6, 2, 4], dtype=torch.float64)
    found = shape_of(places[:, None] * direction, "ordinal")
    assert found.family == "direction"
    assert r2(found, "line") < 0.5


def test_a_planted_helix_is_a_helix():
    axis = directions(3, D, torch.Generator().manual_seed(42))[2:]
    found = shape_of(circle(16, 8) + 0.25 * torch.arange(16, dtype=torch.float64)[:, None] * axis, "ordinal")
    assert (found.family, found.periods) == ("helix", [8.0])


def test_a_planted_tree_is_a_tree():
    """Eight leaves below two trunks and four boughs, all at right angles."""
    steps = directions(14, D, torch.Generator().manual_seed(44))
    leaf = torch.arange(8)
    means = 3 * steps[leaf // 4] + 2 * steps[2 + leaf // 2] + 1.0 * steps[6 + leaf]
    found = shape_of(means, "categorical")
    assert found.family == "tree"
    assert r2(found, "tree") > 0.95
    assert r2(found, "direction") < r2(found, "tree") - 0.05


def test_classes_equally_far_apart_have_no_shape():
    found = shape_of(2 * directions(8, D, torch.Generator().manual_seed(45)), "cyclic")
    assert found.family == "simplex"


def test_an_isotropic_blob_has_no_geometry():
    found = shape_of(torch.zeros(7, D, dtype=torch.float64), "cyclic", noise=1.0)
    assert found.family == "none"
    assert found.families == []
    assert found.signal.low < 0 < found.signal.high


def test_a_known_tree_metric_is_fitted_exactly_by_its_branches():
    lengths = torch.tensor([[0.0, 2, 6, 7], [2, 0, 6, 7], [6, 6, 0, 3], [7, 7, 3, 0]], dtype=torch.float64)
    weights = torch.ones(4, 4, dtype=torch.float64) - torch.eye(4, dtype=torch.float64)
    predicted = fitted(tree_columns(lengths, weights), lengths, weights)
    off = weights > 0
    torch.testing.assert_close(predicted[off], lengths[off], atol=1e-9, rtol=0)


def test_chords_of_a_circle():
    chords = circle_columns(torch.arange(4, dtype=torch.float64), 4.0)
    torch.testing.assert_close(chords[0], torch.tensor([0.0, 1, 2, 1], dtype=torch.float64))


def test_products_of_means_are_free_of_noise_on_average():
    """Equal class means: squared distances would be positive from noise alone, products scatter about zero."""
    halves, judged, _, _ = products(torch.zeros(6, D, dtype=torch.float64), 3.0, 46)
    own = 2 * 9 * D / (N / 3 / 6)
    for p in (halves, judged):
        assert abs(p.distances(p.whole).mean()) < own / 4


def test_strata_that_share_an_arrangement_are_told_from_those_that_do_not():
    g = torch.Generator().manual_seed(47)
    same = torch.randn(5, D, generator=g, dtype=torch.float64).expand(2, 5, D)
    apart = torch.randn(2, 5, D, generator=g, dtype=torch.float64)
    for planted, low, high in ((same, 0.9, 1.1), (apart, -0.4, 0.4)):
        _, _, means, held = products(planted, 0.2, 48, strata=2)
        shared = shared_between_strata(means, held)
        assert shared is not None
        assert low < shared < high
    _, _, means, held = products(same[:1], 0.2, 49)
    assert shared_between_strata(means, held) is None


def test_each_stratum_may_have_a_circle_of_its_own():
    g = torch.Generator().manual_seed(50)
    angle = 2 * math.pi * torch.arange(7, dtype=torch.float64) / 7
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    planes = directions(6, D, g).view(3, 2, D)
    halves, judged, _, _ = products(2 * ring @ planes, 0.3, 51, strata=3)
    values = torch.arange(7, dtype=torch.float64)
    found = geometry(halves, judged, "cyclic", values=values, period=7.0, share_of_variance=0.1, resampling=QUICK)
    assert (found.family, found.periods) == ("circle", [7.0])


def test_participation_counts_equal_directions():
    assert participation_ratio(torch.diag(torch.tensor([2.0, 2, 2, 0], dtype=torch.float64))) == pytest.approx(3)
    assert participation_ratio(torch.diag(torch.tensor([9.0, 0, -1], dtype=torch.float64))) == pytest.approx(1)
    with pytest.raises(UndefinedMetric, match="no dimension"):
        participation_ratio(torch.zeros(3, 3, dtype=torch.float64))


def test_erased_dimensions_that_hold_up_are_those_planted():
    """Six classes whose means span a plane: five dimensions are erased, two of them are there on held-out documents."""
    g = torch.Generator().manual_seed(52)
    y = torch.randint(6, (1200,), generator=g)
    x = circle(6, 6, radius=3.0)[y] + torch.randn(1200, D, generator=g, dtype=torch.float64)
    eraser = Leace.of(x[:800], y[:800])
    ids = torch.arange(400) // 4
    part = Part(
        torch.arange(400), y[800:], ids, torch.zeros(400, dtype=torch.int64), torch.zeros(400, dtype=torch.int64)
    )
    correlations = heldout_correlations(eraser, x[800:], part, 6, QUICK)
    assert eraser.rank == 5
    assert leading(correlations) == 2
    assert correlations[0].value > 0.8
