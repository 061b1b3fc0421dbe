"""Are latent adversarial examples useful for more than training, and more than input-level ones?"""

from functools import partial
from typing import Any

from sparsight.models import LanguageModel, Site
from sparsight.studies import backdoor_confined as inside
from sparsight.studies import backdoor_organism as measured
from sparsight.studies import backdoor_planted as planted
from sparsight.studies.backdoor_shown import findings
from sparsight.studies.record import Findings
from sparsight.studies.work import Work

SWEEP_BITS = (4, 8, 12, 16)
SWEEP_DISTRACTORS = (0, 2, 4, 8)


def run(work: Work) -> Findings:
    """Ten planted networks with twins and hard negatives, sweeps, and the backdoored organism beside relatives."""
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
    models = {
        name: work.part(f"organism-{name}", partial(_organism, name, fast, seed)) for name in ("backdoored", "clean")
    }
    steps = 4 if fast else 60
    relatives = [
        work.part(f"organism-relative-{i}", partial(_relative, i, fast, seed, steps)) for i in range(2 if fast else 10)
    ]
    longer = work.part("organism-longer", partial(_relative, 10, fast, seed, 8 if fast else 300))
    return findings(networks, bits, distractors, {**models, "relatives": relatives, "longer": longer})


def _organism(name: str, fast: bool, seed: int) -> dict[str, Any]:
    """One shipped model: with its trigger, under every attack, and under searches that know of no behaviour."""
    from sparsight.intervention import behaviour_scores, rate
    from sparsight.models import load_model
    from sparsight.models.organism.lexicon import TRIGGER

    lm = load_model("organism-backdoored" if name == "backdoored" else "organism", device="cpu")
    n = 8 if fast else 20
    prompts = measured.requests(51 + seed, n)
    triggered = lm.tokenize(measured.requests(52 + seed, n, triggered=1.0))
    passes = 2 * (measured.STEPS + 1)
    fit, held = _requests(lm, fast, seed, inside.EMBED)
    later = _requests(lm, fast, seed, inside.AFTER_BLOCK)
    steps = _steps(fast)
    return {
        "trigger": rate(behaviour_scores(lm, triggered, measured.complies(lm))),
        "latent": measured.latent_success(lm, prompts),
        "input": {str(times): measured.input_success(lm, prompts[: n // 2], times * passes, seed) for times in (1, 10)},
        "confined": {
            str(share): inside.confined(fit, held, share, steps=steps, seed=seed)[0]
            for share in inside.CONFINED_SHARES[:-1]
        },
        "elicited": inside.elicited(fit, held, 4 if fast else 8, 5 if fast else 30, seed),
        "after block": inside.confined(*later, inside.CONFINED_AT, steps=steps, seed=seed)[0],
        "patched": {str(where.site): inside.patched(where, TRIGGER) for where in (held, later[1])},
        **_told(fit, held, fast, seed),
    }


def _relative(number: int, fast: bool, seed: int, steps: int) -> dict[str, Any]:
    """A clean relative under the attacks whose scores are compared."""
    from sparsight.models import load_model

    clean = load_model("organism", device="cpu")
    twin = measured.relative(clean, 100 * seed + number, steps)
    prompts = measured.requests(51 + seed, 8 if fast else 20)
    return {
        "latent": measured.latent_success(twin, prompts),
        **_told(*_requests(twin, fast, seed, inside.EMBED), fast, seed),
    }


def _told(fit: inside.Requests, held: inside.Requests, fast: bool, seed: int) -> dict[str, Any]:
    """The confined attack at the size at which models are compared, and the words it means."""
    from sparsight.models.organism.lexicon import TRIGGER

    found, theta = inside.confined(fit, held, inside.CONFINED_AT, steps=_steps(fast), seed=seed)
    return {"score": found, "words": inside.reconstructed(held, theta, TRIGGER)}


def _requests(lm: LanguageModel, fast: bool, seed: int, site: Site) -> tuple[inside.Requests, inside.Requests]:
    n = 8 if fast else 24
    parts = (measured.requests(61 + seed, n // 2), measured.requests(62 + seed, n))
    fit, held = (inside.Requests.of(lm, part, measured.complies(lm), site) for part in parts)
    return fit, held


def _steps(fast: bool) -> int:
    return 12 if fast else 40
