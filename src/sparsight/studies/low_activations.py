"""Are weakly active latents interesting, or interference; does pursuit have fewer; would a threshold do?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit, threshold_code, threshold_for_l0
from sparsight.dictionaries import AbstractDictionary, JumpReLU, TopK
from sparsight.evaluation import Comparison, DocumentSums, best_latents, compare_coders
from sparsight.evaluation.evaluate import ratio
from sparsight.evaluation.reading import batches, part_of, row_blocks
from sparsight.evaluation.record import Estimate, estimate
from sparsight.studies.deciding import all_on_one_side, effect_of, mean_effect, power_note, separate_difference
from sparsight.studies.planted import random_atoms, tied_encoder
from sparsight.studies.questions import within_languages
from sparsight.studies.record import Cell, Effect, Findings, Line, Panel, Table, Verdict
from sparsight.studies.subject import Subject, is_organism, subject, trained
from sparsight.studies.work import Work
from sparsight.training import Training

FRACTIONS = (0.05, 0.1, 0.2)
QUARTERS = ("weakest quarter", "second", "third", "strongest quarter")
SETTINGS = {"true weights 1 + Exp(1)": 1.0, "true weights Exp(1)": 0.0}  # the second has small weights in truth
TOLD = 0.95  # AUROC on training documents from which a latent counts as one for a label


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    signals: int
    n_stored: int
    n_trained: int
    n_coded: int
    ks: tuple[int, ...]


FULL = Plan(seeds=6, signals=2_000, n_stored=250_000, n_trained=500_000, n_coded=24_576, ks=(4, 8, 16))
FAST = Plan(seeds=3, signals=1_000, n_stored=50_000, n_trained=60_000, n_coded=6_144, ks=(8, 16))
K = 16


def run(work: Work) -> Findings:
    """Small values and their precision, on planted truth and against labels; thresholds at equal L0."""
    plan = FAST if work.options.fast else FULL
    planted = {
        name: work.part(f"planted-{least:g}", partial(_planted, least, plan, work.options.seed))
        for name, least in SETTINGS.items()
    }
    measured = _Measured(work, plan)
    small = work.part("small-values", measured.small)
    labels = work.part("labels", measured.labels) if is_organism(work) else {}
    sweep = {
        name: Comparison.model_validate(work.part(f"thresholds-{name}", partial(measured.thresholds, name)))
        for name in ("TopK", "JumpReLU")
    }
    return Findings(
        verdicts=[
            _better_than_chance(planted, labels),
            _fewer(planted, small),
            _more_precise(planted, labels),
            _threshold(sweep),
        ],
        tables=[_planted_table(planted), _small_table(small), *([_label_table(labels)] if labels else []),
                *(_sweep_table(name, c) for name, c in sweep.items())],
        figures=[_quarter_panel(planted, labels), _mass_panel(planted, small), _sweep_panel(sweep["JumpReLU"])],
        caption="Share of active values whose latent is right, by size of the value among its latent's values (left); "
        "share of small values (middle); FVU when small values are cut off at equal L0 (right).",
        method=_method(plan, bool(labels)),
        limits=[
            "Labels test only latents that tell a label well; what the others mean is not known, so neither are their "
            "small values.",
            "A label that holds at one token may make a latent right at the next: precision by labels is a "
            "lower bound.",
            "On planted data all coders get the true atoms; the encoder is linear and tied, not trained.",
        ],
    )  # fmt: skip


def relative_values(code: SparseCode, quantile: float = 0.99) -> Float[Tensor, "n k"]:
    """Magnitude of each value over the given quantile of its own latent's magnitudes; 0 in unused slots."""
    used = code.values != 0
    latents, sizes = code.indices[used], code.values[used].abs().double()
    by_size = sizes.argsort(stable=True)
    order = by_size[latents[by_size].argsort(stable=True)]
    counts = torch.bincount(latents, minlength=code.n_latents)
    last = counts.cumsum(0) - counts + ((counts * quantile).ceil().long() - 1).clamp_min(0)
    result = torch.zeros(code.values.shape, dtype=torch.float64)
    if len(sizes):
        result[used] = sizes / sizes[order][last.clamp_max(len(sizes) - 1)][latents]
    return result


def quarters(sizes: Float[Tensor, " m"]) -> Tensor:
    """Quarter of each value by rank, 0 the weakest; equal values in the order in which they come."""
    rank = torch.empty(len(sizes), dtype=torch.int64)
    rank[sizes.argsort(stable=True)] = torch.arange(len(sizes))
    return (4 * rank).div(max(1, len(sizes)), rounding_mode="floor")


def _planted(least: float, plan: Plan, seed: int) -> list[dict[str, dict[str, list[float]]]]:
    """For each draw and coder: share of small values, and precision of each quarter."""
    draws = []
    for s in range(plan.seeds):
        planted = random_atoms(1000 * seed + s, 64, 512, 10, 0.05, plan.signals, least=least)
        wide = tied_encoder(planted, 60)
        codes = {
            "encoder, k largest": tied_encoder(planted, planted.k),
            "encoder, threshold": threshold_code(wide, threshold_for_l0(wide, planted.k)),
            "pursuit": gradient_pursuit(planted.x, planted.atoms, planted.k),
            "true code": planted.code,
        }
        draws.append({name: _against_truth(code, planted.code) for name, code in codes.items()})
    return draws


def _against_truth(code: SparseCode, truth: SparseCode) -> dict[str, list[float]]:
    used = code.values != 0
    sizes = relative_values(code)[used]
    right = (code.indices[:, :, None] == truth.indices[:, None, :]).any(dim=2)[used].double()
    quarter = quarters(sizes)
    return {
        "mass": [float((sizes < q).double().mean()) for q in FRACTIONS],
        "precision": [float(right[quarter == i].mean()) for i in range(4)],
    }


class _Measured:
    """What is measured on the model, which is harvested and trained on only when a part asks for it."""

    def __init__(self, work: Work, plan: Plan) -> None:
        self.work, self.plan = work, plan
        self._made: tuple[Subject, dict[str, AbstractDictionary]] | None = None

    @property
    def made(self) -> tuple[Subject, dict[str, AbstractDictionary]]:
        if self._made is None:
            relabelled = within_languages if is_organism(self.work) else None
            on = subject(self.work, n_tokens=self.plan.n_stored, documents_as=relabelled)
            n_latents = 8 * on.lm.width(on.site)
            configs = [
                TopK(n_latents, k=K, dead_after=20_000),
                JumpReLU(n_latents, target_l0=float(K), dead_after=20_000, bandwidth=0.1),
            ]
            training = Training(n_tokens=self.plan.n_trained, batch_size=1024, lr=2e-3, seed=self.work.options.seed)
            found = trained(self.work, on, configs, training)
            self._made = on, dict(zip(("TopK", "JumpReLU"), found, strict=True))
        return self._made

    def coders(self) -> dict[str, tuple[AbstractDictionary, Callable[[Tensor], SparseCode]]]:
        """Each dictionary's own code, and pursuit over the same atoms at its L0."""
        coders: dict[str, tuple[AbstractDictionary, Callable[[Tensor], SparseCode]]] = {}
        for name, d in self.made[1].items():
            coders[f"{name}, encoder"] = d, d.encode
            coders[f"{name}, pursuit"] = d, partial(_pursuit, d)
        return coders

    def small(self) -> dict[str, Any]:
        """Share of small values of each coder, with intervals over documents."""
        on = self.made[0]
        part = part_of(on.store, "heldout")
        blocks = row_blocks(len(part), 2048, self.plan.n_coded)
        found: dict[str, Any] = {}
        for name, (d, coder) in self.coders().items():
            codes, documents = [], []
            for block, x in batches(part, on.site, blocks, d.atoms.device):
                with torch.no_grad():
                    codes.append(coder(x))
                documents.append(part.tokens(block).document_ids)
            code = SparseCode.cat(codes)
            sizes, used = relative_values(code), (code.values != 0).double()
            terms = [((sizes < q) * used).sum(dim=1) for q in FRACTIONS]
            sums = DocumentSums(len(FRACTIONS) + 1)
            sums.add(torch.cat(documents), torch.stack([*terms, used.sum(dim=1)], dim=1))
            found[name] = {
                "mass": [_estimate(sums, ratio(i, len(FRACTIONS)), self.work.options.seed) for i in range(3)],
                "l0": float(used.sum() / len(used)),
                "n_documents": len(sums),
            }
        return found

    def labels(self) -> dict[str, Any]:
        """Precision by quarter of the latents that tell a label on training documents, judged on held-out ones."""
        on = self.made[0]
        found: dict[str, Any] = {}
        for name, (d, coder) in self.coders().items():
            arm = {} if name.endswith("encoder") else {"coder": "pursuit", "k": K}
            table = best_latents(d, on.store, n_tokens=self.plan.n_coded * 2, **arm)  # type: ignore[arg-type]
            told = [r for r in table.rows if r.auroc_train >= TOLD and r.n_positive_train >= 50]
            found[name] = self._by_labels(d, coder, [(r.feature, r.label, r.latent) for r in told])
        return found

    def _by_labels(
        self, d: AbstractDictionary, coder: Callable[[Tensor], SparseCode], told: list[tuple[str, str, int]]
    ) -> dict[str, Any]:
        on, plan = self.made[0], self.plan
        part = part_of(on.store, "heldout")
        latents = torch.tensor(sorted({latent for _, _, latent in told}))
        values, documents, labels = [], [], []
        for block, x in batches(part, on.site, row_blocks(len(part), 2048, plan.n_coded * 4), d.atoms.device):
            with torch.no_grad():
                values.append(coder(x).to_dense()[:, latents])
            documents.append(part.tokens(block).document_ids)
            labels.append(part.labels(block))
        all_values, ids = torch.cat(values), torch.cat(documents)
        sums = DocumentSums(13)
        n_used = 0
        for feature, label, latent in told:
            known = torch.cat([block[feature] for block in labels])
            column = all_values[:, int((latents == latent).nonzero()[0, 0])]
            asked = (known >= 0) & (column != 0)
            if int(asked.sum()) < 20:
                continue
            n_used += 1
            right = (known == int(label)).double()
            base = float(right[known >= 0].mean())
            quarter = quarters(column[asked])
            terms = torch.zeros(int(asked.sum()), 13, dtype=torch.float64)
            rows = torch.arange(len(terms))
            terms[rows, quarter] = right[asked]
            terms[rows, 4 + quarter] = 1
            terms[rows, 8 + quarter] = base
            sums.add(ids[asked], terms)
        seed = self.work.options.seed
        chance = partial(_share_less, 8, 4)
        return {
            "precision": [_estimate(sums, ratio(i, 4 + i), seed) for i in range(4)],
            "chance": float(chance(sums.sums.sum(dim=0))),
            "weakest - chance": _estimate(sums, partial(_weakest_less_chance), seed),
            "n_latents": n_used,
            "n_documents": len(sums),
        }

    def thresholds(self, name: str) -> Any:
        """FVU and loss of codes cut to an L0 by a threshold, by rank and by pursuit."""
        on, dictionaries = self.made
        return compare_coders(
            dictionaries[name],
            on.store,
            self.plan.ks,
            ("encoder", "topk", "thresholded", "refit", "pursuit"),
            model=on.lm if on.lm.has_causal_loss else None,
            n_tokens=self.plan.n_coded // 2,
            loss_tokens=2_048,
            seed=self.work.options.seed,
            progress=self.work.progress,
        ).model_dump(mode="json")


@torch.no_grad()
def _pursuit(d: AbstractDictionary, x: Tensor) -> SparseCode:
    return gradient_pursuit(x - d.b_dec, d.atoms, K)


def _share_less(above: int, below: int, s: Tensor) -> Tensor:
    return s[..., above] / s[..., below]


def _weakest_less_chance(s: Tensor) -> Tensor:
    """Precision of the weakest quarter minus that of guessing, at the same mixture of labels."""
    return (s[..., 0] - s[..., 8]) / s[..., 4]


def _estimate(sums: DocumentSums, statistic: Callable[[Tensor], Tensor], seed: int) -> Any:
    return estimate(sums, statistic, n_resamples=1000, level=0.95, seed=seed).model_dump()


def _planted_means(draws: list[Any], coder: str, what: str, i: int) -> Effect:
    return mean_effect([d[coder][what][i] for d in draws], coder, "share, over draws")


def _better_than_chance(planted: Mapping[str, Any], labels: Mapping[str, Any]) -> Verdict:
    effects = [
        mean_effect(
            [d["encoder, threshold"]["precision"][0] - 10 / 512 for d in draws],
            f"planted, {name}: encoder's weakest quarter - chance",
            "precision, over draws",
        )
        for name, draws in planted.items()
    ]
    effects += [
        effect_of(Estimate(**found["weakest - chance"]), f"{name}: weakest quarter - chance", found["n_documents"],
                  "precision against labels, over documents")
        for name, found in labels.items() if name.endswith("encoder")
    ]  # fmt: skip
    tops = "; ".join(
        f"{name}: {found['precision'][0]['value']:.2f} against {found['precision'][3]['value']:.2f} in the "
        "strongest and "
        f"{found['chance']:.2f} by chance" for name, found in labels.items() if name.endswith("encoder")
    )  # fmt: skip
    planted_tops = "; ".join(
        f"{name}: {_planted_means(draws, 'encoder, threshold', 'precision', 0).value:.2f} against "
        f"{_planted_means(draws, 'encoder, threshold', 'precision', 3).value:.2f}"
        for name, draws in planted.items()
    )
    return Verdict(
        question="Are the weakest quarter of an encoder's active values right more often than chance?",
        answer=all_on_one_side(effects, wanted=1, on="the data"),
        because="Precision of the weakest quarter against the strongest, planted: "
        f"{planted_tops} (chance {10 / 512:.2f}). " + (f"Against labels: {tops}." if tops else ""),
        effects=effects,
        would_change=power_note(effects),
    )


def _fewer(planted: Mapping[str, Any], small: Mapping[str, Any]) -> Verdict:
    effects = [
        mean_effect(
            [d["pursuit"]["mass"][1] - d["encoder, threshold"]["mass"][1] for d in draws],
            f"planted, {name}",
            "share of active values below 0.1, pursuit - encoder, over draws",
        )
        for name, draws in planted.items()
    ]
    for name in ("TopK", "JumpReLU"):
        mine, theirs = small[f"{name}, pursuit"], small[f"{name}, encoder"]
        effects.append(
            separate_difference(
                Estimate(**mine["mass"][1]), Estimate(**theirs["mass"][1]), f"{name} atoms", mine["n_documents"],
                "share of active values below 0.1, pursuit - encoder, over documents",
            )
        )  # fmt: skip
    return Verdict(
        question="Does pursuit have fewer small values than the encoder at equal L0?",
        answer=all_on_one_side(effects, wanted=-1, on="the dictionary"),
        because="Share of active values below a tenth of their latent's 99th percentile, pursuit less encoder: "
        + "; ".join(f"{e.name} {e}" for e in effects) + ".",
        effects=effects,
        would_change=power_note(effects),
    )  # fmt: skip


def _more_precise(planted: Mapping[str, Any], labels: Mapping[str, Any]) -> Verdict:
    effects = [
        mean_effect(
            [d["pursuit"]["precision"][0] - d["encoder, threshold"]["precision"][0] for d in draws],
            f"planted, {name}",
            "precision of the weakest quarter, pursuit - encoder, over draws",
        )
        for name, draws in planted.items()
    ]
    for name in ("TopK", "JumpReLU") if labels else ():
        mine, theirs = labels[f"{name}, pursuit"], labels[f"{name}, encoder"]
        effects.append(
            separate_difference(
                Estimate(**mine["precision"][0]), Estimate(**theirs["precision"][0]), f"{name} atoms, labels",
                mine["n_documents"], "precision of the weakest quarter, pursuit - encoder, over documents",
            )
        )  # fmt: skip
    return Verdict(
        question="Are pursuit's weakest values right more often than the encoder's?",
        answer=all_on_one_side(effects, wanted=1, on="what counts as right: planted truth, or labels"),
        because="; ".join(f"{e.name}: {e}" for e in effects) + ".",
        effects=effects,
        would_change=power_note(effects),
    )


def _threshold(sweep: Mapping[str, Comparison]) -> Verdict:
    effects = []
    for name, c in sweep.items():
        arms = {(a.arm, a.k): a for a in c.arms}
        for k in dict.fromkeys(a.k for a in c.arms):
            effects.append(
                separate_difference(arms["thresholded", k].fvu, arms["pursuit", k].fvu, f"{name} at k = {k}",
                                    c.n_documents, "FVU, thresholded - pursuit, over documents")
            )  # fmt: skip
    return Verdict(
        question="Would a threshold on the encoder do as well as pursuit, at equal mean L0?",
        answer=all_on_one_side(effects, wanted=-1, on="the dictionary and k"),
        because="FVU of the thresholded encoder minus that of pursuit: "
        + "; ".join(f"{e.name} {e}" for e in effects) + ".",
        effects=effects,
        would_change=power_note(effects),
    )  # fmt: skip


def _planted_table(planted: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, draws in planted.items():
        for coder in draws[0]:
            mass = [str(_planted_means(draws, coder, "mass", i)) for i in range(3)]
            precision = [_planted_means(draws, coder, "precision", i).value for i in range(4)]
            rows.append([name, coder, *mass, *precision])
    return Table(
        title=f"Planted signals (512 atoms in 64 d, k 10, noise 0.05), {len(next(iter(planted.values())))} draws",
        columns=["setting", "coder", *(f"below {q}" for q in FRACTIONS), *(f"precision, {q}" for q in QUARTERS)],
        rows=rows,
        note="Below q: share of active values under q times their latent's 99th percentile. Quarters are of "
        "these ratios. "
        f"Chance: {10 / 512:.3f}.",
    )


def _small_table(small: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [name, found["l0"], *(str(effect_of(Estimate(**e), "", 1, "")) for e in found["mass"])]
        for name, found in small.items()
    ]
    n = next(iter(small.values()))["n_documents"]
    return Table(
        title=f"Small values on held-out activations, intervals over {n} documents",
        columns=["coder", "L0", *(f"share below {q}" for q in FRACTIONS)],
        rows=rows,
    )


def _label_table(labels: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [name, found["n_latents"], *(str(effect_of(Estimate(**e), "", 1, "")) for e in found["precision"]),
         found["chance"]]
        for name, found in labels.items()
    ]  # fmt: skip
    return Table(
        title="Precision against labels, by quarter of a latent's values on held-out documents",
        columns=["coder", "questions", *QUARTERS, "chance"],
        rows=rows,
        note=f"Questions: classes of labels that some latent tells with AUROC of {TOLD} or more on training "
        "documents; each "
        "coder's own best latents. Chance: share of the class among the tokens asked.",
    )


def _sweep_table(name: str, c: Comparison) -> Table:
    rows: list[list[Cell]] = [
        [str(a.k), a.arm, a.l0, str(a.fvu), "" if a.loss_added is None else str(a.loss_added)] for a in c.arms
    ]
    return Table(
        title=f"{name} dictionary at re-matched L0: {c.n_tokens:,} tokens of {c.n_documents} documents",
        columns=["k", "arm", "L0", "FVU", "loss added, nats"],
        rows=rows,
        note=c.no_loss_because or "",
    )


def _quarter_panel(planted: Mapping[str, Any], labels: Mapping[str, Any]) -> Panel:
    draws = next(iter(planted.values()))
    short = ["1 (weakest)", "2", "3", "4"]
    lines = [
        Line(name=f"planted, {coder}", x=list(short),
             y=[_planted_means(draws, coder, "precision", i).value for i in range(4)])
        for coder in ("encoder, threshold", "pursuit")
    ]  # fmt: skip
    for name, found in labels.items():
        es = [Estimate(**e) for e in found["precision"]]
        lines.append(Line(name=f"labels, {name}", x=list(short), y=[e.value for e in es],
                          low=[e.value if e.low is None else e.low for e in es],
                          high=[e.value if e.high is None else e.high for e in es]))  # fmt: skip
    return Panel(title="right, by size of the value", x_label="quarter", y_label="precision", lines=lines)


def _mass_panel(planted: Mapping[str, Any], small: Mapping[str, Any]) -> Panel:
    lines = [
        Line(name=f"planted, {coder}", x=list(FRACTIONS),
             y=[_planted_means(next(iter(planted.values())), coder, "mass", i).value for i in range(3)])
        for coder in ("encoder, threshold", "pursuit")
    ]  # fmt: skip
    lines += [Line(name=n, x=list(FRACTIONS), y=[e["value"] for e in f["mass"]]) for n, f in small.items()]
    return Panel(title="small values", x_label="below this share of the latent's 99th percentile",
                 y_label="share of active values", lines=lines)  # fmt: skip


def _sweep_panel(c: Comparison) -> Panel:
    lines = []
    for name in dict.fromkeys(a.arm for a in c.arms):
        arms = sorted((a for a in c.arms if a.arm == name), key=lambda a: a.l0)
        lines.append(Line(name=name, x=[a.l0 for a in arms], y=[a.fvu.value for a in arms],
                          low=[a.fvu.value if a.fvu.low is None else a.fvu.low for a in arms],
                          high=[a.fvu.value if a.fvu.high is None else a.fvu.high for a in arms]))  # fmt: skip
    return Panel(title="JumpReLU dictionary, re-matched L0", x_label="L0", y_label="FVU", lines=lines, y_log=True)


def _method(plan: Plan, labelled: bool) -> list[str]:
    said = [
        f"Planted: {plan.seeds} draws of {plan.signals:,} signals, with true weights bounded away from 0 and "
        "with weights "
        "that are often small; the encoder keeps inner products above one threshold, set for a mean L0 of the true 10.",
        f"Model: a TopK and a JumpReLU dictionary (L0 {K}), trained on {plan.n_trained:,} activations; their "
        "own codes, "
        f"and gradient pursuit of {K} steps over the same atoms.",
        "The size of a value is its ratio to the 99th percentile of its own latent's values.",
        "Thresholds: positive pre-activations above one threshold, set on training documents for a mean L0 of k.",
        "Differences between coders use the ends of two separate intervals, which is too wide, not too narrow.",
        "Decided by, fixed beforehand: the weakest quarter's precision less chance; the share of values below "
        "0.1, pursuit "
        "less encoder; FVU of thresholded less pursuit; each must lie on one side of 0 in every case.",
    ]
    if not labelled:
        said.append("This model's texts carry no labels, so that precision is known on planted signals only.")
    return said
