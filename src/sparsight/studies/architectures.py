"""All architectures on one stream at one budget: is the order of their frontiers that of the literature?

The organism is always looked at; a model of the caller's own stands beside it in the same figure.
"""

from functools import partial
from typing import Any

from sparsight.studies.architectures_decided import matched, order_verdict
from sparsight.studies.architectures_measured import (
    NAMES,
    Plan,
    measured_longer,
    measured_seed,
    on_another,
    speeds,
)
from sparsight.studies.architectures_shown import Measured, panels, tables
from sparsight.studies.record import Findings
from sparsight.studies.subject import is_organism, subject
from sparsight.studies.work import Work

ORGANISM = Plan(3, (8, 16, 32), 512, 150_000, 200_000, 512, 8e-3, 2, 8_192, 2_048, 4_096, 10)
OTHER = Plan(3, (8, 16, 32), 512, 100_000, 60_000, 256, 4e-3, 0, 4_096, 512, 0, 10)
FAST = Plan(2, (8, 16), 128, 10_000, 20_000, 512, 8e-3, 0, 1_024, 256, 512, 4)


def run(work: Work) -> Findings:
    """Train, measure and put every architecture beside the others, on the organism and on the model named."""
    named = not is_organism(work)
    organism = on_another(work, "organism", ()) if named else work
    looked_at = [_measured(work, organism, organism.options.model, FAST if work.options.fast else ORGANISM)]
    if named:
        name = work.options.model.rstrip("/").rsplit("/", 1)[-1]
        inside = on_another(work, work.options.model, work.options.texts)
        looked_at.append(_measured(work, inside, name, FAST if work.options.fast else OTHER))
    return Findings(
        verdicts=[order_verdict(m.name, matched(m.seeds, m.plan.targets)) for m in looked_at],
        tables=[table for m in looked_at for table in tables(m)],
        figures=[panel for m in looked_at for panel in panels(m)],
        caption="Held-out FVU against measured L0; FVU at equal L0 as a share of ReLU's; the loss that reconstructions "
        "add, where the model has one. Points are means over seeds, whiskers their range.",
        method=_method(looked_at),
        limits=[
            "Budgets are short: a few hundred thousand tokens where published dictionaries see billions. What needs "
            "long training (thresholds, revival, annealing) is at a disadvantage.",
            "One learning rate for all, as they share one stream; Pursuit does not use it. It was chosen from "
            "2e-3, 4e-3 and 8e-3 (MiniLM: the last two) with another seed, for a few architectures. No other setting "
            "was tuned.",
            "One site of each model and one width; seeds change first values and the order of batches, "
            "not the activations.",
            "Three seeds give wide intervals: of Student's t with two degrees of freedom.",
            "Lower FVU at equal L0 does not make latents more meaningful.",
        ],
        notes=["What was found out about the differences from the reported order: docs/dictionaries.md, Frontiers."],
    )


def _measured(work: Work, inside: Work, name: str, plan: Plan) -> Measured:
    """All parts of one model; activations and dictionaries stand in the scratch folder of `inside`."""
    held: list[Any] = []

    def on() -> Any:
        if not held:
            held.append(subject(inside, n_tokens=plan.n_stored))
        return held[0]

    first = 1000 * work.options.seed
    seeds = [
        work.part(f"{name}-seed-{s}", partial(lambda seed: measured_seed(inside, on(), plan, seed), first + s))
        for s in range(plan.seeds)
    ]
    longer = work.part(f"{name}-longer", lambda: measured_longer(inside, on(), plan, first)) if plan.longer else []
    speed = work.part(f"{name}-speed", lambda: speeds(on(), plan))
    place = work.part(f"{name}-place", lambda: {"site": str(on().site), "d_in": on().lm.width(on().site)})
    return Measured(name, place["site"], place["d_in"], plan, seeds, longer, speed)


def _method(looked_at: list[Measured]) -> list[str]:
    said = [
        f"On {m.name} at {m.site} (width {m.d_in}): {m.plan.n_latents} latents, {m.plan.n_trained:,} tokens of "
        f"{m.plan.n_stored:,} stored activations, L0 {', '.join(map(str, m.plan.targets))}, {m.plan.seeds} seeds. All "
        f"{len(NAMES) * len(m.plan.targets)} dictionaries of a seed are trained on the same batches of "
        f"{m.plan.batch_size} at a rate of {m.plan.lr:g}; FVU on {m.plan.n_coded:,} tokens of documents held out."
        for m in looked_at
    ]
    return [
        *said,
        "Penalised architectures are told the L0 and find their weight; all settings but L0 are defaults. p is "
        "annealed to 0.2; Matryoshka's prefixes are an eighth, a quarter and a half. Every dictionary is measured "
        "with its own code, Pursuit's being gradient pursuit.",
        "Equal L0: each seed's frontier is read at the L0 asked for along straight lines between its points in the "
        "logarithms of L0 and FVU, at most 15 % beyond its ends.",
        "Decided by, fixed beforehand: the logarithm of the ratio of two FVU at equal L0, seed by seed, with its "
        "Student interval. A relation holds if it does at every L0: below, the interval is below 0; not above, it is "
        "below 5 %; about, it lies within 5 %. The answer is yes if all reported relations hold.",
    ]
