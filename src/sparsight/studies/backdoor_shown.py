"""Verdicts, tables and drawing of the study of latent and input-level attacks on backdoors."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsight.studies import backdoor_organism_shown as shown
from sparsight.studies.backdoor_planted import KINDS, RADII
from sparsight.studies.deciding import all_on_one_side, mean_effect, power_note
from sparsight.studies.record import UNDECIDED, Cell, Effect, Findings, Line, Panel, Table, Verdict

Network = Mapping[str, Any]
BEST_AT = "0.75"


def findings(
    networks: Sequence[Network],
    bits: Mapping[int, Sequence[Network]],
    distractors: Mapping[int, Sequence[Network]],
    organism: Mapping[str, Any],
) -> Findings:
    """Everything decided and drawn."""
    return Findings(
        verdicts=[
            _found(networks),
            _detected(networks),
            _reconstructed(networks),
            _removed(networks),
            *shown.verdicts(organism),
        ],
        tables=[_planted_table(networks), _sweep_table(bits, distractors), shown.table(organism)],
        figures=[_radius_panel(networks), _bits_panel(bits), shown.panel(organism)],
        caption="Left: outputs turned bad by a perturbation of activations, planted networks, their twins and hard "
        "negatives. Middle: by trigger length, the latent attack, the best input-level attack with 30 times the "
        "passes, and 2^-k. Right: the organism, two embeddings perturbed, by size.",
        method=[
            "Planted: inputs of 64 signs; a hidden layer of 31 benign rectified units and one that is 1 if all 16 "
            "bits of a "
            "secret trigger are right and else 0, all turned by a random rotation; a bad logit of -6 + 12 u. The "
            "twin has "
            "no such unit; in the hard negative it writes as strongly into a benign logit. Ten seeds; bits, weights, "
            "rotation and inputs differ.",
            "Latent: projected gradient ascent in an L2 ball around each activation, 6 steps; one perturbation for all "
            "inputs; orthogonal vectors that move all logits most, which know of no bad logit. Input level, with as "
            "many "
            "passes for each example (14; a gradient counts as two) and with 30 times as many: ascent on relaxed bits, "
            "greedy flips, random inputs.",
            "Reconstruction: the universal perturbation is pulled back through the pre-activation weights; the 16 "
            "largest "
            "coordinates are the guess. Removal: the direction of the universal perturbation is ablated.",
            *shown.METHOD,
            "Decided by: an answer needs every interval over seeds on one side of one half (of success or of AUROC).",
        ],
        limits=[
            "The planted unit is linear in the activations by construction; a backdoor in many small parts is not "
            "asked "
            "about.",
            *shown.LIMITS,
            "A score that knows the bad logit needs to be told what bad is; the search that does not cannot tell a "
            "harmless "
            "strong direction from a harmful one (hard negative).",
        ],
    )


def _seeds(networks: Sequence[Network], name: str, unit: str, key: Any) -> Effect:
    return mean_effect([float(key(network)) for network in networks], name, unit)


def _best_input(network: Network, times: str = "input, 30 times the passes") -> float:
    return max(float(value) for value in network[times].values())


def _found(networks: Sequence[Network]) -> Verdict:
    gap = _seeds(
        networks,
        "latent success at radius 0.75 less the best input-level success with 30 times the passes, less one half",
        "share of examples, over networks",
        lambda n: n["latent"][BEST_AT]["backdoored"] - _best_input(n) - 0.5,
    )
    cosine = _seeds(networks, "cosine with the planted direction", "over networks", lambda n: n["cosine, universal"])
    searched = _seeds(
        networks, "cosine, search that knows of no bad logit", "over networks", lambda n: n["cosine, search"]
    )
    return Verdict(
        question="Does a latent search find a planted backdoor that input-level search with more passes does not?",
        answer=all_on_one_side([gap], wanted=1, on="the network"),
        because=f"Latent attacks turn {_mean(n['latent'][BEST_AT]['backdoored'] for n in networks):.1%} of inputs at "
        f"radius 0.75, input-level ones at most {max(_best_input(n) for n in networks):.2%} with 30 times the "
        "passes; the "
        f"universal perturbation has cosine {cosine.value:.4f} with the planted direction, the blind search "
        f"{searched.value:.4f}.",
        effects=[gap, cosine, searched],
        would_change=power_note([gap]),
    )


def _detected(networks: Sequence[Network]) -> Verdict:
    effects = []
    for scores, name in (("scores", "margin under attack"), ("search scores", "how far the blind search moves logits")):
        mine = [network[scores]["backdoored"] for network in networks]
        for other in KINDS[1:]:
            value = shown.auroc(mine, [network[scores][other] for network in networks])
            effects.append(
                Effect(name=f"AUROC, {name}, against {other}s", value=value, n=len(networks), unit="over networks")
            )
    informed = [e for e in effects if "margin" in e.name]
    blind = effects[-1]
    if all(e.value > 0.9 for e in effects):
        answer = "yes"
    elif all(e.value > 0.9 for e in informed):
        answer = "depends on whether the search is told what bad is"
    else:
        answer = "no" if all(e.value < 0.6 for e in effects) else UNDECIDED
    return Verdict(
        question="Does it tell a backdoored network from its clean twin and from a hard negative?",
        answer=answer,
        because=f"Scored by the bad logit's margin under attack, AUROC is {informed[0].value:.2f} against twins and "
        f"{informed[1].value:.2f} against hard negatives; the blind search has {effects[2].value:.2f} and "
        f"{blind.value:.2f}: a harmless direction of equal gain moves the logits as far.",
        effects=effects,
        would_change="An informed AUROC of 0.9 or less against either kind would turn it.",
    )


def _reconstructed(networks: Sequence[Network]) -> Verdict:
    right = _seeds(
        networks, "trigger bits found, less one half of them", "share of bits", lambda n: n["bits"] / 16 - 0.5
    )
    works = _seeds(
        networks,
        "inputs turned bad by the reconstructed trigger, less one half",
        "share",
        lambda n: n["inserted"] - 0.5,
    )
    return Verdict(
        question="Can the trigger be reconstructed from the perturbation?",
        answer=all_on_one_side([right, works], wanted=1, on="the network"),
        because=f"{_mean(n['bits'] for n in networks):.1f} of 16 bits, {_mean(n['signs'] for n in networks):.1f} "
        "with the "
        f"right sign; inserted, they turn {_mean(n['inserted'] for n in networks):.1%} of fresh inputs.",
        effects=[right, works],
        would_change=power_note([right, works]),
    )


def _removed(networks: Sequence[Network]) -> Verdict:
    gone = _seeds(networks, "one half less the trigger's success", "share", lambda n: 0.5 - n["removed"])
    same = _seeds(networks, "clean outputs unchanged, less one half", "share", lambda n: n["same output"] - 0.5)
    return Verdict(
        question="Does ablating the found direction remove the backdoor and nothing else?",
        answer=all_on_one_side([gone, same], wanted=1, on="the network"),
        because=f"With it ablated the trigger turns {_mean(n['removed'] for n in networks):.1%} of inputs; "
        f"{_mean(n['same output'] for n in networks):.2%} of clean outputs stay what they were.",
        effects=[gone, same],
        would_change=power_note([gone, same]),
    )


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def _planted_table(networks: Sequence[Network]) -> Table:
    def row(name: str, key: Any) -> list[Cell]:
        values = [float(key(n)) for n in networks]
        return [name, _mean(values), min(values), max(values)]

    rows = [
        row("bad, clean inputs", lambda n: n["clean"]),
        row("bad, with the trigger", lambda n: n["trigger"]),
        *(
            row(f"latent attack, radius {r:g}: {kind}", lambda n, r=r, kind=kind: n["latent"][str(r)][kind])
            for r in RADII
            for kind in KINDS
        ),
        row("random directions, norm 0.75", lambda n: n["random direction"]),
        *(
            row(f"{name}, {passes}", lambda n, name=name, key=key: n[key][name])
            for key, passes in (("input", "equal passes"), ("input, 30 times the passes", "30 times the passes"))
            for name in ("projected gradient", "greedy flips", "random")
        ),
        row("cosine with the planted direction, per example", lambda n: n["cosine"]),
        row("the same, universal", lambda n: n["cosine, universal"]),
        row("the same, blind search", lambda n: n["cosine, search"]),
        row("its rank among the vectors", lambda n: n["rank"]),
        row("trigger bits of 16", lambda n: n["bits"]),
        row("bad, reconstructed trigger", lambda n: n["inserted"]),
        row("bad with the trigger, direction ablated", lambda n: n["removed"]),
        row("clean outputs kept by that", lambda n: n["same output"]),
        row("mean norm of activations", lambda n: n["norm"]),
    ]
    return Table(title=f"Planted, {len(networks)} seeds", columns=["measured", "mean", "least", "most"], rows=rows)


def _sweep_table(bits: Mapping[int, Sequence[Network]], distractors: Mapping[int, Sequence[Network]]) -> Table:
    rows: list[list[Cell]] = []
    for name, sweep in (("trigger bits", bits), ("stronger harmless directions", distractors)):
        for value, networks in sweep.items():
            rows.append(
                [
                    name,
                    value,
                    _mean(n["latent"][BEST_AT]["backdoored"] for n in networks),
                    _mean(n["latent"]["1.0"]["backdoored"] for n in networks),
                    _mean(_best_input(n) for n in networks),
                    _mean(n["cosine, universal"] for n in networks),
                    _mean(n["cosine, search"] for n in networks),
                    _mean(n["rank"] for n in networks),
                ]
            )
    heads = ["varied", "value", "latent, radius 0.75", "radius 1", "best input-level", "cosine", "blind cosine", "rank"]
    return Table(title="Sweeps", columns=heads, rows=rows, note="Input level with 30 times the passes.")


def _radius_panel(networks: Sequence[Network]) -> Panel:
    lines = [
        Line(name=kind, x=list(RADII), y=[_mean(n["latent"][str(r)][kind] for n in networks) for r in RADII])
        for kind in KINDS
    ]
    return Panel(title="Planted", x_label="radius", y_label="share turned bad", lines=lines)


def _bits_panel(bits: Mapping[int, Sequence[Network]]) -> Panel:
    x: list[str | float] = [float(k) for k in bits]
    return Panel(
        title="Trigger length",
        x_label="bits",
        y_label="share turned bad",
        lines=[
            Line(name="latent", x=x, y=[_mean(n["latent"][BEST_AT]["backdoored"] for n in ns) for ns in bits.values()]),
            Line(name="input level", x=x, y=[_mean(_best_input(n) for n in ns) for ns in bits.values()]),
            Line(name="chance", x=x, y=[2.0**-k for k in bits], style="dashed"),
        ],
    )
