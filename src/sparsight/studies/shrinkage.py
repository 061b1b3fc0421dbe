"""Which formula measures shrinkage, why did the wrong one look right, and what shrinks at all?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, Gated, JumpReLU, ReLU, TopK
from sparsight.evaluation.reading import part_of
from sparsight.studies import shrinkage_shown as shown
from sparsight.studies.deciding import all_on_one_side, mean_effect, power_note, side
from sparsight.studies.planted import random_atoms
from sparsight.studies.record import UNDECIDED, Effect, Findings, Verdict
from sparsight.studies.shrinkage_measured import (
    against_truth,
    constructed,
    identities,
    of_coders,
    of_dictionary,
)
from sparsight.studies.subject import Subject, subject
from sparsight.studies.work import Work
from sparsight.training import Run, Training, train

MARGIN = 0.01  # of r: less is not called shrinkage
L0 = 16
OTHER_L0 = (4, 8, 32)  # of ReLU dictionaries that show the range of r
SMOOTH = ("Gated", "JumpReLU", "TopK", "BatchTopK")
D, TRUE, ACTIVE, NOISE = 32, 64, 4, 0.05


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    n_stored: int
    n_trained: int
    n_measured: int
    n_fitted: int
    n_coded: int
    n_planted: int
    other_l0: tuple[int, ...]


FULL = Plan(3, 120_000, 250_000, 2_048, 4_096, 128, 300_000, OTHER_L0)
FAST = Plan(2, 12_000, 40_000, 512, 512, 32, 80_000, (4,))


def configs(n_latents: int, k: int) -> dict[str, DictionaryConfig]:
    """The five architectures at one L0."""
    return {
        "ReLU": ReLU(n_latents, target_l0=k, dead_after=20_000),
        "Gated": Gated(n_latents, target_l0=k, dead_after=20_000),
        "JumpReLU": JumpReLU(n_latents, target_l0=k, dead_after=20_000),
        "TopK": TopK(n_latents, k, dead_after=20_000),
        "BatchTopK": BatchTopK(n_latents, k, dead_after=20_000),
    }


def run(work: Work) -> Findings:
    """Constructed reconstructions; dictionaries of planted data and of a model; coders over the same atoms."""
    plan = FAST if work.options.fast else FULL
    seed = 1000 * work.options.seed
    # Data are drawn with other seeds than dictionaries.
    cases = work.part("constructed", lambda: [constructed(seed + 500 + s) for s in range(plan.seeds)])
    exact = work.part("identities", partial(identities, seed + 600))
    planted = [work.part(f"planted-{s}", partial(_planted, work, plan, s)) for s in range(plan.seeds)]
    made: dict[str, Subject] = {}
    found = [work.part(f"model-{s}", partial(_model, work, plan, s, made)) for s in range(plan.seeds)]
    ladder = work.part("other-l0", partial(_other_l0, work, plan, made))
    return Findings(
        verdicts=[
            formula_wrong(cases, found),
            looked_right(found),
            usual_measures(cases, found),
            who_shrinks(found),
            whose_price(found),
            kind(found, planted),
            coders_shrink(found),
            is_it_the_loss(found),
            by_norm(found),
        ],
        tables=shown.tables(cases, exact, planted, found, ladder),
        figures=shown.panels(cases, found, ladder),
        caption=shown.CAPTION,
        method=shown.method(plan.seeds, plan.n_trained, plan.n_measured, L0, MARGIN),
        limits=shown.LIMITS,
        notes=shown.WHY_IT_LOOKED_RIGHT,
    )


def _subject(work: Work, plan: Plan, made: dict[str, Subject]) -> Subject:
    if "model" not in made:
        made["model"] = subject(work, n_tokens=plan.n_stored)
    return made["model"]


def _training(work: Work, n: int, s: int, **changed: Any) -> Training:
    return Training(n_tokens=n, seed=1000 * work.options.seed + s, **{"batch_size": 1024, "lr": 2e-3, **changed})


def _trained(work: Work, source: Any, wanted: Sequence[DictionaryConfig], training: Training, folder: str) -> list[Run]:
    return train(source, list(wanted), training, out=work.scratch(folder), resume=True,
                 device=work.options.device, progress=work.progress)  # fmt: skip


def _rows(on: Subject, split: str, n: int) -> tuple[Tensor, Tensor]:
    """Rows spread evenly over a split, and their places in their contexts."""
    part = part_of(on.store, split)
    n = min(n, len(part))
    rows = torch.arange(n) * len(part) // n
    return part.rows(on.site, rows), part.tokens(rows).positions


def _model(work: Work, plan: Plan, s: int, made: dict[str, Subject]) -> dict[str, Any]:
    """Five dictionaries of one seed, measured; and the coders over the atoms of one of them."""
    on = _subject(work, plan, made)
    wanted = configs(4 * on.lm.width(on.site), L0)
    runs = _trained(work, on.store, list(wanted.values()), _training(work, plan.n_trained, s), f"model-{s}")
    fit, _ = _rows(on, "train", plan.n_fitted)
    x, positions = _rows(on, "heldout", plan.n_measured)
    found = {name: of_dictionary(r, fit, x, positions) for name, r in zip(wanted, runs, strict=True)}
    few = torch.arange(plan.n_coded) * len(x) // plan.n_coded
    topk = runs[list(wanted).index("TopK")].dictionary
    return {"dictionaries": found, "coders": of_coders(topk, fit[:: max(1, len(fit) // 128)], x[few], L0)}


def _other_l0(work: Work, plan: Plan, made: dict[str, Subject]) -> dict[str, Any]:
    """ReLU dictionaries at other L0: the further from 1 `r` is, the better formulas can be told apart."""
    on = _subject(work, plan, made)
    n = 4 * on.lm.width(on.site)
    wanted = [ReLU(n, target_l0=k, dead_after=20_000) for k in plan.other_l0]
    runs = _trained(work, on.store, wanted, _training(work, plan.n_trained, 99), "other-l0")
    fit, _ = _rows(on, "train", plan.n_fitted)
    x, positions = _rows(on, "heldout", plan.n_measured)
    return {str(k): of_dictionary(r, fit, x, positions) for k, r in zip(plan.other_l0, runs, strict=True)}


def _planted(work: Work, plan: Plan, s: int) -> dict[str, Any]:
    """The five architectures on planted data, their values against the true ones."""
    truth = random_atoms(1000 * work.options.seed + s + 700, D, TRUE, ACTIVE, NOISE, 20_000, least=0.2)
    wanted = configs(TRUE, ACTIVE)
    training = _training(work, plan.n_planted, s, batch_size=512, lr=8e-3)
    runs = _trained(work, truth.x.float(), list(wanted.values()), training, f"planted-{s}")
    return {name: against_truth(r.dictionary, truth) for name, r in zip(wanted, runs, strict=True)}


def of(found: Sequence[Mapping[str, Any]], name: str, *path: str) -> list[float]:
    """One number of one architecture, for each seed."""
    values = []
    for seed in found:
        value: Any = seed["dictionaries"][name]
        for key in path:
            value = value[key]
        values.append(value)
    return values


def formula_wrong(cases: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Verdict:
    """Against a minimiser found by search, for which neither formula was used."""
    one = cases[0]["x = 1, x_hat = 1/2"]
    effects = [
        Effect(name="x = 1, x_hat = 1/2", value=one["gamma_v1"] - one["minimiser"], n=1, unit="scale, exact"),
        mean_effect([c["the projection, times 0.8"]["gamma_v1"] - c["the projection, times 0.8"]["minimiser"]
                     for c in cases], "a projection times 0.8", "scale, over draws"),
        mean_effect([a - b for a, b in zip(of(found, "ReLU", "measures", "gamma_v1"),
                                           of(found, "ReLU", "measures", "minimiser"), strict=True)],
                    "ReLU dictionaries", "scale, over seeds of training"),
    ]  # fmt: skip
    everything = [m for c in cases for m in c.values()] + [
        d["measures"] for s in found for d in s["dictionaries"].values()
    ]
    worst = max(abs(m["r"] - m["minimiser"]) for m in everything)
    return Verdict(
        question="Does the first formula, sqrt(h / (a - m)), miss the scale that minimises E|x_hat / g - x|^2?",
        answer=all_on_one_side(effects, wanted=1, on="the case"),
        because=f"It lies above the minimiser in each: by {'; '.join(str(e) for e in effects)}. The corrected one, h "
        f"/ c, meets the minimiser of all {len(everything)} reconstructions to {worst:.1g}, the precision of the "
        "search.",
        effects=effects,
        would_change=power_note(effects),
    )


def looked_right(found: Sequence[Mapping[str, Any]]) -> Verdict:
    """Would a reader of the wrong figure have read anything else?"""
    names = list(found[0]["dictionaries"])
    effects = [
        mean_effect([a - b for a, b in zip(of(found, n, "measures", "gamma_v1"), of(found, n, "measures", "r"),
                                           strict=True)], f"{n}: first formula - right one", "scale, over seeds")
        for n in names
    ]  # fmt: skip
    order = [sorted(names, key=lambda n: s["dictionaries"][n]["measures"][m]) for s in found for m in ("r", "gamma_v1")]
    same = sum(a == b for a, b in zip(order[::2], order[1::2], strict=True))
    inside = all(abs(end) < MARGIN for e in effects for end in (e.low, e.high) if end is not None)
    outside = any(side(e, MARGIN) for e in effects)
    limit = _where_formulas_part(MARGIN)
    return Verdict(
        question=f"At L0 {L0}, does the wrong formula give a figure that reads differently (by {MARGIN} or more)?",
        answer="yes" if outside else "no" if inside else UNDECIDED,
        because=f"It differs by at most {max(abs(e.value) for e in effects):.2g} on average for any architecture, and "
        f"puts the dictionaries of {same} of {len(found)} seeds in the same order: it is sqrt(r / (2 - r)), which "
        "rises with r, is 1 where r is 1, and has the same slope there.",
        effects=effects,
        would_change=f"An r below {limit:.3f}: there the formulas part by {MARGIN}.",
    )


def _where_formulas_part(gap: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle / (2 - middle)) ** 0.5 - middle > gap else (low, middle)
    return low


def usual_measures(cases: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Verdict:
    """The projection control: a reconstruction that no scalar improves."""
    name = "projection on a random half"
    effects = [
        mean_effect([1 - c[name][m] for c in cases], f"projection: 1 - {m}", "over draws")
        for m in ("nu", "beta", "token norm ratio", "token beta")
    ]
    off = max(abs(1 - c[name]["r"]) for c in cases)
    told = all_on_one_side(effects, wanted=1, on="the measure", margin=MARGIN)
    topk = mean_effect([1 - v for v in of(found, "TopK", "measures", "nu")], "", "over seeds")
    bias = mean_effect([1 - v for v in of(found, "TopK", "measures", "r")], "", "over seeds")
    return Verdict(
        question="Do the norm ratio, and the multiple of x nearest to x_hat, tell shrinkage from imperfection?",
        answer={"yes": "no", "no": "yes"}.get(told, told),
        because="An orthogonal projection cannot be improved by any scalar, and r says so (|1 - r| at most "
        f"{off:.1g}); yet they call it short by {', '.join(f'{e.value:.2f}' for e in effects)}. On TopK dictionaries "
        f"1 - nu is {topk} where 1 - r is {bias}.",
        effects=effects,
        would_change=f"A measure within {MARGIN} of 1 on projections; the nearest is "
        f"{min(e.value for e in effects):.2f} away.",
    )


def who_shrinks(found: Sequence[Mapping[str, Any]]) -> Verdict:
    """`1 - r` about b_dec at matched L0."""
    effects = [
        mean_effect([1 - v for v in of(found, name, "measures", "r")], f"{name}: 1 - r", "over seeds of training")
        for name in found[0]["dictionaries"]
    ]
    relu, others = effects[0], effects[1:]
    calm = all(abs(end) < MARGIN for e in others for end in (e.low, e.high) if end is not None)
    if side(relu, MARGIN) == 1 and calm:
        answer = "yes"
    elif side(relu, MARGIN) == 1 and any(side(e, MARGIN) == 1 for e in others):
        answer = "depends on the architecture"
    else:
        answer = UNDECIDED
    return Verdict(
        question=f"At matched L0, are ReLU dictionaries shrunk (1 - r above {MARGIN}), and no others?",
        answer=answer,
        because="1 - r: " + "; ".join(f"{e.name.partition(':')[0]} {e}" for e in effects) + ".",
        effects=effects,
        would_change=f"Another margin than {MARGIN}: that of ReLU is {relu.value:.3f}, the largest other "
        f"{max(abs(e.value) for e in others):.4f}.",
    )


def whose_price(found: Sequence[Mapping[str, Any]]) -> Verdict:
    """Measured shrinkage against what the penalty charges for length."""
    shares = [p["predicted"] / p["measured"] for p in (s["dictionaries"]["ReLU"]["price"] for s in found)]
    effect = mean_effect(shares, "predicted / measured", "share of 1 - r, over seeds of training")
    low, high = effect.low or effect.value, effect.high or effect.value
    answer = "yes" if low > 0.8 and high < 1.25 else "no" if high < 0.8 or low > 1.25 else UNDECIDED
    measured = mean_effect([s["dictionaries"]["ReLU"]["price"]["measured"] for s in found], "", "over seeds")
    return Verdict(
        question="Is the shrinkage of ReLU what its penalty charges for length, l1 E sum f / (2 c)?",
        answer=answer,
        because=f"On training documents 1 - r is {measured}, and the penalty's price {effect} times that. "
        "Doubling encoder weights and offsets doubles the values; only under an L1 penalty on values does that cost "
        "anything, so the other objectives rest at r = 1.",
        effects=[effect],
        would_change="A ratio outside 0.8 to 1.25.",
    )


def kind(found: Sequence[Mapping[str, Any]], planted: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether one amount or one factor accounts for more of what is wrong with ReLU's values."""
    amounts, factors = (of(found, "ReLU", "panel", f"explained_by_{k}") for k in ("amount", "factor"))
    effects = [
        mean_effect([p["ReLU"]["by amount"] - p["ReLU"]["by factor"] for p in planted],
                    "planted, against true values: amount - factor", "share of squared error, over seeds"),
        mean_effect([a - f for a, f in zip(amounts, factors, strict=True)],
                    "model, against refitted values: amount - factor", "share of squared error, over seeds"),
    ]  # fmt: skip
    shares = mean_effect(amounts, "", "over seeds"), mean_effect(factors, "", "over seeds")
    return Verdict(
        question="Does the L1 penalty of a trained ReLU dictionary take off an amount rather than a factor?",
        answer=all_on_one_side(effects, wanted=1, on="the data"),
        because="Share of the squared error that one amount accounts for, less that of one factor: planted "
        f"{effects[0]}, model {effects[1]}; on the model an amount accounts for {shares[0]} of it, a factor for "
        f"{shares[1]}.",
        effects=effects,
        would_change=power_note(effects),
    )


def coders_shrink(found: Sequence[Mapping[str, Any]]) -> Verdict:
    """The lasso by its identity, and least squares on its support."""
    coders = [s["coders"]["coders"] for s in found]
    effects = [
        mean_effect([1 - c[name]["r"] for c in coders], f"{name}: 1 - r", "over dictionaries") for name in coders[0]
    ]
    by = {e.name.removesuffix(": 1 - r"): e for e in effects}
    repaired = all(abs(c["lasso, debiased"]["r"] - 1) < 1e-6 for c in coders)
    lasso = side(by["lasso"], MARGIN)
    answer = "yes" if lasso == 1 and repaired else "no" if lasso == -1 or not repaired else UNDECIDED
    closed = max(s["coders"]["closed form"]["values"] for s in found)
    return Verdict(
        question="Does a lasso over the same atoms shrink, and does least squares on its support end that?",
        answer=answer,
        because=f"1 - r at L0 {L0}: " + "; ".join(f"{n} {e}" for n, e in by.items())
        + f". The lasso's values equal least squares less penalty (D_S D_S')^-1 1 to {closed:.1g} of the largest "
        "value.",
        effects=effects,
        would_change=f"An r of the lasso above {1 - MARGIN}, or of the debiased one off 1 by 1e-6.",
    )  # fmt: skip


def is_it_the_loss(found: Sequence[Mapping[str, Any]]) -> Verdict:
    """How much of ReLU's distance to Gated a scale wins back, at equal L0."""
    effects = []
    for repair in ("one scale", "joint scales", "refit"):
        shares = []
        for s in found:
            relu, gated = (s["dictionaries"][n]["fvu"] for n in ("ReLU", "Gated"))
            shares.append((relu["own"] - relu[repair]) / (relu["own"] - gated["own"]))
        effects.append(mean_effect(shares, f"{repair}: share of the distance", "over seeds of training"))
    scales = [
        e.model_copy(update={"value": e.value - 0.5, "low": _less(e.low), "high": _less(e.high)}) for e in effects[:2]
    ]
    return Verdict(
        question="Does undoing shrinkage by scales, one or one for each latent, make up half of ReLU's distance in "
        "FVU to Gated?",
        answer=all_on_one_side(scales, wanted=1, on="the kind of scale"),
        because="Share of the distance that is made up: "
        + "; ".join(f"{e.name.partition(':')[0]} {e}" for e in effects)
        + ". Scales are fitted on training documents.",
        effects=effects,
        would_change="A share of one half; the nearest is "
        f"{min((e.value for e in effects[:2]), key=lambda v: abs(v - 0.5)):.2f}.",
    )  # fmt: skip


def _less(end: float | None) -> float | None:
    return None if end is None else end - 0.5


def by_norm(found: Sequence[Mapping[str, Any]]) -> Verdict:
    """Shrinkage of the shortest and of the longest tokens."""
    differences = []
    for s in found:
        groups = [g["family"]["r"] for g in s["dictionaries"]["ReLU"]["panel"]["by_norm"] if g["family"]]
        differences.append(groups[-1] - groups[0])
    effect = mean_effect(differences, "ReLU: r of the longest tenth - r of the shortest", "over seeds of training")
    ends = [effect.value] if effect.low is None or effect.high is None else [effect.low, effect.high]
    same = all(abs(end) < MARGIN for end in ends)
    return Verdict(
        question=f"Are long activations shrunk as much as short ones (r within {MARGIN})?",
        answer="yes" if same else "no" if side(effect, MARGIN) else UNDECIDED,
        because="In ReLU dictionaries r of the longest tenth of the activations less that of the shortest is "
        f"{effect}: an amount taken off costs short activations more.",
        effects=[effect],
        would_change=power_note([effect]),
    )
