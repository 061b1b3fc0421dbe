"""The battery: every test of mediation with its control, and what they say together."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.intervention.direction import Direction, orthonormal
from sparsight.intervention.direction_edits import Directions, span_of
from sparsight.intervention.mediation import measure as m
from sparsight.intervention.mediation.readout import ModelReadout, Readout
from sparsight.intervention.mediation.record import ENOUGH, LITTLE, Mediation, MediationTest, Said


def mediation(
    readout: Readout,
    labels: Int64[Tensor, " n"],
    direction: Directions,
    *,
    n_pairs: int = 200,
    n_random: int = 200,
    side_effect: Callable[[Callable[[Tensor], Tensor]], float] | None = None,
    most_side_effect: float = 0.02,
    name: str | None = None,
    seed: int = 0,
) -> Mediation:
    """Whether a direction mediates a behaviour: necessity, sufficiency, interchange and their controls.

    Fractions are of the effect of swapping the whole activation for that of an input of the other class. Random
    subspaces of equal rank are drawn as random combinations of centred activations, so that they vary as the data do.

    Args:
        readout: Inputs with activations, and their behaviour; `ModelReadout`, or anything of that shape.
        labels: 1 for inputs that should show the behaviour, 0 for others.
        direction: One, or several whose span is meant.
        n_pairs: Base and source pairs.
        n_random: Random subspaces.
        side_effect: From an edit of activations to what it costs elsewhere (relative loss, say); that of ablation is
            reported and held against `most_side_effect`.
        most_side_effect: See above.
        name: For the table.
        seed: Of pairs, random subspaces and resamples.
    Raises:
        ValueError: a direction is zero or of another width, or there is not one label for each input.
        DataError: a direction was found in another model.
        UndefinedMetric: a class is empty, or swapping everything does not move the behaviour.
    """
    x = readout.x.double()
    basis = _span(readout, labels, direction).to(x)
    pairs = m.draw_pairs(readout, labels, n_pairs, seed)
    randoms = random_subspaces(x, len(basis), n_random, seed + 1)
    fractions = torch.tensor([m.share_mediated(readout, pairs, r) for r in randoms], dtype=torch.float64)
    inter = m.fraction_mediated(readout, pairs, basis, seed=seed)
    rest = m.fraction_mediated(readout, pairs, basis, rest=True, seed=seed)
    q95 = float(fractions.quantile(0.95))
    tests = [
        *_ablation(readout, labels, basis, randoms, seed),
        *_addition(readout, labels, basis, randoms, seed),
        MediationTest.beyond(
            inter,
            "interchange",
            "share of the whole swap's effect; control: 95 % quantile of random subspaces",
            control=q95,
        ),
        MediationTest.of(
            rest,
            "complement",
            "the same with all but the direction swapped; a sole mediator leaves 0",
            control=1 - ENOUGH,
            passed=rest.high <= 1 - ENOUGH,
        ),
        *_other_directions(readout, labels, pairs, x, len(basis), seed),
        _dormant(readout, pairs, basis, inter.value),
        _off_manifold(readout, pairs, basis, x),
    ]
    if side_effect is not None:
        cost = side_effect(_towards(basis, x[labels == 0].mean(dim=0)))
        tests.append(
            MediationTest(
                name="specificity",
                value=cost,
                control=most_side_effect,
                passed=cost <= most_side_effect,
                meaning="what ablation costs elsewhere; control: the most allowed",
            )
        )
    return Mediation(
        direction=name or _name(direction),
        rank=len(basis),
        n_pairs=len(pairs.base),
        tests=tests,
        dimensions=m.greedy_dimension(readout, pairs, basis),
        verdict=_verdict(tests, inter, q95),
    )


def random_subspaces(x: Float[Tensor, "n d"], rank: int, n: int, seed: int) -> list[Float[Tensor, "rank d"]]:
    """Spans of random combinations of centred activations: they hold as much variance as random data do."""
    generator = torch.Generator().manual_seed(seed)
    centred = (x - x.mean(dim=0)).cpu()
    found = []
    for _ in range(n):
        rows = torch.randn(rank, len(centred), generator=generator, dtype=torch.float64) @ centred
        found.append(torch.linalg.qr(rows.T).Q.T.to(x.device))
    return found


def _span(readout: Readout, labels: Tensor, direction: Directions) -> Float[Tensor, "k d"]:
    """A basis of the directions, once they are known to fit."""
    if len(labels) != len(readout.x):
        raise ValueError(f"expected one label for each input, got {len(labels)} for {len(readout.x)}")
    if isinstance(readout, ModelReadout):
        return span_of(readout.lm, direction, [readout.site])[1]
    basis = orthonormal(direction)
    if basis.shape[1] != readout.x.shape[1]:
        raise ValueError(f"the direction has width {basis.shape[1]}, the activations have {readout.x.shape[1]}")
    return basis


def _classes(labels: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " q"]]:
    """Rows of the positives and of the negatives."""
    return torch.nonzero(labels == 1).flatten(), torch.nonzero(labels == 0).flatten()


def _towards(basis: Float[Tensor, "k d"], centre: Float[Tensor, " d"]) -> Callable[[Tensor], Tensor]:
    """Coordinates along a basis set to those of a point."""

    def edit(x: Tensor) -> Tensor:
        rows = basis.to(x)
        return x - ((x - centre.to(x)) @ rows.T) @ rows

    return edit


def _ablation(readout: Readout, labels: Tensor, basis: Tensor, randoms: list[Tensor], seed: int) -> list[MediationTest]:
    """How much of the gap between the classes is left when the coordinates are those of the other class's mean."""
    positive, negative = _classes(labels)
    centre = readout.x[negative].double().mean(dim=0)
    clean = m.edited_scores(readout, positive, lambda x: x)
    floor = float(m.edited_scores(readout, negative, lambda x: x).mean())
    gap = clean - floor
    lost = m.ratio(clean - m.edited_scores(readout, positive, _towards(basis, centre)), gap, seed)
    control = [
        float((clean - m.edited_scores(readout, positive, _towards(r, centre))).mean() / gap.mean())
        for r in randoms[:20]
    ]
    at_zero = clean - m.edited_scores(readout, positive, lambda x: x - (x @ basis.to(x).T) @ basis.to(x))
    return [
        MediationTest.beyond(
            lost,
            "necessity",
            "share of the classes' gap lost when positives get the negatives' mean coordinates; control: the largest "
            "of 20 random",
            control=max(control),
        ),
        MediationTest(
            name="necessity, to zero",
            value=float(at_zero.mean() / gap.mean()),
            passed=None,
            meaning="the same with the coordinates set to 0, which need not stand for absence",
        ),
    ]


def _addition(readout: Readout, labels: Tensor, basis: Tensor, randoms: list[Tensor], seed: int) -> list[MediationTest]:
    """Whether adding the difference of the classes' coordinates induces the behaviour, and more of it more."""
    positive, negative = _classes(labels)
    x = readout.x.double()
    difference = x[positive].mean(dim=0) - x[negative].mean(dim=0)
    along = (difference @ basis.T) @ basis
    clean = m.edited_scores(readout, negative, lambda rows: rows)
    top = float(m.edited_scores(readout, positive, lambda rows: rows).mean())
    gap = top - clean

    def gained(step: Tensor) -> Tensor:
        return m.edited_scores(readout, negative, lambda rows: rows + step.to(rows)) - clean

    won = m.ratio(gained(along), gap, seed)
    size = float(along.norm())
    control = [float(gained(size * r[0]).mean() / gap.mean()) for r in randoms[:20]]
    doses = [float(gained(share * along).mean()) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    rises = sum(b > a for a, b in pairwise(doses)) / 4
    return [
        MediationTest.beyond(
            won,
            "sufficiency",
            "share of the gap won when the classes' difference along it is added to negatives; control: the largest "
            "of 20 random steps of equal norm",
            control=max(control),
        ),
        MediationTest(
            name="dose-response",
            value=rises,
            control=1.0,
            passed=rises == 1.0,
            meaning="share of the steps 0, 1/4 ... 1 of that addition at which the behaviour rises",
        ),
    ]


def _other_directions(
    readout: Readout, labels: Tensor, pairs: m.Pairs, x: Tensor, rank: int, seed: int
) -> list[MediationTest]:
    """Interchange along main components, and along differences in means of shuffled labels: what any direction does."""
    _, _, right = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    components = m.share_mediated(readout, pairs, right[:rank])
    generator = torch.Generator().manual_seed(seed + 2)
    shuffled = []
    for _ in range(10):
        rows = []
        for _ in range(rank):
            fake = labels[torch.randperm(len(labels), generator=generator)]
            rows.append(x[fake == 1].mean(dim=0) - x[fake == 0].mean(dim=0))
        shuffled.append(m.share_mediated(readout, pairs, orthonormal(torch.stack(rows)).to(x)))
    return [
        MediationTest(
            name="main components",
            value=components,
            passed=None,
            meaning="interchange along as many main components of the activations",
        ),
        MediationTest(
            name="shuffled labels",
            value=max(shuffled),
            passed=None,
            meaning="the largest interchange of 10 differences in means of shuffled labels",
        ),
    ]


def _dormant(readout: Readout, pairs: m.Pairs, basis: Tensor, fraction: float) -> MediationTest:
    """Interchange along that part of the direction which is read downstream, over the whole direction's.

    A swap along a direction writes what varies anywhere along it into all of it. If what varies is not read and what is
    read does not vary, the swap acts and the network never does: then the part that is read, alone, carries nothing.
    """
    read = m.read_subspace(readout, pairs).to(basis)
    parts = (basis @ read.T) @ read
    kept = parts[parts.norm(dim=1) > 1e-6]
    share = 0.0
    if len(kept) and fraction > 0:
        alone = m.share_mediated(readout, pairs, torch.linalg.qr(kept.T).Q.T)
        share = min(alone / fraction, 1.0)
    return MediationTest(
        name="not dormant",
        value=share,
        control=ENOUGH,
        passed=fraction < LITTLE or share >= ENOUGH,
        meaning="interchange along the part that is read downstream over that along the whole; near 0: an illusion",
    )


def _off_manifold(readout: Readout, pairs: m.Pairs, basis: Tensor, x: Tensor) -> MediationTest:
    """Mahalanobis distance of swapped activations, as a rank among natural ones."""
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / len(x)
    ridge = 1e-3 * covariance.trace() / len(covariance)
    precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=x.dtype, device=x.device))

    def distance(rows: Tensor) -> Tensor:
        off = rows - x.mean(dim=0)
        squared: Tensor = ((off @ precision) * off).sum(dim=1)
        return squared.clamp_min(0).sqrt()

    base, source = x[pairs.base], x[pairs.source]
    swapped = base + ((source - base) @ basis.T) @ basis
    typical = float(distance(x).quantile(0.99))
    return MediationTest(
        name="on the manifold",
        value=float(distance(swapped).median()) / typical,
        control=1.0,
        passed=None,
        meaning="median Mahalanobis distance of swapped activations over the 99 % quantile of natural ones; above 1: "
        "unlike anything natural",
    )


def _verdict(tests: list[MediationTest], inter: m.Effect, q95: float) -> Said:
    if all(test.passed for test in tests if test.passed is not None):
        return "mediates"
    dormant = next(test for test in tests if test.name == "not dormant")
    if inter.low >= LITTLE and inter.low > q95 and dormant.passed:
        return "mediates in part"
    return "does not mediate"


def _name(direction: Directions) -> str:
    if isinstance(direction, Direction):
        return direction.name
    one = isinstance(direction, Tensor) and direction.dim() == 1
    return "direction" if one else f"{len(direction)} directions"
