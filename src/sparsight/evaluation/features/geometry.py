"""In what shape the classes of a feature lie: a direction, a line, circles of a period, a helix, a tree, or none.

Shapes are compared by what they predict of the squared distances between class means. Each is fitted to distances
measured on training documents, with one common distance added to all pairs (what sets every class apart from every
other and has no shape), and scored on held-out documents: R² of the distances about their mean, so that classes equally
far apart score 0 whatever is fitted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy.typing import NDArray
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.class_means import Products
from sparsight.evaluation.features.labelled import Kind
from sparsight.evaluation.features.moves import Places
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record import Estimate

MARGIN = 0.05
"""A shape is preferred to a richer one unless that predicts this much more of the distances."""

SHAPELESS = 0.2
"""Distances less predictable than this have no shape that we know."""

ADDS = 0.01
"""What one more circle must add to the R² of the distances to be counted."""

MIN_CLASSES = 4
"""With fewer, there are as many parameters as distances."""


class FamilyRecord(Record):
    """One shape, fitted on training documents.

    Attributes:
        family: Name of the shape.
        r2: Of the held-out squared distances between classes, about their mean; null below four classes.
        share: Of the held-out variance between classes, what lies along the shape's own directions; null for a tree.
        periods: Of the circles, in classes.
    """

    family: str
    r2: Estimate | None
    share: float | None
    periods: list[float]


class GeometryRecord(Record):
    """The shape in which classes lie.

    Attributes:
        family: "none" where means do not differ; "simplex" where no shape predicts which classes are near.
        periods: Of its circles, in classes.
        families: Every shape that was tried.
        ceiling: R² of the training distances themselves: what noise leaves to be predicted.
        signal: Mean held-out squared distance between classes; its interval decides about "none".
        share_of_variance: Variance between classes over all variance, held out.
        given: Feature within whose classes all this was measured.
        shared: How alike the arrangement is between those: 1 is one arrangement, 0 unrelated ones.
    """

    family: str
    periods: list[float]
    families: list[FamilyRecord]
    ceiling: Estimate | None
    signal: Estimate
    share_of_variance: float
    given: str | None
    shared: float | None


@dataclass(frozen=True, eq=False)
class Shape:
    """A shape's columns of pair distances, its directions in class space, and its periods."""

    name: str
    columns: Float64[Tensor, "c c p"]
    design: Float64[Tensor, "c q"] | None
    periods: tuple[float, ...] = ()


def geometry(
    train: Products,
    judge: Products,
    kind: Kind,
    *,
    values: Float64[Tensor, " c"],
    period: float,
    share_of_variance: float,
    given: str | None = None,
    shared: float | None = None,
    resampling: Resampling | None = None,
) -> GeometryRecord:
    """Fit every shape that a kind of feature can have, and name the simplest that predicts held-out distances best.

    Args:
        train: Products of means of two halves of the training documents.
        judge: Products of training and held-out means.
        kind: Of the feature: lines and circles need an order.
        values: Place of each class in the order: its number.
        period: Classes after which a cyclic feature begins anew.
        share_of_variance, given, shared: Passed on to the record.
        resampling: Of the intervals.
    """
    resampling = resampling or Resampling()
    signal = resampling.of(judge.sums, lambda sums: _mean_distance(judge, sums))
    found = signal.value > 0 and (signal.low is None or signal.low > 0)
    records, ceiling = [], None
    if found:
        shapes = _shapes(train, kind, values, period)
        records = [_record(shape, train, judge, resampling) for shape in shapes]
        if judge.n_classes >= MIN_CLASSES:
            ceiling = resampling.of(judge.sums, _r2_of(judge, train.distances(train.whole)))
    name, periods = _named(records, judge.n_classes, kind) if found else ("none", [])
    return GeometryRecord(
        family=name,
        periods=periods,
        families=records,
        ceiling=ceiling,
        signal=signal,
        share_of_variance=share_of_variance,
        given=given,
        shared=shared,
    )


def circle_columns(values: Float64[Tensor, " c"], period: float) -> Float64[Tensor, "c c"]:
    """Squared chords `1 - cos(2 pi (i - j) / period)` of a circle of radius `1 / sqrt(2)`."""
    return 1 - torch.cos(2 * torch.pi * (values[:, None] - values[None, :]) / period)


def circle_design(values: Float64[Tensor, " c"], period: float) -> Float64[Tensor, "c 2"]:
    """Cosine and sine of each class's angle."""
    angle = 2 * torch.pi * values / period
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)


def candidate_periods(kind: Kind, n_classes: int, period: float) -> list[float]:
    """A cyclic feature's harmonics; for an ordered one every frequency from one turn over all classes to two a turn."""
    if kind == "cyclic":
        return [period / turns for turns in range(1, int(period) // 2 + 1)]
    return [n_classes / turns for turns in np.arange(1, n_classes / 2 + 1e-9, 0.25).tolist()]


def _shapes(train: Products, kind: Kind, values: Float64[Tensor, " c"], period: float) -> list[Shape]:
    c = train.n_classes
    squared = train.distances(train.whole)
    weights = train.pair_weights
    shapes = [_direction(train)]
    if kind in ("ordinal", "cyclic") and c > 2:
        line = (values[:, None] - values[None, :]).square()
        shapes.append(Shape("line", line[..., None], values[:, None]))

        periods = candidate_periods(kind, c, period)
        circle = _with_circle("circle", None, train, values, periods)
        assert circle is not None
        shapes.append(circle)
        more = "helix" if kind == "ordinal" else "two circles"
        richer = _with_circle(more, shapes[1] if kind == "ordinal" else circle, train, values, periods)
        shapes += [] if richer is None else [richer]
    if c >= MIN_CLASSES:
        shapes.append(Shape("tree", tree_columns(squared, weights), None))
    return shapes


def _with_circle(
    name: str, before: Shape | None, train: Products, values: Float64[Tensor, " c"], periods: list[float]
) -> Shape | None:
    """A shape and one more circle, of the period that fits best; None where every period is taken."""
    taken = () if before is None else before.periods
    best, best_r2 = None, -np.inf
    for t in periods:
        if t in taken:
            continue
        columns = circle_columns(values, t)[..., None]
        design = circle_design(values, t)
        if before is not None and before.design is not None:
            columns = torch.cat([before.columns, columns], dim=-1)
            design = torch.cat([before.design, design], dim=1)
        shape = Shape(name, columns, design, (*taken, t))
        r2 = _fit(shape, train)
        if r2 > best_r2 + 1e-9:
            best, best_r2 = shape, r2
    return best


def _fit(shape: Shape, train: Products) -> float:
    squared, weights = train.distances(train.whole), train.pair_weights
    return _r2(squared, fitted(shape.columns, squared, weights), weights).item()


def circles_of(train: Products, values: Float64[Tensor, " c"], period: float) -> tuple[float, ...]:
    """Periods of all circles that training distances speak for, the strongest first; none where one explains little.

    Harmonics are added as long as each adds a hundredth to the R² of the distances.

    Args:
        train: Products of means of two halves of the training documents.
        values: Place of each class in the order.
        period: Classes after which the feature begins anew.
    """
    periods = candidate_periods("cyclic", train.n_classes, period)
    shape = _with_circle("circles", None, train, values, periods)
    if shape is None or _fit(shape, train) < SHAPELESS:
        return ()
    while True:
        richer = _with_circle("circles", shape, train, values, periods)
        if richer is None or _fit(richer, train) < _fit(shape, train) + ADDS:
            return shape.periods
        shape = richer


def _direction(train: Products) -> Shape:
    """The one axis along which classes differ most, their places on it free."""
    _, vectors = torch.linalg.eigh(train.centred_gram(train.whole))
    place = vectors[:, -1]
    return Shape("direction", (place[:, None] - place[None, :]).square()[..., None], place[:, None])


def tree_columns(squared: Float64[Tensor, "c c"], weights: Float64[Tensor, "c c"]) -> Float64[Tensor, "c c p"]:
    """For each branch of the tree that joins nearest classes first: the pairs whose path goes along it.

    Average linkage of the distances; branches to single classes come too, the root's two count as one.
    """
    columns = [(clade[:, None] != clade[None, :]).double() for clade in _clades(squared, weights)]
    return torch.stack(columns, dim=-1)


def _clades(squared: Float64[Tensor, "c c"], weights: Float64[Tensor, "c c"]) -> list[Bool[Tensor, " c"]]:
    """Classes below each branch: single classes, then what was joined, the nearest first; not the root."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    c = len(squared)
    known = torch.where(weights > 0, squared, squared[weights > 0].mean()).clamp_min(0)
    known = (known + known.T) / 2
    known.fill_diagonal_(0)
    merges = linkage(squareform(known.numpy(), checks=False), method="average")
    clades = [torch.eye(c, dtype=torch.bool)[i] for i in range(c)]
    for first, second, _, _ in merges[:-1]:
        clades.append(clades[int(first)] | clades[int(second)])
    return clades


def places_of(family: str, train: Products, values: Float64[Tensor, " c"]) -> Places:
    """Where the classes lie on the shape that was found, and what moving them along it must change.

    On a direction or a line: the axis, and the class. In a tree: the branches that hold several classes, and the main
    branch. In all else (a simplex, circles of an ordered feature, too few classes for a shape): all means, the class.

    Args:
        family: Name of the shape.
        train: Products of means of two halves of the training documents.
        values: Place of each class in the order.
    """
    c = train.n_classes
    own = torch.arange(c)
    if family == "direction":
        place = _direction(train).design
        assert place is not None
        return Places(family, place, own)
    if family == "line":
        return Places(family, values[:, None], own)
    if family == "tree":
        clades = _clades(train.distances(train.whole), train.pair_weights)
        joined = [clade for clade in clades if int(clade.sum()) > 1]
        # The root's two branches are complements; one of them may be a single class.
        largest = max(joined, key=lambda clade: int(clade.sum())) if joined else clades[0]
        return Places(family, torch.stack(joined or clades, dim=1).double(), largest.long())
    return Places("class means", torch.eye(c, dtype=torch.float64), own)


def fitted(
    columns: Float64[Tensor, "c c p"], squared: Float64[Tensor, "c c"], weights: Float64[Tensor, "c c"]
) -> Float64[Tensor, "c c"]:
    """Distances as a non-negative sum of the columns and one constant, by weighted least squares over pairs."""
    from scipy.optimize import nnls

    i, j = torch.triu_indices(len(squared), len(squared), 1)
    root = weights[i, j].sqrt()
    pairs = torch.cat([columns[i, j], torch.ones(len(i), 1, dtype=torch.float64)], dim=1)
    scale = pairs.square().sum(dim=0).sqrt().clamp_min(1e-300)
    factors: NDArray[np.float64]
    factors, _ = nnls((root[:, None] * pairs / scale).numpy(), (root * squared[i, j]).numpy(), maxiter=50 * len(i))
    all_columns = torch.cat([columns, torch.ones_like(columns[..., :1])], dim=-1)
    return all_columns @ (torch.from_numpy(factors) / scale)


def _r2(
    squared: Float64[Tensor, "*draws c c"], predicted: Float64[Tensor, "c c"], weights: Float64[Tensor, "c c"]
) -> Float64[Tensor, "*draws"]:
    i, j = torch.triu_indices(len(predicted), len(predicted), 1)
    w, d, p = weights[i, j], squared[..., i, j], predicted[i, j]
    mean = (w * d).sum(dim=-1, keepdim=True) / w.sum()
    spread = (w * (d - mean).square()).sum(dim=-1)
    return 1 - (w * (d - p).square()).sum(dim=-1) / spread.clamp_min(torch.finfo(torch.float64).tiny)


def _r2_of(judge: Products, predicted: Float64[Tensor, "c c"]) -> Callable[[Tensor], Tensor]:
    return lambda sums: _r2(judge.distances(sums), predicted, judge.pair_weights)


def _mean_distance(judge: Products, sums: Float64[Tensor, "*draws m"]) -> Float64[Tensor, "*draws"]:
    weights = judge.pair_weights
    return (judge.distances(sums) * weights).sum(dim=(-1, -2)) / weights.sum()


def _record(shape: Shape, train: Products, judge: Products, resampling: Resampling) -> FamilyRecord:
    r2 = None
    if judge.n_classes >= MIN_CLASSES:
        predicted = fitted(shape.columns, train.distances(train.whole), train.pair_weights)
        try:
            r2 = resampling.of(judge.sums, _r2_of(judge, predicted))
        except UndefinedMetric:  # all distances equal on some draw
            r2 = None
    share = None
    if shape.design is not None:
        design = shape.design - shape.design.mean(dim=0)
        basis = torch.linalg.qr(design).Q
        gram = judge.centred_gram(judge.whole)
        share = float((basis.T @ gram @ basis).diagonal().sum() / gram.diagonal().sum())
    return FamilyRecord(family=shape.name, r2=r2, share=share, periods=list(shape.periods))


_SIMPLEST_FIRST = ("line", "direction", "circle", "helix", "two circles", "tree")


def _named(records: list[FamilyRecord], n_classes: int, kind: Kind) -> tuple[str, list[float]]:
    """The simplest shape that predicts about as much as any."""
    if n_classes < MIN_CLASSES:
        line = [r for r in records if r.family == "line" and r.share is not None and r.share >= 0.9]
        direct = [r for r in records if r.family == "direction" and r.share is not None and r.share >= 0.9]
        return (line or direct)[0].family if line or direct else "simplex", []
    scored = [(r, r.r2.value) for r in records if r.r2 is not None]
    best = max((value for _, value in scored), default=0.0)
    if best < SHAPELESS:
        return "simplex", []
    ordered = sorted(scored, key=lambda pair: _SIMPLEST_FIRST.index(pair[0].family))
    chosen = next(record for record, value in ordered if value >= best - MARGIN)
    return chosen.family, chosen.periods
