"""Do integrated gradients handle the discontinuities of gates, and how badly does attribution patching do?"""

from functools import partial
from typing import Any

from sparsight.studies.deciding import power_note
from sparsight.studies.gradients_under_gates_measured import (
    ARCHITECTURES,
    CHANGED,
    FAST,
    FULL,
    LENGTH,
    WIDTHS,
    Plan,
    Prepared,
    measured,
    one_gate,
    planted,
)
from sparsight.studies.gradients_under_gates_shown import (
    gate_panel,
    node_table,
    planted_table,
    regime_panel,
    remainder_table,
    smoothed_panel,
)
from sparsight.studies.record import UNDECIDED, Effect, Findings, Verdict
from sparsight.studies.work import Work

HANDLED = 0.05  # a remainder of less than this share of the total counts as handled


def run(work: Work) -> Findings:
    """Remainders of completeness and node effects beside exact patching, in both regimes."""
    plan = FAST if work.options.fast else FULL
    gate = work.part("one-gate", partial(one_gate, [*range(1, 41), 100, 200, 1000]))
    known = work.part("planted", partial(planted, plan, work.options.seed))
    made: dict[str, Prepared] = {}
    found = {name: work.part(f"trained-{name}", partial(measured, work, plan, name, made)) for name in ARCHITECTURES}
    return Findings(
        verdicts=[
            _verdict(
                "Do integrated gradients account for what happens when gates flip on the path (dictionaries stand in "
                "the model, errors dropped)?",
                [_last(found[name], "dropped", plan, name) for name in ARCHITECTURES],
                "With {n} midpoints of plain autograd the part of the total that effects leave out",
            ),
            _verdict(
                "And where jumps are counted?",
                [_counted(found[name], plan, name) for name in ARCHITECTURES],
                "With jumps counted, the part left out",
            ),
            _verdict(
                "Are integrated gradients right in the regime of published node effects (one site changed, the model "
                "behind it as it is)?",
                [_at(found[name]["kept"]["midpoint"], 10, plan, name) for name in ARCHITECTURES],
                "With ten midpoints the part left out",
            ),
            _verdict(
                "Is attribution patching near exact patching there, node by node?",
                [_node(found[name], "kept", "attribution", plan, name) for name in ARCHITECTURES],
                "The error of attribution, `sum |effect - exact| / sum |exact|` over latents,",
            ),
            _verdict(
                "Is it where gates are on the path?",
                [_node(found[name], "dropped", "attribution", plan, name) for name in ARCHITECTURES],
                "The same with errors dropped",
            ),
        ],
        tables=[remainder_table(found), node_table(found), planted_table(known, plan)],
        figures=[
            gate_panel(gate),
            regime_panel(found, "kept", "smooth path: errors kept"),
            regime_panel(found, "dropped", "gated path: errors dropped"),
            smoothed_panel(found),
        ],
        caption="First: integrated gradients of F(a) = a if a > 0.37 else 0, less the truth; every rule tends to "
        "-0.37, the jump. Then: the share of the total that effects leave out, by steps of the midpoint rule, without "
        "gates on the path and with them; dashed: jumps counted. Last: gates smoothed by a share of the mean value.",
        method=_method(plan, found),
        limits=[
            "Dictionaries are small and were trained briefly; how often gates flip depends on their L0 and on how far "
            "the two ends of a path are apart.",
            "An exact effect changes one node and no other. Integrated gradients share what nodes do together, so they "
            "may differ from it though they account for everything.",
            "One model, one kind of change (a single token), one metric.",
        ],
    )


def _method(plan: Plan, found: Any) -> list[str]:
    l0 = "; ".join(f"{name} {found[name]['l0'][0]:.1f} and {found[name]['l0'][1]:.1f}" for name in ARCHITECTURES)
    flips = "; ".join(f"{name} {found[name]['flips']:.1f}" for name in ARCHITECTURES)
    passes = "; ".join(f"{name} {found[name]['passes']:.0f}" for name in ARCHITECTURES)
    return [
        f"Two dictionaries of {plan.n_latents} latents for each architecture, at the residual stream after two "
        f"consecutive layers, {plan.n_trained:,} activations each. L0 of both: {l0}.",
        f"{plan.n_pairs} held-out sequences of {LENGTH} tokens; the other end of a path is the same sequence with the "
        f"token {CHANGED} places before its end taken from another. Metric: log-probability of the token that follows.",
        "Effects of the latents and the error of the earlier site. Errors kept: the model behind it is untouched. "
        "Errors dropped: the later dictionary's reconstruction stands in place of the stream.",
        f"Flips on a path, mean: {flips}. Forward passes for a sequence with jumps counted: {passes}.",
        "Remainder: sum over sequences of |sum of effects - what changing all nodes does|, over the sum of the "
        "latter's magnitudes. Intervals: bootstrap over sequences.",
        f"Node by node: the latents of the first {plan.n_exact} sequences against exact patching.",
        f"Decided by: handled if the upper end of every interval is below {HANDLED}, not handled if the lower end of "
        "every interval is above; else it depends on the architecture.",
        f"Smoothed gates: sigmoid of the margin over {', '.join(map(str, WIDTHS))} of the mean active value. Planted: "
        "paths between activations made of known atoms, gates of each kind, metric sum of v tanh(value).",
    ]


def _verdict(question: str, effects: list[Effect], what: str) -> Verdict:
    high = [e.value if e.high is None else e.high for e in effects]
    low = [e.value if e.low is None else e.low for e in effects]
    if all(end < HANDLED for end in high):
        answer = "yes"
    elif all(end > HANDLED for end in low):
        answer = "no"
    elif any(end < HANDLED for end in high) and any(end > HANDLED for end in low):
        answer = "depends on the architecture"
    else:
        answer = UNDECIDED
    n = effects[0].name.split("steps")[0].split()[-1] if "steps" in effects[0].name else ""
    return Verdict(
        question=question,
        answer=answer,
        because=f"{what.format(n=n)} is " + ", ".join(f"{e.name.split(':')[0]} {e}" for e in effects) + ".",
        effects=effects,
        would_change=f"An end of an interval on the other side of {HANDLED}. " + power_note(effects),
    )


def _effect(cells: list[float], name: str, n: int) -> Effect:
    return Effect(name=name, value=cells[0], low=cells[1], high=cells[2], n=n, unit="share, over sequences")


def _at(rows: list[list[float]], steps: int, plan: Plan, name: str) -> Effect:
    row = min(rows, key=lambda r: abs(r[0] - steps))
    return _effect(row[1:], f"{name}: {int(row[0])} steps", plan.n_pairs)


def _last(found: Any, error: str, plan: Plan, name: str) -> Effect:
    return _at(found[error]["midpoint"], max(plan.steps), plan, name)


def _counted(found: Any, plan: Plan, name: str) -> Effect:
    return _effect(found["jumps"], f"{name}: jumps counted", plan.n_pairs)


def _node(found: Any, error: str, arm: str, plan: Plan, name: str) -> Effect:
    return _effect(found["nodes"][error][arm], f"{name}: {arm}", plan.n_exact)
