"""Answers of the study of Gated's loss, each by a rule on effects."""

from typing import Any

from sparsight.studies import gated_loss_exact as exact
from sparsight.studies.deciding import mean_effect
from sparsight.studies.gated_loss_compared import (
    MARGIN,
    Run,
    better_weight,
    beyond,
    excess_effects,
    l0,
    missed,
    note,
    share_of_latents,
)
from sparsight.studies.gated_loss_trained import (
    FIXED_L1,
    INPUT_HELD,
    NEITHER,
    NO_SCALE,
    NO_STEP,
    ONE_OFFSET,
    PUBLISHED,
    RELU,
    SHIFTED,
    UNFROZEN,
    UNTIED,
    WEIGHTS,
    WITHOUT,
    fixed_name,
    weight_name,
)
from sparsight.studies.record import Effect, Verdict

ROUNDING = 1e-10  # relative; an identity in float64 holds far better


def exact_verdicts(found: dict[str, Any]) -> list[Verdict]:
    """The gradient table, the scale symmetry and the two readings, from what was computed of them."""
    return [_cells(found), _symmetric(found["symmetry"]), _two_readings(found["perspectives"])]


def _cells(found: dict[str, Any]) -> Verdict:
    right, n = exact.agrees(found["table"]), sum(len(cells) for cells in found["table"].values())
    slope = found["slope"]
    half = 1.96 * slope["error"]
    return Verdict(
        question="Does each term move exactly the parameters that the published table says?",
        answer="yes" if right == n else "no",
        because=f"{right} of {n} cells agree, zeros to the last bit; the penalty's gradient on b_gate is nowhere "
        f"negative (least entry {found['least_push']:.2g}), so it only shuts gates. Autograd's zero for b_gate is not "
        "the slope of the expected loss: that is the second effect, per unit of b_gate, all gates moved together.",
        effects=[
            Effect(name="cells that agree", value=right / n, n=n, unit="share, over cells"),
            Effect(name="slope of the reconstruction term in b_gate", value=slope["slope"],
                   low=slope["slope"] - half, high=slope["slope"] + half, n=200_000, unit="FVU per unit, over rows"),
        ],
        would_change="One cell that differs.",
    )  # fmt: skip


def _symmetric(symmetry: list[dict[str, float]]) -> Verdict:
    worst = max(max(row["code"], row["reconstruction"], row["sparsity"]) for row in symmetry)
    broken = min(abs(row["third term"] - 1) for row in symmetry)
    return Verdict(
        question="Is sparsity free without the third term, by shrinking the gate and not the code?",
        answer="yes" if worst < ROUNDING < broken else "no",
        because="(W_enc, b_gate) times c and r_mag less log c leave the code and its error as they are and multiply "
        f"the penalty by c, up to {worst:.1e}; the third term changes by {broken:.0%} or more.",
        effects=[
            Effect(name="largest residual of the identity", value=worst, n=len(symmetry), unit="relative, over c"),
            Effect(name="least change of the third term", value=broken, n=len(symmetry), unit="relative, over c"),
        ],
        would_change=f"A residual above {ROUNDING:g}.",
    )


def _two_readings(perspectives: dict[str, dict[str, float]]) -> Verdict:
    decoder = ("atoms", "b_dec")
    encoder = max(max(c["P1"], c["P2"]) for name, c in perspectives.items() if name not in decoder)
    apart = min(min(perspectives[name]["P1"], perspectives[name]["P2"]) for name in decoder)
    held = max(max(c["P2, decoder of q held"], c["explained"]) for c in perspectives.values())
    same = encoder < ROUNDING and held < ROUNDING
    return Verdict(
        question="Is the loss that of a ReLU dictionary with the magnitudes' reconstruction added (P1), or the usual "
        "losses of both architectures added (P2)?",
        answer="yes" if same and apart < ROUNDING
        else "depends on the parameter: both for the encoder, neither for the decoder unless that of q is held"
        if same
        else "no",
        because=f"For the encoder's parameters all three gradients agree to {encoder:.1e}: P1 and P2 differ by the "
        f"number of open gates, which has no gradient. For atoms and b_dec equation 8 is {apart:.0%} or more away; the "
        f"difference is the decoder's gradient of FVU(q), to {held:.1e}. What that difference does in training is the "
        f"arm '{UNFROZEN}'.",
        effects=[
            Effect(name="encoder: distance from P1 and P2", value=encoder, n=4, unit="relative, over parameters"),
            Effect(name="decoder: distance from P1 and P2", value=apart, n=2, unit="relative, over parameters"),
            Effect(name="distance from P2 with the decoder of q held", value=held, n=6,
                   unit="relative, over parameters"),
        ],
        would_change=f"A distance on the other side of {ROUNDING:g}.",
    )  # fmt: skip


def misses(data: dict[str, list[Run]], targets: dict[str, float]) -> Verdict:
    """Whether training without the third term fails to reach the L0."""
    effects = [
        Effect(name=f"{WITHOUT}, {where}: L0 not reached", value=missed(runs, WITHOUT, targets[where]), n=len(runs),
               unit="share of seeds")
        for where, runs in data.items()
    ]  # fmt: skip
    reached = [f"{mean_effect([l0(r, WITHOUT) for r in runs], '', '')} of {targets[w]:g} on {w} data"
               for w, runs in data.items()]  # fmt: skip
    return Verdict(
        question="Does the loss without its third term miss the L0 that was asked for?",
        answer=beyond(effects, 0.5, wanted=1),
        because=f"L0 ends at {', '.join(reached)}, though the controller of L0 may take the penalty down to 1e-4 of "
        "its first weight: nothing but chance opens a gate that is shut.",
        effects=effects,
        would_change=note(effects, 0.5),
    )


def shuts(data: dict[str, list[Run]]) -> Verdict:
    """How it fails: gates that shut, or weights that vanish."""
    with_it, without = fixed_name(PUBLISHED), fixed_name(WITHOUT)
    latents = [
        mean_effect([l0(r, without) / l0(r, with_it) for r in runs], f"L0 without over with, {where}",
                    f"ratio at l1 = {FIXED_L1:g}, over seeds")
        for where, runs in data.items()
    ]  # fmt: skip
    gates = [
        mean_effect([r["arms"][without]["gate"] / r["arms"][with_it]["gate"] for r in runs],
                    f"norm of gate weights without over with, {where}", f"ratio at l1 = {FIXED_L1:g}, over seeds")
        for where, runs in data.items()
    ]  # fmt: skip
    shut, whole = beyond(latents, 0.5, wanted=-1), beyond(gates, 0.5, wanted=1)
    return Verdict(
        question="Is the failure that gates shut (L0 below half), rather than that their weights run away to nothing "
        "(norm below half)?",
        answer="yes" if (shut, whole) == ("yes", "yes") else "no" if "no" in (shut, whole)
        else shut if shut != "yes" else whole,
        because=f"L0 without it over L0 with it: {', '.join(map(str, latents))}; norm of the gate's weights: "
        f"{', '.join(map(str, gates))}.",
        effects=[*latents, *gates],
        would_change=note([*latents, *gates], 0.5),
    )  # fmt: skip


def trained_verdicts(data: dict[str, list[Run]]) -> list[Verdict]:
    """One answer for each other change to the loss."""
    return [
        _costs(data, WITHOUT, "Does it cost variance to leave out the third term, at the L0 that is then reached?"),
        _costs(data, UNFROZEN, "Does it cost variance to train the decoder by the third term as well (P1, P2)?"),
        _costs(data, INPUT_HELD, "Does it cost variance to hold the input's offset in the third term as well?"),
        _gains(data, UNTIED, "Do magnitudes with weights of their own leave less variance?"),
        _costs(data, NO_SCALE, "Does it cost variance to leave out r_mag, the magnitudes' own scale?"),
        _costs(data, ONE_OFFSET, "Does it cost variance to leave out b_mag, the magnitudes' own offset?"),
        _costs(
            data, NEITHER, "Does it cost variance to leave out both, so that the code is that of a ReLU dictionary?"
        ),
        _costs(data, NO_STEP, "Does it cost variance, or the L0, to leave out the step function?"),
        _relu(data),
        _costs(data, SHIFTED, "Is a ReLU dictionary worse than Gated even when each latent is rescaled and shifted?"),
        _other_weights(data),
    ]


def _costs(data: dict[str, list[Run]], name: str, question: str) -> Verdict:
    effects = excess_effects(data, name)
    return _judged(question, effects, MARGIN, wanted=1)


def _gains(data: dict[str, list[Run]], name: str, question: str) -> Verdict:
    effects = excess_effects(data, name)
    return _judged(question, effects, -MARGIN, wanted=-1)


def _judged(question: str, effects: list[Effect], threshold: float, *, wanted: int) -> Verdict:
    return Verdict(
        question=question,
        answer=beyond(effects, threshold, wanted=wanted),
        because=f"{_over_seeds(effects)}; beyond {threshold:.0%} counts.",
        effects=effects,
        would_change=note(effects, threshold),
    )


def _relu(data: dict[str, list[Run]]) -> Verdict:
    effects = excess_effects(data, RELU)
    shares = {where: [s for run in runs if (s := share_of_latents(run)) is not None] for where, runs in data.items()}
    known = [
        mean_effect(shares[where], f"latents Gated needs over ReLU's, {where}", "ratio at equal FVU, over seeds")
        for where, runs in data.items()
        if len(shares[where]) == len(runs)
    ]
    said = ", ".join(f"{e} ({e.name.rsplit(', ', 1)[1]})" for e in known)
    return Verdict(
        question="Is Gated better than ReLU at equal L0?",
        answer=beyond(effects, MARGIN, wanted=1),
        because=f"{_over_seeds(effects)}. "
        + (f"Gated has ReLU's FVU with this share of its latents: {said}; the paper says about half." if known else ""),
        effects=[*effects, *known],
        would_change=note(effects, MARGIN),
    )


def _other_weights(data: dict[str, list[Run]]) -> Verdict:
    by_weight = {
        weight: [
            e
            for where, runs in data.items()
            for e in excess_effects({where: runs}, weight_name(weight))[:1]  # over seeds, one for each kind of data
        ]
        for weight in WEIGHTS
    }
    effects = [e for found in by_weight.values() for e in found]
    return Verdict(
        question="Does another weight of the third term than 1 leave less variance?",
        answer=better_weight(by_weight),
        because=f"{_over_seeds(effects)}; beyond {-MARGIN:.0%} counts.",
        effects=effects,
        would_change=note(effects, -MARGIN),
    )


def _over_seeds(effects: list[Effect]) -> str:
    """The effects in words, but for intervals over documents, which the table beside has."""
    said = []
    for e in effects:
        if e.unit == "share of seeds":
            said.append(f"{e.name} in {e.value:.0%} of seeds")
        elif not e.unit.endswith("over documents"):
            ends = "" if e.low is None else f" [{e.low:+.1%}, {e.high:+.1%}]"
            said.append(f"{e.name}: {e.value:+.1%}{ends}")
    return "Excess FVU at equal L0: " + "; ".join(said)
