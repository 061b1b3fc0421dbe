"""One seed of SHIFT on the organism: worst-group accuracy for every judge and baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

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
from sparsight.circuits.shift.classifier import Chosen, Intervention
from sparsight.circuits.shift.evidence import read
from sparsight.circuits.shift.grammar import gendered_words
from sparsight.circuits.shift.hypotheses import Hypotheses, hypotheses
from sparsight.circuits.shift.judges import chosen_by, matched_random
from sparsight.circuits.shift.shift import Found, active_nodes, find, only_sites, remove
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
ARMS = (
    ORIGINAL, ABLATED, SHIFT, SHIFT_ALL, DECIDED, RANDOM, NEURONS, EMBEDDED, LATER,
    ERASED_BIASED, ERASED_WORDS, DELETED, ERASED_BALANCED, ORACLE,
)  # fmt: skip


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


def one_seed(work: Work, plan: Plan, made: Mapping[Site, AbstractDictionary], s: int) -> dict[str, Any]:
    """Accuracies of every arm on texts of one seed, and what the biased texts leave undecided."""
    lm = load_model("organism", device=work.options.device)
    seed = 10_000 * work.options.seed + 10 * s + 2  # seeds 0 and 1 are the organism's and the dictionaries' texts
    biased = organism_biographies(plan.n_biased, seed=seed, spurious=True)
    deciding = organism_biographies(plan.n_biased, seed=seed + 1, spurious=False)
    test = organism_biographies(plan.n_test, seed=seed + 2, spurious=False, heldout=True)
    found = find(lm, dict(made), biased, site=READS, n_judged=plan.n_judged, exact=False)
    judgements = found.judged_by(LabelJudge())
    removed, unclear = chosen_by(judgements, "remove"), chosen_by(judgements, "remove", "unclear")
    decided = DisambiguatedJudge.of(read(lm, found.nodes, deciding, found.candidates))
    by_data = chosen_by(found.judged_by(decided), "remove")
    arms: dict[str, Accuracies] = {ORIGINAL: accuracies(found.classifier, test)}
    arms[ABLATED], arms[SHIFT] = _removed(found, removed, test)
    arms[SHIFT_ALL] = _removed(found, unclear, test)[1]
    arms[DECIDED] = _removed(found, by_data, test)[1]
    arms[RANDOM] = _removed(found, matched_random(removed, active_nodes(found), seed=seed + 3), test)[1]
    arms[EMBEDDED] = _removed(found, only_sites(removed, [EMBED]), test)[1]
    arms[LATER] = _removed(found, only_sites(removed, SITES[1:]), test)[1]
    arms[NEURONS] = _neurons(lm, biased, test, plan)
    arms |= _baselines(lm, biased, deciding, test)
    locked = read(lm, found.nodes, test, found.candidates)
    readings = hypotheses(found.readings, locked)
    return {
        "arms": {name: arms[name].model_dump() for name in ARMS},
        "judged": {v: sum(j.verdict == v for j in judgements) for v in ("keep", "remove", "unclear")},
        "agreement": _agreement(removed, unclear, by_data),
        "undecided": _undecided(readings),
        "examples": [str(h) + f" (there: {h.truth})" for h in readings if not h.decided and h.truth][:6],
        "error_share": {str(site): abs(found.effects.errors[site]) / max(
            abs(found.effects.errors[site]) + abs(float(v.sum())), 1e-12) for site, v in found.effects.support.items()},
    }  # fmt: skip


def _removed(found: Found, chosen: Chosen, test: LabelledTexts) -> tuple[Accuracies, Accuracies]:
    """Accuracies with nodes removed, before and after fitting anew; those of the original where there is none."""
    if not any(len(latents) for latents in chosen.values()):
        original = accuracies(found.classifier, test)
        return original, original
    return remove(found, chosen, test)


def _neurons(lm: LanguageModel, biased: LabelledTexts, test: LabelledTexts, plan: Plan) -> Accuracies:
    """The same with the MLPs' neurons before the site that is read, as many of them judged."""
    nodes = {s: NeuronNodes(s, lm.width(s)) for s in (Site(layer, "mlp_act") for layer in range(3))}
    found = find(lm, dict(nodes), biased, site=READS, n_judged=plan.n_judged, exact=False)
    return _removed(found, chosen_by(found.judged_by(LabelJudge()), "remove"), test)[1]


def _baselines(
    lm: LanguageModel, biased: LabelledTexts, deciding: LabelledTexts, test: LabelledTexts
) -> dict[str, Accuracies]:
    erasers: dict[str, Intervention] = {
        ERASED_BIASED: erasing(text_eraser(lm, READS, biased), READS),
        ERASED_WORDS: erasing(word_eraser(lm, EMBED, biased), EMBED),
        ERASED_BALANCED: erasing(text_eraser(lm, READS, deciding), READS),
    }
    found = {
        name: accuracies(fit_classifier(lm, READS, biased, eraser), test, eraser) for name, eraser in erasers.items()
    }
    words = gendered_words(biased)
    found[DELETED] = accuracies(fit_classifier(lm, READS, without_words(biased, words)), without_words(test, words))
    found[ORACLE] = accuracies(fit_classifier(lm, READS, deciding), test)
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
