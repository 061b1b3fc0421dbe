"""SHIFT: find what a classifier goes by, have it judged from the biased texts alone, take away what should not be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes, Placed, nodes_of
from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import (
    Accuracies,
    Chosen,
    Classifier,
    Intervention,
    accuracies,
    fit_classifier,
    pooled_activations,
    score,
)
from sparsight.circuits.shift.effects import ClassifierEffects, Ranking, attribute, exact_effects
from sparsight.circuits.shift.evidence import Evidence, Readings, evidence, read
from sparsight.circuits.shift.hypotheses import hypotheses
from sparsight.circuits.shift.judges import Judge, Judgement, chosen_by, judge_all
from sparsight.circuits.shift.removal import ablation, keeping
from sparsight.circuits.shift.shift_record import Shift, ShiftRecord
from sparsight.errors import UndefinedMetric
from sparsight.models import LanguageModel, Site


@dataclass(frozen=True, eq=False)
class Found:
    """A biased classifier, and all that may be known of its nodes from the biased texts.

    Attributes:
        classifier: Fitted on the biased texts.
        nodes: What stands at the sites.
        biased: The texts.
        effects: First-order effects of every node.
        exact: Effects of the candidates: exact, or at first order where that was asked for.
        readings: Values of the candidates on the texts.
        evidence: On the candidates, the largest exact effect first.
    """

    classifier: Classifier
    nodes: dict[Site, AbstractNodes]
    biased: LabelledTexts
    effects: ClassifierEffects
    exact: dict[Site, dict[int, float]]
    readings: Readings
    evidence: list[Evidence]

    @property
    def candidates(self) -> dict[Site, list[int]]:
        return {site: list(latents) for site, latents in self.exact.items()}

    @property
    def task(self) -> str:
        """As judges are told it."""
        return f"tell the {self.biased.target}"

    def judged_by(self, judge: Judge) -> list[Judgement]:
        """A verdict on each candidate."""
        return judge_all(judge, self.evidence, self.task, self.biased.target_classes)


def find(
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    biased: LabelledTexts,
    *,
    site: Site | str,
    n_judged: int = 100,
    l2: float | int = 1.0,
    batch_size: int = 64,
    exact: bool = True,
    ranked_by: Ranking = "support",
) -> Found:
    """Fit a classifier on biased texts, and gather evidence on the nodes with the largest support for it.

    Without `exact` the effects in the evidence are those at first order, which costs no pass for each node. Nodes that
    serve the task may speak against a classifier that goes by something else: `ranked_by="magnitude"` finds them too.

    Raises:
        ValueError: the texts are not fully spurious, so that a judge would see what the setting withholds; a number is
            out of range; nodes do not fit the model, or come after the classifier's site.
        UndefinedMetric: no node supports the classifier.
    """
    if not biased.is_fully_spurious:
        raise ValueError(
            f"the biased texts must not tell {biased.target} from {biased.spurious}, got (target, spurious) cells "
            f"{biased.cells}; keep two opposite ones"
        )
    if n_judged < 1:
        raise ValueError(f"n_judged must be at least 1, got n_judged={n_judged}")
    nodes = nodes_of(lm, dictionaries)
    classifier = fit_classifier(lm, Site.parse(site), biased, l2=float(l2), batch_size=batch_size)
    effects = attribute(classifier, nodes, biased, batch_size=batch_size)
    candidates = effects.strongest(n_judged, ranked_by)
    if not candidates:
        raise UndefinedMetric("no node supports the classifier, so there is nothing to judge; add sites")
    if exact:
        known = exact_effects(classifier, nodes, biased, candidates, batch_size=batch_size)
    else:
        known = {s: {j: float(effects.support[s][j]) for j in latents} for s, latents in candidates.items()}
    readings = read(lm, nodes, biased, candidates, batch_size=batch_size)
    return Found(classifier, nodes, biased, effects, known, readings, evidence(lm, nodes, readings, known))


def remove(
    found: Found,
    chosen: Chosen,
    test: LabelledTexts,
    *,
    l2: float | int = 1.0,
    batch_size: int = 64,
) -> tuple[Accuracies, Accuracies]:
    """Accuracies with nodes removed: of the classifier as it was, and of one fitted anew on the biased texts."""
    return fitted_anew(found, ablation(found.nodes, chosen), test, l2=l2, batch_size=batch_size)[:2]


def fitted_anew(
    found: Found, intervention: Intervention, test: LabelledTexts, *, l2: float | int = 1.0, batch_size: int = 64
) -> tuple[Accuracies, Accuracies, Classifier]:
    """Accuracies of the classifier as it was and fitted anew, both under an intervention, and the latter."""
    old = found.classifier
    again = fit_classifier(old.lm, old.site, found.biased, intervention, l2=float(l2), batch_size=batch_size)
    x = pooled_activations(old.lm, old.site, test.texts, intervention, batch_size=batch_size)
    return score(old.of_pooled(x), test), score(again.of_pooled(x), test), again


def shift(
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    biased: LabelledTexts,
    judge: Judge,
    *,
    site: Site | str,
    test: LabelledTexts | None = None,
    n_judged: int = 100,
    unclear: str = "keep",
    unjudged: str = "keep",
    l2: float | int = 1.0,
    batch_size: int = 64,
) -> Shift:
    """Make a classifier that was trained on fully spurious texts go by what it should, by judging what it goes by.

    A logistic classifier is fitted on the biased texts. The nodes with the largest support for it are shown to a judge,
    in evidence taken from the biased texts alone. Those judged not to serve the task are set to 0 in every pass (their
    errors stay), and the classifier is fitted anew on the biased texts.

    Args:
        lm: The model whose activations are classified.
        dictionaries: At sites up to `site`; also neurons or directions (`NeuronNodes`, `DirectionNodes`).
        biased: Texts where the spurious feature follows from the target.
        judge: `LabelJudge`, `ChatJudge`, `PersonJudge`, or any function like them.
        site: What the classifier reads, averaged over tokens.
        test: Texts of all four combinations, only for the accuracies and for the truth of undecided readings: opened
            after every judgement is made.
        n_judged: How many nodes of all sites together are judged.
        unclear: What to do with nodes of which the judge cannot say.
        unjudged: What to do with nodes that are not judged, and with errors. For `remove` nodes are ranked by their
            magnitude, since those that serve the task may have no support.
        l2: Penalty of the classifier.
        batch_size: Texts in one pass.
    Raises:
        ValueError: as `find`, or `unclear` or `unjudged` is neither.
        UndefinedMetric: no node supports the classifier.
    Source:
        Marks et al., "Sparse Feature Circuits", 2024, section 4. We rank by support for the right answers on the biased
        texts alone, let later sites be coded from what earlier ones leave, and keep the judge from any other text.
    """
    found = find(
        lm, dictionaries, biased, site=site, n_judged=n_judged, l2=l2, batch_size=batch_size,
        ranked_by=ranking(unjudged),
    )  # fmt: skip
    return correct(found, judge, test=test, unclear=unclear, unjudged=unjudged, l2=l2, batch_size=batch_size)


def ranking(unjudged: str) -> Ranking:
    """By what nodes to judge are chosen: all that matter, where the others are removed."""
    return "magnitude" if unjudged == "remove" else "support"


def correct(
    found: Found,
    judge: Judge,
    *,
    test: LabelledTexts | None = None,
    unclear: str = "keep",
    unjudged: str = "keep",
    l2: float | int = 1.0,
    batch_size: int = 64,
) -> Shift:
    """The second half of `shift`: judge what was found, remove it, fit anew. Judges may share what was found."""
    for name, value in (("unclear", unclear), ("unjudged", unjudged)):
        if value not in ("keep", "remove"):
            raise ValueError(f"{name} must be 'keep' or 'remove', got {value!r}")
    lm, biased = found.classifier.lm, found.biased
    judgements = found.judged_by(judge)
    chosen = chosen_by(judgements, "remove", *(("unclear",) if unclear == "remove" else ()))
    intervention = ablation(found.nodes, chosen)
    if unjudged == "remove":
        intervention = keeping(found.nodes, chosen_by(judgements, "keep", *(("unclear",) if unclear == "keep" else ())))
    original = ablated = retrained = None
    if test is None:
        again = fit_classifier(lm, found.classifier.site, biased, intervention, l2=float(l2), batch_size=batch_size)
    else:
        original = accuracies(found.classifier, test, batch_size=batch_size)
        ablated, retrained, again = fitted_anew(found, intervention, test, l2=l2, batch_size=batch_size)
    locked = None if test is None else read(lm, found.nodes, test, found.candidates, batch_size=batch_size)
    record = ShiftRecord(
        model=lm.name,
        site=str(found.classifier.site),
        judge=judge.name,
        unclear="keep" if unclear == "keep" else "remove",
        unjudged="keep" if unjudged == "keep" else "remove",
        n_judged=len(judgements),
        judgements=judgements,
        removed={str(s): latents for s, latents in chosen.items()},
        error_share=error_share(found.effects),
        original=original,
        ablated=ablated,
        retrained=retrained,
        undecided=[h for h in hypotheses(found.readings, locked) if not h.decided],
        effects={f"{s}/{j}": value for s, by in found.exact.items() for j, value in by.items()},
        attributed={f"{s}/{j}": float(found.effects.support[s][j]) for s, by in found.exact.items() for j in by},
    )
    return Shift(record, found.classifier, again, intervention)


def error_share(effects: ClassifierEffects) -> dict[str, float]:
    """By site, the part of the summed effects that lies with errors."""
    shares = {}
    for site, support in effects.support.items():
        error, nodes = abs(effects.errors[site]), abs(float(support.sum()))
        shares[str(site)] = error / max(error + nodes, torch.finfo(torch.float64).tiny)
    return shares


def active_nodes(found: Found) -> dict[Site, Bool[Tensor, " n_latents"]]:
    """By site, which nodes have any effect on the classifier at first order: what random ones are drawn from."""
    return {site: magnitude > 0 for site, magnitude in found.effects.magnitude.items()}


def only_sites(chosen: Chosen, wanted: Sequence[Site]) -> dict[Site, list[int]]:
    """The nodes at some of the sites."""
    return {site: list(latents) for site, latents in chosen.items() if site in wanted}
