"""What is measured at a feature's home site: kinds of probe, held-out token types, dimensions, shape, interventions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.class_means import ClassMeans, Products, shared_between_strata
from sparsight.evaluation.features.dimension import (
    DimensionRecord,
    heldout_correlations,
    leading,
    participation_ratio,
)
from sparsight.evaluation.features.geometry import (
    GeometryRecord,
    candidate_periods,
    circle_design,
    circles_of,
    geometry,
    places_of,
)
from sparsight.evaluation.features.labelled import Documents, Examples, Labelled, examples_of
from sparsight.evaluation.features.leace import Leace
from sparsight.evaluation.features.linearity import SIZES
from sparsight.evaluation.features.mediation import ENOUGH, Exchange, MediationRecord, StoredTexts, joined, mediation
from sparsight.evaluation.features.moves import MoveRecord, Places, Speakers, moves, next_tokens
from sparsight.evaluation.features.nonlinearity import Sides, SiteLinearity, answers, chosen_logistic, compared
from sparsight.evaluation.features.probes import (
    Probe,
    control_labels,
    difference_in_means,
    discriminant,
    k_sparse,
    logistic,
    mlp,
    type_folds,
)
from sparsight.evaluation.features.report_record import HeldOutTypes, ProbeRecord
from sparsight.evaluation.features.rotation import N_PROMPTS, Prompts, RotationRecord, rotation
from sparsight.evaluation.features.rotation import answers as next_answers
from sparsight.evaluation.features.scores import (
    Resampling,
    balanced_accuracy,
    difference,
    hits,
    score,
    token_identity_answers,
)
from sparsight.evaluation.features.site_map import Control
from sparsight.evaluation.reading import Predicts, StoredActivations
from sparsight.evaluation.record import Estimate
from sparsight.models import Site

NEURONS = (1, 4, 16)


def probes_at(
    site: str, xs: Sides, examples: Examples, control: Control | None, resampling: Resampling, *, seed: int
) -> tuple[list[ProbeRecord], SiteLinearity]:
    """Every kind of probe, against control labels where that is cheap; and what the MLP finds beyond the linear one."""
    n, fit, judge = examples.n_classes, examples.fit, examples.judge
    fitted: list[tuple[str, int | None, Probe, Probe | None, bool]] = []
    for name, kind in (("difference in means", difference_in_means), ("discriminant", discriminant)):
        fooled = None if control is None else kind(xs[0], control.fit, n)
        fitted.append((name, None, kind(xs[0], fit.y, n), fooled, True))
    linear, strength = chosen_logistic(xs, examples)
    fooled_linear = None if control is None else logistic(xs[0], control.fit, n, strength=strength)
    fitted.append(("logistic", None, linear, fooled_linear, linear.converged))
    for k in NEURONS:
        if k <= xs[0].shape[1]:
            sparse = k_sparse(xs[0], fit.y, n, k)
            fitted.append(("k-sparse", k, sparse, None, sparse.probe.converged))
    network = mlp(xs[0], fit.y, n, seed=seed)
    fooled_network = None if control is None else mlp(xs[0], control.fit, n, seed=seed)
    fitted.append(("mlp", None, network, fooled_network, True))
    records = []
    for name, width, probe, fooled_probe, converged in fitted:
        found = score(probe, xs[2], judge, n)
        selectivity = None
        if fooled_probe is not None and control is not None:
            mistaken = answers(fooled_probe, xs[2])
            selectivity = difference(found, hits(mistaken, control.judge, judge.document_ids, n), resampling)
        accuracy = resampling.of(found, balanced_accuracy)
        records.append(
            ProbeRecord(probe=name, k=width, accuracy=accuracy, selectivity=selectivity, converged=converged)
        )
    both = compared(site, answers(linear, xs[2]), answers(network, xs[2]), strength, examples, resampling)
    return records, both.record


def beyond_token(xs: Sides, examples: Examples, resampling: Resampling) -> Estimate:
    """Accuracy of the discriminant minus that of one who knows the token and nothing else."""
    n, fit, judge = examples.n_classes, examples.fit, examples.judge
    guessed = hits(token_identity_answers(fit, judge, n), judge.y, judge.document_ids, n)
    return difference(score(discriminant(xs[0], fit.y, n), xs[2], judge, n), guessed, resampling)


def heldout_types(xs: Sides, examples: Examples, resampling: Resampling, *, seed: int) -> HeldOutTypes:
    """A linear probe judged on token types that it was not fitted on, and one for control labels beside it.

    Raises:
        UndefinedMetric: a class has a single token type, or none on one side.
    """
    n, fit, judge = examples.n_classes, examples.fit, examples.judge
    held = type_folds(torch.cat([fit.token_ids, judge.token_ids]), torch.cat([fit.y, judge.y]), n, seed=seed)
    seen, unseen = ~held[: len(fit)], held[len(fit) :]
    if len(torch.unique(judge.y[unseen])) < n:
        raise UndefinedMetric("a class has no token of a held-out type among the tokens judged on")
    ids = judge.document_ids[unseen]
    probe = logistic(xs[0][seen], fit.y[seen], n)
    found = hits(probe.scores(xs[2][unseen]).argmax(dim=1), judge.y[unseen], ids, n)
    chance = None
    try:
        both = torch.cat([fit.token_ids[seen], judge.token_ids[unseen]])
        drawn = control_labels(both, torch.cat([fit.y[seen], judge.y[unseen]]), n, seed=seed)
        fooled = logistic(xs[0][seen], drawn[: int(seen.sum())], n).scores(xs[2][unseen]).argmax(dim=1)
        chance = resampling.of(hits(fooled, drawn[int(seen.sum()) :], ids, n), balanced_accuracy)
    except UndefinedMetric:
        pass  # the draw left a class without a type: the accuracy stands beside one over the classes
    accuracy = resampling.of(found, balanced_accuracy)
    return HeldOutTypes(accuracy=accuracy, control=chance, n_types=len(torch.unique(judge.token_ids[unseen])))


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Class means of the training documents, and their products with other documents' means."""

    means: ClassMeans
    halves: Products
    judged: Products
    held: ClassMeans
    values: Tensor

    @staticmethod
    def of(xs: Sides, e: Examples) -> "Arrangement":
        """From the activations of all examples.

        Raises:
            UndefinedMetric: no stratum has two classes on both sides.
        """
        n, s = e.n_classes, e.n_strata
        _, y, strata = joined(e)
        means = ClassMeans.of(torch.cat(xs[:2]), y, strata, n, s)
        half = ClassMeans.of(xs[0], e.fit.y, e.fit.strata, n, s)
        halves = Products.of(half, xs[1], e.choose.y, e.choose.strata, e.choose.document_ids)
        judged = Products.of(means, xs[2], e.judge.y, e.judge.strata, e.judge.document_ids)
        held = ClassMeans.of(xs[2], e.judge.y, e.judge.strata, n, s)
        return Arrangement(means, halves, judged, held, torch.tensor(e.kept, dtype=torch.float64))


def geometry_of(
    arrangement: Arrangement, e: Examples, x: Float[Tensor, "n d"], given: str | None, resampling: Resampling
) -> GeometryRecord:
    """The shape of the classes, and how much of the variance lies between them."""
    gram = arrangement.judged.centred_gram(arrangement.judged.whole)
    variance = x.double().var(dim=0, unbiased=False).sum()
    return geometry(
        arrangement.halves,
        arrangement.judged,
        e.feature.kind,
        values=arrangement.values,
        period=float(len(e.feature.classes)),
        share_of_variance=float(gram.diagonal().mean() / variance),
        given=given,
        shared=shared_between_strata(arrangement.means, arrangement.held),
        resampling=resampling,
    )


def dimension_of(
    arrangement: Arrangement | None,
    xs: Sides,
    e: Examples,
    mediated: MediationRecord | None,
    resampling: Resampling,
) -> DimensionRecord:
    """Dimensions by spread, by erasure and by effect."""
    participation = None
    if arrangement is not None:
        try:
            participation = participation_ratio(arrangement.judged.centred_gram(arrangement.judged.whole))
        except UndefinedMetric:
            participation = None
    _, y, _ = joined(e)
    correlations = heldout_correlations(Leace.of(torch.cat(xs[:2]), y), xs[2], e.judge, e.n_classes, resampling)
    rank = None
    if mediated is not None:
        rank = next((r.rank for r in mediated.ranks if r.fraction.value >= ENOUGH), None)
    return DimensionRecord(
        participation=participation,
        leace_rank=leading(correlations),
        correlations=correlations,
        mediated_rank=rank,
    )


def mediation_of(
    exchange: Exchange, arrangement: Arrangement, xs: Sides, e: Examples, resampling: Resampling, *, seed: int
) -> MediationRecord:
    """Exchange the representation.

    Raises:
        UndefinedMetric: exchanging the whole activation has no effect.
    """
    _, _, strata = joined(e)
    return mediation(exchange, arrangement.means, torch.cat(xs[:2]), strata, resampling, seed=seed)[0]


def moves_of(
    lm: Predicts,
    texts: StoredTexts,
    site: Site,
    arrangement: Arrangement,
    family: str,
    e: Examples,
    resampling: Resampling,
    *,
    seed: int,
) -> MoveRecord:
    """Move the class along its shape.

    Raises:
        UndefinedMetric: means do not differ, or the next token does not tell the class.
    """
    if family == "none":
        raise UndefinedMetric("the means of the classes do not differ: there is nothing to move along")
    places = places_of(family, arrangement.halves, arrangement.values)
    return moves(lm, _speakers(texts, e, seed), site, arrangement.means, places, resampling, seed=seed)


def moves_within(
    lm: Predicts,
    texts: StoredTexts,
    store: StoredActivations,
    site: Site,
    feature: Labelled,
    given: Labelled,
    documents: Documents,
    resampling: Resampling,
    *,
    seed: int,
) -> MoveRecord:
    """Move the class by the class means of each class of another feature.

    Raises:
        UndefinedMetric: the next token does not tell the class.
    """
    e = examples_of(feature, documents, given=given, sizes=SIZES, seed=seed)
    rows, y, strata = joined(e)
    means = ClassMeans.of(store.rows(site, rows), y, strata, e.n_classes, e.n_strata)
    own = torch.arange(e.n_classes)
    places = Places("class means", torch.eye(e.n_classes, dtype=torch.float64), own)
    return moves(lm, _speakers(texts, e, seed), site, means, places, resampling, seed=seed)


def _speakers(texts: StoredTexts, e: Examples, seed: int) -> Speakers:
    number = torch.full((len(e.feature.classes) + 1,), -1)  # the last is that of tokens without a class
    number[list(e.kept)] = torch.arange(e.n_classes)
    told = next_tokens(texts, e.fit, e.n_classes, e.n_strata)
    return Speakers.of(texts, e.judge, number[e.feature.labels], told, seed=seed)


def rotation_of(
    lm: Predicts,
    texts: StoredTexts,
    site: Site,
    arrangement: Arrangement,
    xs: Sides,
    e: Examples,
    resampling: Resampling,
    *,
    seed: int,
) -> RotationRecord:
    """Turn the circles that training documents speak for.

    Raises:
        UndefinedMetric: no circle was found, classes are missing, or the answer cannot be read from the next token.
    """
    n = float(len(e.feature.classes))
    periods = circles_of(arrangement.halves, arrangement.values, n)
    if not periods:
        raise UndefinedMetric("no circle was found to turn")
    if e.n_classes < len(e.feature.classes):
        raise UndefinedMetric("classes are missing, so that some steps have no answer")
    prompts = Prompts.of(texts, e.judge, next_answers(texts, e.fit, e.n_classes, e.n_strata), N_PROMPTS, seed)
    _, y, strata = joined(e)
    harmonics = candidate_periods("cyclic", e.n_classes, n)
    return rotation(
        lm, prompts, site, torch.cat(xs[:2]), y, strata, periods, resampling, harmonics=harmonics, seed=seed + 1
    )


def circle_points(arrangement: Arrangement, e: Examples, period: float) -> list[tuple[str, float, float]]:
    """Held-out class means of each stratum in the plane of its circle: name, cosine, sine, in units of the radius."""
    design = circle_design(arrangement.values, period)
    design = design - design.mean(dim=0)
    points = []
    for means, held in zip(arrangement.means.means, arrangement.held.means, strict=True):
        effects = torch.linalg.lstsq(design, means, driver="gelsd").solution
        where = held @ torch.linalg.pinv(effects)
        for c, (x, y) in enumerate(where.tolist()):
            points.append((e.feature.classes[e.kept[c]], x, y))
    return points
