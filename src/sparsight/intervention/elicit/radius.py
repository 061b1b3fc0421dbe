"""How large a perturbation is to be: the knee between a paraphrase and gibberish."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from sparsight.errors import UndefinedMetric
from sparsight.intervention.elicit.perturbation import Perturbations, Vectors
from sparsight.intervention.elicit.reach import Reach
from sparsight.intervention.elicit.record import RadiusPoint
from sparsight.intervention.elicit.search import Search, find_vectors


def find_radius(
    reach: Reach,
    search: Search,
    *,
    find: Callable[[Search], Perturbations] | None = None,
    shares: Sequence[float] | None = None,
    n_vectors: int = 4,
    steps: int = 30,
) -> list[RadiusPoint]:
    """The divergence that short searches reach, over a grid of radii.

    Args:
        reach: Source and target.
        search: Its method, learning rate and seed are used.
        find: How perturbations are found; vectors when None.
        shares: Radii over the mean norm of the source's activations; twelve from 0.03 to 3 when None.
        n_vectors, steps: Of each short search.
    """
    norm = reach.mean_norm()

    def vectors(search: Search) -> Perturbations:
        return Vectors(find_vectors(reach, reach.d, search, dtype=reach.unperturbed.dtype))

    grid = [0.03 * 100 ** (i / 11) for i in range(12)] if shares is None else list(shares)
    points = []
    for share in grid:
        short = replace(search, n_vectors=n_vectors, steps=steps, radius=share * norm, orthogonal=False)
        found = (find or vectors)(short)
        points.append(RadiusPoint(radius=share * norm, relative=share, kl=float(reach.kl(found).mean())))
    return points


def knee(points: Sequence[RadiusPoint]) -> RadiusPoint:
    """Where the divergence begins to rise steeply: the point furthest below the chord of KL over log radius.

    Source:
        The rule of Satopaa et al., "Finding a 'Kneedle' in a Haystack", 2011, for a convex rising curve. Radii beyond
        the largest divergence are left out.
    Raises:
        UndefinedMetric: there are fewer than three radii, or the divergence does not rise.
    """
    if len(points) < 3:
        raise UndefinedMetric(f"a knee needs at least three radii, got {len(points)}")
    top = max(range(len(points)), key=lambda i: points[i].kl)
    rising = points[: top + 1]
    if len(rising) < 3 or not points[top].kl > 0:
        raise UndefinedMetric("no knee: the divergence does not rise with the radius; name a radius")
    xs = [math.log(point.radius) for point in rising]
    ys = [point.kl for point in rising]
    gaps = [(x - xs[0]) / (xs[-1] - xs[0]) - (y - ys[0]) / (ys[-1] - ys[0]) for x, y in zip(xs, ys, strict=True)]
    return rising[max(range(len(gaps)), key=gaps.__getitem__)]
