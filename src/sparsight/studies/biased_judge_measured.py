"""One seed of SHIFT on the organism: worst-group accuracy for every judge and baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations import ActivationStore, harvest
from sparsight.circuits import NeuronNodes
from sparsight.circuits.shift import (
    Accuracies,
    DisambiguatedJudge,
    LabelJudge,
    LabelledTexts,
    accuracies,
    fit_classifier,
    organism_biographies,
)
from sparsight.circuits.shift.baselines import erasing, text_eraser, without_words, word_eraser
from sparsight.circuits.shift.classifier import Chosen, Intervention, pooled_activations
from sparsight.circuits.shift.evidence import read
from sparsight.circuits.shift.grammar import gendered_words, profession_words
from sparsight.circuits.shift.hypotheses import Hypotheses, hypotheses
from sparsight.circuits.shift.judges import chosen_by, matched_random
from sparsight.circuits.shift.removal import ablation, keeping
from sparsight.circuits.shift.shift import Found, active_nodes, find, fitted_anew, only_sites, remove
from sparsight.dictionaries import AbstractDictionary, TopK
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.studies.subject import CORPUS_SEED
from sparsight.studies.work import Work
from sparsight.training import Training, train

READS = Site(2, "resid_post")
EMBED = Site(None, "embed")
SITES = (EMBED, Site(0, "resid_post"), Site(1, "resid_post"), READS)

# Arms in the order of the table. "SHIFT" alone: judged by the labels of the biased texts, unclear nodes kept.
ORIGINAL, ABLATED, SHIFT, SHIFT_ALL = "original", "SHIFT, not fitted anew", "SHIFT", "SHIFT, unclear removed"
DECIDED, RANDOM, NEURONS = "SHIFT, judged with deciding data", "random latents", "neurons, judged alike"
EMBEDDED, LATER = "SHIFT, embedding latents only", "SHIFT, later latents only"
ERASED_BIASED, ERASED_WORDS = "LEACE, labels of the biased texts", "LEACE, which words are gendered"
ERASED_BALANCED, DELETED, ORACLE = "LEACE, deciding labels", "names and pronouns deleted", "oracle: balanced texts"
NAMED = "words of professions alone"
# Nothing passes but latents judged to serve the task; at the embeddings, and at the site that is read.
SERVING, SERVING_LATE = "SHIFT, serving latents alone, embedding", "SHIFT, serving latents alone, site read"
ARMS = (
    ORIGINAL, ABLATED, SHIFT, SHIFT_ALL, DECIDED, RANDOM, NEURONS, EMBEDDED, LATER, SERVING, SERVING_LATE,
    ERASED_BIASED, ERASED_WORDS, DELETED, NAMED, ERASED_BALANCED, ORACLE,
)  # fmt: skip


# Share of its value that a latent must have on words of a profession where nothing else passes: one that fires on names
# as well is enough to bring gender back.
STRICT = 0.95


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    n_biased: int
    n_test: int
    n_judged: int
    n_stored: int
    n_trained: int
    n_latents: int


FULL = Plan(5, 200, 200, 400, 150_000, 300_000, 1024)
FAST = Plan(2, 60, 60, 20, 12_000, 24_000, 256)


def dictionaries(work: Work, plan: Plan) -> dict[Site, AbstractDictionary]:
    """One TopK dictionary for each site, trained on the organism's whole mixture of texts, not on biographies alone."""
    lm = load_model("organism", device=work.options.device)
    store: ActivationStore | None = None
    made = {}
    for site in SITES:
        out = work.scratch(f"dictionary-{site}")
        if store is None:
            documents = (d for start in count(0, 1000) for d in organism.corpus(CORPUS_SEED, 1000, start=start))
            folder = work.scratch("activations")
            store = harvest(lm, documents, list(SITES), folder, n_tokens=plan.n_stored, resume=True,
                            progress=work.progress)  # fmt: skip
        work.say(f"dictionary at {site}")
        config = TopK(plan.n_latents, k=16, dead_after=20_000)
        training = Training(n_tokens=plan.n_trained, batch_size=1024, lr=2e-3, seed=work.options.seed)
        made[site] = train(store, [config], training, out=out, site=site, resume=True)[0].dictionary
    return made


@dataclass(frozen=True)
class Texts:
    """Of one seed: for fitting, with gender and profession independent, for scoring, and more like the first."""

    biased: LabelledTexts
    deciding: LabelledTexts
    test: LabelledTexts
    biased_test: LabelledTexts

    @staticmethod
    def of(plan: Plan, seed: int) -> "Texts":
        return Texts(
            organism_biographies(plan.n_biased, seed=seed, spurious=True),
            organism_biographies(plan.n_biased, seed=seed + 1, spurious=False),
            organism_biographies(plan.n_test, seed=seed + 2, spurious=False, heldout=True),
            organism_biographies(plan.n_test, seed=seed + 4, spurious=True, heldout=True),
        )


def one_seed(work: Work, plan: Plan, made: Mapping[Site, AbstractDictionary], s: int) -> dict[str, Any]:
    """Accuracies of every arm on texts of one seed, and what the biased texts leave undecided."""
    lm = load_model("organism", device=work.options.device)
    seed = 10_000 * work.options.seed + 10 * s + 2  # seeds 0 and 1 are the organism's and the dictionaries' texts
    texts = Texts.of(plan, seed)
    found = find(lm, dict(made), texts.biased, site=READS, n_judged=plan.n_judged, exact=False)
    judgements = found.judged_by(LabelJudge())
    removed, unclear = chosen_by(judgements, "remove"), chosen_by(judgements, "remove", "unclear")
    decided = DisambiguatedJudge.of(read(lm, found.nodes, texts.deciding, found.candidates))
    by_data = chosen_by(found.judged_by(decided), "remove")
    arms: dict[str, Accuracies] = {ORIGINAL: accuracies(found.classifier, texts.test)}
    arms[ABLATED], arms[SHIFT] = _removed(found, removed, texts.test)
    arms[SHIFT_ALL] = _removed(found, unclear, texts.test)[1]
    arms[DECIDED] = _removed(found, by_data, texts.test)[1]
    arms[RANDOM] = _removed(found, matched_random(removed, active_nodes(found), seed=seed + 3), texts.test)[1]
    arms[EMBEDDED] = _removed(found, only_sites(removed, [EMBED]), texts.test)[1]
    arms[LATER] = _removed(found, only_sites(removed, SITES[1:]), texts.test)[1]
    arms[NEURONS] = _neurons(lm, texts, plan)
    arms |= _baselines(lm, texts)
    traces = {
        "nothing": _traces(found, {}, texts.deciding),
        SHIFT: _traces(found, removed, texts.deciding),
        SHIFT_ALL: _traces(found, unclear, texts.deciding),
        DECIDED: _traces(found, by_data, texts.deciding),
    }
    serving = {}
    for arm, site in ((SERVING, EMBED), (SERVING_LATE, READS)):
        arms[arm], serving[arm] = _serving(lm, site, made[site], texts)
        traces[arm] = serving[arm].pop("traces")
    locked = read(lm, found.nodes, texts.test, found.candidates)
    readings = hypotheses(found.readings, locked)
    return {
        "arms": {name: arms[name].model_dump() for name in ARMS},
        "judged": {v: sum(j.verdict == v for j in judgements) for v in ("keep", "remove", "unclear")},
        "agreement": _agreement(removed, unclear, by_data),
        "undecided": _undecided(readings),
        "examples": [str(h) + f" (there: {h.truth})" for h in readings if not h.decided and h.truth][:6],
        "traces": traces,
        "serving": serving,
        "error_share": {str(site): abs(found.effects.errors[site]) / max(
            abs(found.effects.errors[site]) + abs(float(v.sum())), 1e-12) for site, v in found.effects.support.items()},
    }  # fmt: skip


def _serving(
    lm: LanguageModel, site: Site, dictionary: AbstractDictionary, texts: Texts
) -> tuple[Accuracies, dict[str, Any]]:
    """Only latents judged to serve the task pass a site: no other, none that was not judged, and no error.

    The accuracy on more biased texts says, before any other text is seen, how much of the task they still carry: where
    nothing else passes, it can come from nowhere else.
    """
    found = find(
        lm, {site: dictionary}, texts.biased, site=READS, n_judged=dictionary.n_latents, exact=False,
        ranked_by="magnitude",
    )  # fmt: skip
    judgements = found.judged_by(LabelJudge(majority=STRICT))
    kept = chosen_by(judgements, "keep")
    intervention = keeping(found.nodes, kept)
    _, accuracy, again = fitted_anew(found, intervention, texts.test)
    carried = accuracies(again, texts.biased_test, intervention)
    facts = {
        "judged": len(judgements),
        "kept": sum(map(len, kept.values())),
        "biased accuracy": carried.accuracy,
        "traces": _halves(pooled_activations(lm, READS, texts.deciding.texts, intervention), texts.deciding),
    }
    return accuracy, facts


def _traces(found: Found, chosen: Chosen, deciding: LabelledTexts) -> list[float]:
    intervention = ablation(found.nodes, chosen)
    return _halves(pooled_activations(found.classifier.lm, READS, deciding.texts, intervention), deciding)


def _halves(x: Float[Tensor, "n d"], texts: LabelledTexts) -> list[float]:
    """Half the distance between the mean activations of either class, for the profession and for the gender.

    Each is taken at equal shares of the other, by least squares.
    """
    signs = [2.0 * labels.double() - 1 for labels in (texts.target_labels, texts.spurious_labels)]
    design = torch.stack([torch.ones(len(x), dtype=torch.float64), *signs], dim=1)
    found = torch.linalg.lstsq(design, x.double()).solution
    return [float(found[1].norm()), float(found[2].norm())]


def _removed(found: Found, chosen: Chosen, test: LabelledTexts) -> tuple[Accuracies, Accuracies]:
    """Accuracies with nodes removed, before and after fitting anew; those of the original where there is none."""
    if not any(len(latents) for latents in chosen.values()):
        original = accuracies(found.classifier, test)
        return original, original
    return remove(found, chosen, test)


def _neurons(lm: LanguageModel, texts: Texts, plan: Plan) -> Accuracies:
    """The same with the MLPs' neurons before the site that is read, as many of them judged."""
    nodes = {s: NeuronNodes(s, lm.width(s)) for s in (Site(layer, "mlp_act") for layer in range(3))}
    found = find(lm, dict(nodes), texts.biased, site=READS, n_judged=plan.n_judged, exact=False)
    return _removed(found, chosen_by(found.judged_by(LabelJudge()), "remove"), texts.test)[1]


def _baselines(lm: LanguageModel, texts: Texts) -> dict[str, Accuracies]:
    biased, test = texts.biased, texts.test
    erasers: dict[str, Intervention] = {
        ERASED_BIASED: erasing(text_eraser(lm, READS, biased), READS),
        ERASED_WORDS: erasing(word_eraser(lm, EMBED, biased), EMBED),
        ERASED_BALANCED: erasing(text_eraser(lm, READS, texts.deciding), READS),
    }
    found = {
        name: accuracies(fit_classifier(lm, READS, biased, eraser), test, eraser) for name, eraser in erasers.items()
    }
    used = {word for each in (biased, test) for text in each.texts for word in text.split()}
    for name, gone in ((DELETED, gendered_words(biased)), (NAMED, used - profession_words())):
        found[name] = accuracies(fit_classifier(lm, READS, without_words(biased, gone)), without_words(test, gone))
    found[ORACLE] = accuracies(fit_classifier(lm, READS, texts.deciding), test)
    return found


def _agreement(removed: Chosen, unclear: Chosen, by_data: Chosen) -> dict[str, int]:
    """How often the judge of the biased texts and the deciding data say the same."""

    def flat(chosen: Chosen) -> set[tuple[str, int]]:
        return {(str(site), latent) for site, latents in chosen.items() for latent in latents}

    mine, both, data = flat(removed), flat(unclear), flat(by_data)
    return {
        "removed by both": len(mine & data),
        "removed by labels alone": len(mine - data),
        "unclear, to go by the data": len((both - mine) & data),
        "unclear, to stay by the data": len((both - mine) - data),
        "kept by labels, to go by the data": len(data - both),
    }


def _undecided(readings: list[Hypotheses]) -> dict[str, int]:
    """Judged nodes by what the biased texts leave open, and by the truth where that was so."""
    still = [h for h in readings if not h.decided]
    truths = ("fires on its words, whatever the rest", "only with the target", "only with the spurious feature",
              "only with both")  # fmt: skip
    return {
        "judged": len(readings),
        "words or context open": sum(h.n_word_or_context == 0 for h in readings),
        "target or spurious open": sum(h.n_target_or_spurious == 0 for h in readings),
        "undecided": len(still),
        **{f"undecided, {truth}": sum(h.truth == truth for h in still) for truth in truths},
        "undecided, unknown": sum(h.truth is None for h in still),
    }
