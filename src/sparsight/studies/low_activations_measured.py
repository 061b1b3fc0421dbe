"""What the study of weakly active latents measures: sizes of values, and how often their latents are right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit, refit, threshold_code, threshold_for_l0
from sparsight.dictionaries import AbstractDictionary, JumpReLU, TopK
from sparsight.evaluation import DocumentSums, best_latents, compare_coders
from sparsight.evaluation.arms import Setting, make_arm
from sparsight.evaluation.evaluate import ratio
from sparsight.evaluation.reading import batches, part_of, row_blocks
from sparsight.evaluation.record import estimate
from sparsight.studies.planted import random_atoms, tied_encoder
from sparsight.studies.questions import within_languages
from sparsight.studies.subject import Subject, is_organism, subject, trained
from sparsight.studies.work import Work
from sparsight.training import Training

FRACTIONS = (0.05, 0.1, 0.2)
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


K = 16


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


def planted_values(least: float, plan: Plan, seed: int) -> list[dict[str, dict[str, list[float]]]]:
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


class Measured:
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

    def token_by_token(self, name: str) -> Any:
        """FVU of the thresholded encoder less that of others given its L0 in every single token."""
        on, dictionaries = self.made
        d, part = dictionaries[name], part_of(on.store, "heldout")
        train_part = part_of(on.store, "train")
        fit = row_blocks(len(train_part), 2048, 8_192)
        fitted = torch.cat([x for _, x in batches(train_part, on.site, fit, d.atoms.device)])
        blocks = row_blocks(len(part), 2048, self.plan.n_coded // 2)
        mean = torch.cat([x for _, x in batches(part, on.site, blocks, d.atoms.device)]).double().mean(dim=0)
        found: dict[str, Any] = {}
        for k in self.plan.ks:
            cut = make_arm("thresholded", Setting(d, False, k, lambda: fitted))
            chosen = make_arm("pursuit", Setting(d, False, k, lambda: fitted))
            sums = DocumentSums(4)
            for block, x in batches(part, on.site, blocks, d.atoms.device):
                code = cut(x, torch.full((len(x),), k))
                with torch.no_grad():
                    again = refit(x - d.b_dec, d.atoms, code.support())
                    lost = [(x - d.decode(c)).double().square().sum(dim=1) for c in (code, again, chosen(x, code.l0()))]
                terms = torch.stack([*lost, (x.double() - mean).square().sum(dim=1)], dim=1)
                sums.add(part.tokens(block).document_ids, terms)
            seed = self.work.options.seed
            found[str(k)] = {
                "fvu": [_estimate(sums, ratio(i, 3), seed) for i in range(3)],
                "as cut": _estimate(sums, partial(_less, 0, 2, 3), seed),
                "refitted": _estimate(sums, partial(_less, 1, 2, 3), seed),
                "n_documents": len(sums),
            }
        return found


def _less(first: int, second: int, below: int, s: Tensor) -> Tensor:
    return (s[..., first] - s[..., second]) / s[..., below]


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
