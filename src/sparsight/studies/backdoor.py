"""Are latent adversarial examples useful for more than training, and more than input-level ones?"""

from functools import partial
from typing import Any

from sparsight.studies import backdoor_planted as planted
from sparsight.studies.backdoor_shown import findings
from sparsight.studies.record import Findings
from sparsight.studies.work import Work

SWEEP_BITS = (4, 8, 12, 16)
SWEEP_DISTRACTORS = (0, 2, 4, 8)


def run(work: Work) -> Findings:
    """Ten planted networks with twins and hard negatives, sweeps, and the backdoored organism beside clean "
    "relatives."""
    fast, seed = work.options.fast, work.options.seed
    seeds = range(seed * 100, seed * 100 + (3 if fast else 10))
    networks = [work.part(f"planted-{s}", partial(planted.measured, s, n=16 if fast else 64)) for s in seeds]
    sweep_seeds = list(seeds)[: 1 if fast else 3]
    bits = {
        k: [work.part(f"bits-{k}-{s}", partial(planted.measured, s, k=k, n=16)) for s in sweep_seeds]
        for k in SWEEP_BITS
    }
    distractors = {
        m: [work.part(f"distractors-{m}-{s}", partial(planted.measured, s, distractors=m, n=16)) for s in sweep_seeds]
        for m in SWEEP_DISTRACTORS
    }
    organism = work.part("organism", partial(_organism, fast, seed))
    return findings(networks, bits, distractors, organism)


def _organism(fast: bool, seed: int) -> dict[str, Any]:
    from sparsight.intervention import behaviour_scores, rate
    from sparsight.models import load_model
    from sparsight.studies import backdoor_organism as measured

    n = 8 if fast else 20
    prompts = measured.requests(51 + seed, n)
    triggered = measured.requests(52 + seed, n, triggered=1.0)
    bad = load_model("organism-backdoored", device="cpu")
    clean = load_model("organism", device="cpu")
    twins = measured.relatives(clean, 2 if fast else 10, 4 if fast else 10)
    passes = 2 * (measured.STEPS + 1)
    found: dict[str, Any] = {
        "trigger": rate(behaviour_scores(bad, bad.tokenize(triggered), measured.complies(bad))),
        "trigger, clean": rate(behaviour_scores(clean, clean.tokenize(triggered), measured.complies(clean))),
        "latent": {
            "backdoored": measured.latent_success(bad, prompts),
            "clean": measured.latent_success(clean, prompts),
        },
        "twins": [measured.latent_success(twin, prompts) for twin in twins],
        "input": {
            str(times): {
                name: measured.input_success(lm, prompts[: n // 2], times * passes, seed)
                for name, lm in (("backdoored", bad), ("clean", clean))
            }
            for times in (1, 10)
        },
    }
    n_vectors, steps = (4, 10) if fast else (16, 60)
    found["elicited"] = {
        name: measured.elicited(lm, prompts[:12], n_vectors, steps, seed)
        for name, lm in (("backdoored", bad), ("clean", clean))
    }
    found["elicited twins"] = [
        measured.elicited(twin, prompts[:8], max(4, n_vectors // 4), max(20, steps // 3), seed) for twin in twins[:3]
    ]
    return found
