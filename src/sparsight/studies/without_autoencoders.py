"""Can dictionaries be trained with pursuit and no encoder, are they better, and do networks read as pursuits do?"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.coding import gradient_pursuit
from sparsight.dictionaries import AbstractDictionary, Pursuit, TopK
from sparsight.evaluation import CausalPrediction, DocumentSums, causal_prediction, recovery
from sparsight.evaluation.evaluate import ratio
from sparsight.evaluation.reading import batches, part_of, row_blocks
from sparsight.evaluation.record import Estimate, estimate
from sparsight.studies.deciding import all_on_one_side, effect_of, mean_effect, power_note
from sparsight.studies.record import Cell, Effect, Findings, Line, Panel, Table, Verdict
from sparsight.studies.subject import Subject, subject, trained
from sparsight.studies.work import Work
from sparsight.training import Training, train

D, TRUE, ACTIVE, NOISE = 32, 64, 4, 0.05
FOUND = 0.95  # cosine above which a true atom counts as recovered
CAUSAL_K = 16


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    n_planted: int
    n_stored: int
    n_trained: int
    longer: int  # times as many tokens for a TopK dictionary of about the same training time
    ks: tuple[int, ...]
    n_coded: int
    causal_tokens: int


FULL = Plan(5, 100_000, 150_000, 150_000, 3, (8, 16), 8_192, 300)
FAST = Plan(2, 30_000, 30_000, 30_000, 3, (16,), 2_048, 100)


def run(work: Work) -> Findings:
    """Recovery of planted atoms; FVU of dictionaries learned with and without an encoder; causal prediction."""
    plan = FAST if work.options.fast else FULL
    planted = [work.part(f"planted-{s}", partial(_recovered, work, plan, s)) for s in range(plan.seeds)]
    made: dict[int, Any] = {}
    frontier = {k: work.part(f"frontier-{k}", partial(_frontier, work, plan, k, made)) for k in plan.ks}
    causal: dict[str, CausalPrediction] = {}
    for dose in ("projection", "constant"):
        record = work.part(f"causal-{dose}", partial(_causal, work, plan, dose, made))
        if record is not None:
            causal[dose] = CausalPrediction.model_validate(record)
    return Findings(
        verdicts=[_recovers(planted), _better(frontier), *([_whose_codes(causal)] if causal else [])],
        tables=[_planted_table(planted), _frontier_table(frontier), *([_causal_table(causal)] if causal else [])],
        figures=[_planted_panel(planted), _frontier_panel(frontier), *([_causal_panel(causal)] if causal else [])],
        caption="Share of planted atoms recovered (left); held-out FVU at equal L0 of dictionaries trained "
        "with an encoder "
        "and with pursuit (middle); how well latent values foretell the size of an ablation's effect (right).",
        method=_method(plan, bool(causal)),
        limits=[
            "Equal tokens are not equal time: pursuit costs about k times an encoder; the TopK trained longer "
            "answers that "
            "only roughly, and no learning rate was tuned here.",
            "Lower FVU at equal L0 does not make latents more meaningful.",
            "One model, one site, one seed of training on it; the planted part has several seeds.",
            "Causal prediction uses the atoms of a TopK dictionary, made for its encoder.",
        ],
    )


def planted_rows(n: int, seed: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "true d"]]:
    """Rows that are sums of 4 of 64 random directions with weights in [0.5, 1.5], with noise, and the directions."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=1)
    support = torch.rand(n, TRUE, generator=g).topk(ACTIVE, dim=1).indices
    weights = torch.rand(n, ACTIVE, generator=g) + 0.5
    x = torch.zeros(n, TRUE).scatter(1, support, weights) @ atoms
    return x + NOISE * torch.randn(n, D, generator=g), atoms


def _recovered(work: Work, plan: Plan, s: int) -> dict[str, float]:
    """Share of true atoms found by a Pursuit and by a TopK dictionary of the same size, on the same rows."""
    seed = 1000 * work.options.seed + s
    x, atoms = planted_rows(20_000, seed)
    configs = {"Pursuit": Pursuit(TRUE, ACTIVE, dead_after=5_000), "TopK": TopK(TRUE, ACTIVE, dead_after=5_000)}
    training = Training(n_tokens=plan.n_planted, batch_size=512, lr=8e-3, seed=seed)
    runs = train(x, list(configs.values()), training, out=work.scratch(f"planted-{s}"), resume=True, progress=False)
    return {
        name: recovery(run.dictionary.atoms.detach(), atoms, threshold=FOUND).fraction_recovered
        for name, run in zip(configs, runs, strict=True)
    }


def _dictionaries(
    work: Work, plan: Plan, k: int, made: dict[int, Any]
) -> tuple[Subject, dict[str, AbstractDictionary]]:
    """The subject, and for one k: a Pursuit, a TopK of the same tokens, and a TopK of more."""
    if 0 not in made:
        made[0] = subject(work, n_tokens=plan.n_stored)
    on: Subject = made[0]
    if k not in made:
        n = 8 * on.lm.width(on.site)
        seed = work.options.seed
        short = Training(n_tokens=plan.n_trained, batch_size=1024, lr=2e-3, seed=seed)
        long = Training(n_tokens=plan.n_trained * plan.longer, batch_size=1024, lr=2e-3, seed=seed)
        top, pursuit = TopK(n, k=k, dead_after=20_000), Pursuit(n, k=k, dead_after=20_000)
        equal = trained(work, on, [top, pursuit], short, folder=f"dictionaries-{k}")
        longer = trained(work, on, [top], long, folder=f"longer-{k}")
        made[k] = {"TopK": equal[0], "Pursuit": equal[1], "TopK, longer": longer[0]}
    return on, made[k]


def _frontier(work: Work, plan: Plan, k: int, made: dict[int, Any]) -> Any:
    """Held-out FVU of each dictionary with its own coder and with gradient pursuit, and differences from Pursuit's."""
    on, dictionaries = _dictionaries(work, plan, k, made)
    part = part_of(on.store, "heldout")
    blocks = row_blocks(len(part), 2048, plan.n_coded)
    mean = torch.cat([x for _, x in batches(part, on.site, blocks, torch.device("cpu"))]).double().mean(dim=0)
    coders = {f"{name}, own code": (d, d.encode) for name, d in dictionaries.items()}
    for name in ("TopK", "TopK, longer"):
        coders[f"{name}, pursuit"] = dictionaries[name], partial(_pursuit, dictionaries[name], k)
    names = list(coders)
    sums = DocumentSums(2 * len(names) + 2)
    for block, x in batches(part, on.site, blocks, torch.device("cpu")):
        with torch.no_grad():
            codes = {name: coder(x) for name, (_, coder) in coders.items()}
            terms = [(x - coders[name][0].decode(code)).double().square().sum(dim=1) for name, code in codes.items()]
        terms += [code.l0().double() for code in codes.values()]
        terms += [(x.double() - mean).square().sum(dim=1), torch.ones(len(x), dtype=torch.float64)]
        sums.add(part.tokens(block).document_ids, torch.stack(terms, dim=1))
    total = sums.sums.sum(dim=0)
    fvu = partial(_estimated, sums, work.options.seed)
    energy, ours = 2 * len(names), names.index("Pursuit, own code")
    return {
        "fvu": {name: fvu(ratio(i, energy)) for i, name in enumerate(names)},
        "l0": {name: float(total[len(names) + i] / total[-1]) for i, name in enumerate(names)},
        "less": {name: fvu(partial(_less, ours, i, energy)) for i, name in enumerate(names) if i != ours},
        "n_documents": len(sums),
        "n_tokens": int(total[-1]),
    }


@torch.no_grad()
def _pursuit(d: AbstractDictionary, k: int, x: Tensor) -> Any:
    return gradient_pursuit(x - d.b_dec, d.atoms, k)


def _less(first: int, second: int, energy: int, s: Tensor) -> Tensor:
    return (s[..., first] - s[..., second]) / s[..., energy]


def _estimated(sums: DocumentSums, seed: int, statistic: Any) -> Any:
    return estimate(sums, statistic, n_resamples=1000, level=0.95, seed=seed).model_dump()


def _causal(work: Work, plan: Plan, dose: str, made: dict[int, Any]) -> Any:
    """Whose codes foretell what removing an atom does; None for a model without a next-token loss."""
    on, dictionaries = _dictionaries(work, plan, CAUSAL_K, made)
    if not on.lm.has_causal_loss:
        return None
    return causal_prediction(
        on.lm,
        dictionaries["TopK, longer"],
        on.store,
        dose=dose,
        k=CAUSAL_K,
        n_tokens=plan.causal_tokens,
        seed=work.options.seed,
        progress=work.progress,
    ).model_dump(mode="json")


def _recovers(planted: list[dict[str, float]]) -> Verdict:
    share = mean_effect([p["Pursuit"] for p in planted], "Pursuit: atoms recovered", "share, over seeds")
    gap = mean_effect(
        [p["Pursuit"] - p["TopK"] for p in planted], "Pursuit - TopK: atoms recovered", "share, over seeds"
    )
    worst = min(p["Pursuit"] for p in planted)
    return Verdict(
        question="Does training with pursuit and no encoder recover a planted dictionary?",
        answer="yes" if worst >= 0.95 else "no",
        because=f"It recovers {worst:.0%} or more of {TRUE} atoms at a cosine above {FOUND} from each of "
        f"{len(planted)} "
        "seeds; a TopK dictionary on the same rows recovers "
        f"{sum(p['TopK'] for p in planted) / len(planted):.0%} in the "
        "mean.",
        effects=[share, gap],
        would_change=f"A seed below 95 %; the worst is at {worst:.1%}.",
    )


def _better(frontier: Mapping[int, Any]) -> Verdict:
    def gaps(other: str) -> list[Effect]:
        return [
            effect_of(Estimate(**f["less"][other]), f"Pursuit - {other}, k = {k}", f["n_documents"],
                      "FVU, over documents")
            for k, f in frontier.items()
        ]  # fmt: skip

    hardest = gaps("TopK, longer, pursuit")
    return Verdict(
        question="Does a dictionary trained with pursuit leave less variance at equal L0 than TopK's, even when TopK "
        "trains longer and is coded by pursuit?",
        answer=all_on_one_side(hardest, wanted=-1, on="k"),
        because="FVU of Pursuit minus that of TopK: "
        + "; ".join(f"{e.name.removeprefix('Pursuit - ')}: {e}" for e in [*gaps("TopK, own code"), *hardest])
        + ".",
        effects=[*hardest, *gaps("TopK, pursuit"), *gaps("TopK, longer, own code"), *gaps("TopK, own code")],
        would_change=power_note(hardest),
    )


def _whose_codes(causal: Mapping[str, CausalPrediction]) -> Verdict:
    effects = [
        effect_of(getattr(d, kind), f"{dose} dose, {kind}: encoder - pursuit", c.n_documents,
                  "Spearman correlation, over documents")
        for dose, c in causal.items()
        for d in c.differences
        if (d.first, d.second) == ("encoder", "pursuit")
        for kind in ("size", "loss")
    ]  # fmt: skip
    return Verdict(
        question="Do the encoder's codes foretell the effect of removing an atom better than pursuit's codes?",
        answer=all_on_one_side(effects, wanted=1, on="the dose"),
        because="A network cannot run an iterative decoder, so its read-outs should agree with one-shot codes. Rank "
        "correlation with measured effects, encoder less pursuit: "
        + "; ".join(f"{e.name.split(':')[0]} {e}" for e in effects)
        + ".",
        effects=effects,
        would_change=power_note(effects),
    )


def _planted_table(planted: list[dict[str, float]]) -> Table:
    rows: list[list[Cell]] = [[i, p["Pursuit"], p["TopK"]] for i, p in enumerate(planted)]
    return Table(title=f"Share of {TRUE} planted atoms recovered (cosine above {FOUND})",
                 columns=["seed", "Pursuit", "TopK"], rows=rows)  # fmt: skip


def _frontier_table(frontier: Mapping[int, Any]) -> Table:
    rows: list[list[Cell]] = [
        [k, name, f["l0"][name], str(effect_of(Estimate(**e), "", 1, ""))]
        for k, f in frontier.items()
        for name, e in f["fvu"].items()
    ]
    first = next(iter(frontier.values()))
    return Table(title=f"Held-out FVU on {first['n_tokens']:,} tokens of {first['n_documents']} documents",
                 columns=["k", "dictionary, coder", "L0", "FVU"], rows=rows)  # fmt: skip


def _causal_table(causal: Mapping[str, CausalPrediction]) -> Table:
    rows: list[list[Cell]] = [
        [dose, r.coder, r.active, str(r.size.spearman), str(r.loss.spearman), str(r.loss.slope)]
        for dose, c in causal.items()
        for r in c.coders
    ]
    first = next(iter(causal.values()))
    return Table(
        title=f"Prediction of ablation effects: {first.n_pairs:,} pairs of token and latent",
        columns=["dose", "coder", "calls active", "size: Spearman", "loss: Spearman", "loss: slope"],
        rows=rows,
        note="projection, as coder: the dose itself, the yardstick for what follows from the dose. The projection dose "
        "leans towards one-shot read-outs, the constant dose towards nobody.",
    )


def _planted_panel(planted: list[dict[str, float]]) -> Panel:
    x = [f"seed {i}" for i in range(len(planted))]
    lines = [Line(name=n, x=list(x), y=[p[n] for p in planted], style="bars") for n in ("Pursuit", "TopK")]
    return Panel(title="planted atoms recovered", x_label="", y_label="share", lines=lines)


def _frontier_panel(frontier: Mapping[int, Any]) -> Panel:
    lines = []
    for name in next(iter(frontier.values()))["fvu"]:
        es = [Estimate(**f["fvu"][name]) for f in frontier.values()]
        lines.append(Line(name=name, x=[float(k) for k in frontier], y=[e.value for e in es],
                          low=[e.value if e.low is None else e.low for e in es],
                          high=[e.value if e.high is None else e.high for e in es]))  # fmt: skip
    return Panel(title="held-out activations", x_label="k", y_label="FVU", lines=lines, x_log=len(frontier) > 1,
                 y_log=True)  # fmt: skip


def _causal_panel(causal: Mapping[str, CausalPrediction]) -> Panel:
    lines = []
    for coder in ("encoder", "pursuit", "projection"):
        es = [next(r for r in c.coders if r.coder == coder).size.spearman for c in causal.values()]
        shown = "the dose itself" if coder == "projection" else coder
        if coder == "projection" and "constant" in causal:
            shown = "projection"
        lines.append(Line(name=shown, x=[f"{dose} dose" for dose in causal], y=[e.value for e in es],
                          low=[e.value if e.low is None else e.low for e in es],
                          high=[e.value if e.high is None else e.high for e in es], style="bars"))  # fmt: skip
    return Panel(title="foretelling ablations", x_label="", y_label="Spearman with effect's size", lines=lines)


def _method(plan: Plan, causal: bool) -> list[str]:
    said = [
        f"Planted: {TRUE} random atoms in {D} dimensions, {ACTIVE} active, noise {NOISE}; 20,000 rows, "
        f"{plan.n_planted:,} "
        "tokens of training, gradient pursuit with least squares and online updates of the atoms.",
        f"Model: for each k a Pursuit and a TopK dictionary on the same {plan.n_trained:,} activations "
        "(repeats counted), "
        f"and a TopK on {plan.longer} times as many; held-out FVU of each with its own code and with gradient pursuit.",
        "Decided by, fixed beforehand: 95 % of the planted atoms from every seed; FVU of Pursuit less that of "
        "the longer "
        "TopK coded by pursuit below 0 at every k; rank correlations of the encoder less those of pursuit on "
        "one side of "
        "0 for both doses and both kinds of effect.",
    ]
    if causal:
        said.append("Causal prediction: atoms are removed from single activations by an amount that no coder decides; "
                    "each coder's values are compared with what happens to the predictions that follow.")  # fmt: skip
    else:
        said.append("This model has no next-token loss, so that no effect of an ablation was measured.")
    return said
