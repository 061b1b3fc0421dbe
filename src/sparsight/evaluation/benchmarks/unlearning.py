"""Unlearning: can one skill be taken from the model by pushing latents down, while the others stay?"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.record import Benchmark, Cell, Score
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.record_values import Resampling, ratio
from sparsight.evaluation.splice import replace_counted
from sparsight.models import Site, Tokens

_RANDOM = 0x0F7
KEEP = 0.99  # share of the accuracy on what is to be kept that a setting must leave
QUESTION = "how far can one skill be unlearnt by pushing its latents down, if the others must keep 99 % of theirs?"


@dataclass(frozen=True, eq=False)
class Exam:
    """Questions: places where the next token is settled by the text.

    Attributes:
        tokens: Contexts.
        asked: Whether the token after this one is a question; one place fewer than tokens.
        documents: Document of each context.
    """

    tokens: Tokens
    asked: Bool[Tensor, "n places"]
    documents: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, rows: Tensor) -> "Exam":
        return Exam(self.tokens[rows], self.asked[rows], self.documents[rows])


@dataclass(frozen=True)
class Pushing:
    """What is done to the model.

    Attributes:
        most_retained: Largest density, on what is to be kept, of a latent that may be pushed down.
        n: Latents pushed down: the densest on what is to be forgotten.
        strength: Where such a latent is active it is set to minus this many times its own 99th percentile on what is to
            be forgotten. Latents differ in scale: a common number would mean another strength for each dictionary.
    """

    most_retained: float
    n: int
    strength: float


GRID = tuple(Pushing(r, n, s) for r in (0.001, 0.01, 0.1) for n in (5, 20) for s in (1.0, 4.0))


@torch.no_grad()
def activity(
    model: Any, dictionary: AbstractDictionary, site: Site, exam: Exam
) -> tuple[Float64[Tensor, " m"], Float[Tensor, " m"]]:
    """Density of each latent over the counted tokens of an exam, and the 99th percentile of its active values."""
    values = []
    for rows in torch.split(torch.arange(len(exam)), 32):
        tokens = exam.tokens[rows].to(model.device)
        x = model.activations(tokens, [site])[site][tokens.counted]
        values.append(dictionary.encode(x.to(dictionary.atoms)).to_dense().cpu())
    z = torch.cat(values)
    ordered = z.sort(dim=0).values
    active = (z > 0).sum(dim=0)
    # The nearest rank among the active ones, which are the last of each column.
    place = (len(z) - (active.double() * 0.01).floor().long() - 1).clamp_min(0)
    scale = ordered.gather(0, place[None])[0]
    return active.double() / len(z), scale


def chosen(forget: Float64[Tensor, " m"], retain: Float64[Tensor, " m"], rule: Pushing) -> Int64[Tensor, " n"]:
    """The latents a rule pushes down: rare on what is to be kept, in use and densest on what is to be forgotten."""
    allowed = (retain <= rule.most_retained) & (forget > 0)
    order = forget.masked_fill(~allowed, -1).argsort(descending=True, stable=True)
    return order[: min(rule.n, int(allowed.sum()))]


def pushed(
    dictionary: AbstractDictionary, latents: Int64[Tensor, " k"], floor: Float[Tensor, " k"]
) -> Callable[[Tensor], Tensor]:
    """An edit of activations: where a latent is active, it is set to `floor`; the dictionary's error stays."""
    atoms = dictionary.atoms.detach()[latents]

    def edit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        with torch.no_grad():
            z = dictionary.encode(x.to(atoms)).to_dense()[:, latents]
        change = torch.where(z > 0, floor.to(z) - z, 0.0)
        return x + (change @ atoms).to(x)

    return edit


@torch.no_grad()
def answers(
    model: Any, exam: Exam, site: Site, edit: Callable[[Tensor], Tensor] | None
) -> tuple[Float64[Tensor, " q"], Int64[Tensor, " q"]]:
    """Whether each question is answered right (1 or 0), and its document."""
    right, documents = [], []
    for rows in torch.split(torch.arange(len(exam)), 32):
        part = exam[rows]
        tokens = part.tokens.to(model.device)
        edits = None if edit is None else {site: replace_counted(edit, tokens.counted)}
        said = model.logits(tokens, edits=edits)[:, :-1].argmax(dim=-1).cpu()
        right.append((said == part.tokens.ids[:, 1:].cpu())[part.asked].double())
        documents.append(part.documents[:, None].expand(part.asked.shape)[part.asked])
    return torch.cat(right), torch.cat(documents)


def unlearning(
    model: Any,
    dictionary: AbstractDictionary,
    site: Site,
    forget: tuple[Exam, Exam],
    retain: tuple[Exam, Exam],
    *,
    grid: Sequence[Pushing] = GRID,
    resampling: Resampling | None = None,
    seed: int = 0,
    recorded: Mapping[str, Cell] | None = None,
) -> Benchmark:
    """Choose the setting on training documents, judge it on held-out ones.

    Args:
        model: Answers.
        dictionary: Whose latents are pushed down.
        site: Where.
        forget: Questions to be forgotten: of training documents, of held-out ones.
        retain: Questions to be kept: the same.
        grid: Settings to choose from: that which forgets most on training documents and keeps 99 % there.
        resampling: How intervals are drawn, over held-out documents.
        seed: Of the random latents.
        recorded: To be recorded.
    Raises:
        UndefinedMetric: the model answers fewer than half of the questions to be forgotten.
    """
    began = time.perf_counter()
    resampling = resampling or Resampling()
    before, _ = answers(model, forget[0], site, None)
    kept_before, _ = answers(model, retain[0], site, None)
    if len(before) == 0 or before.mean() < 0.5:
        share = float(before.mean()) if len(before) else 0.0
        raise UndefinedMetric(f"the model answers {share:.2f} of {len(before)} questions: there is nothing to unlearn")
    dense_forget, scale = activity(model, dictionary, site, forget[0])
    dense_retain, _ = activity(model, dictionary, site, retain[0])
    rows: list[dict[str, Cell]] = []
    best: tuple[float, Pushing | None, Tensor] = (float(before.mean()), None, torch.zeros(0, dtype=torch.int64))
    for rule in grid:
        latents = chosen(dense_forget, dense_retain, rule)
        edit = pushed(dictionary, latents, -rule.strength * scale[latents])
        left = float(answers(model, forget[0], site, edit)[0].mean())
        kept = float(answers(model, retain[0], site, edit)[0].mean())
        allowed = kept >= KEEP * float(kept_before.mean())
        rows.append(
            {
                "most_retained": rule.most_retained,
                "n": rule.n,
                "strength": rule.strength,
                "latents": len(latents),
                "forget_accuracy": left,
                "retain_accuracy": kept,
                "allowed": allowed,
            }
        )
        if allowed and left < best[0]:
            best = (left, rule, latents)
    score, floors = _judge(model, dictionary, site, forget[1], retain[1], best, scale, dense_forget, resampling, seed)
    scores = tuple(part.model_copy(update={"floors": floors[i]}) for i, part in enumerate(score))
    value = scores[0].value
    return Benchmark(
        benchmark="unlearning",
        question=QUESTION,
        settings={"settings": len(grid), "chosen": str(best[1]), "keep": KEEP, "seed": seed, **(recorded or {})},
        scores=scores,
        details=tuple(rows),
        left_out=() if best[1] else ("no setting forgets anything and keeps 99 %: the model is left as it is",),
        metrics={"unlearning": {} if value is None else {"unlearning_score": value.value}},
        seconds=time.perf_counter() - began,
    )


def _judge(
    model: Any,
    dictionary: AbstractDictionary,
    site: Site,
    forget: Exam,
    retain: Exam,
    best: tuple[float, Pushing | None, Tensor],
    scale: Tensor,
    dense_forget: Tensor,
    resampling: Resampling,
    seed: int,
) -> tuple[list[Score], list[dict[str, float]]]:
    """The chosen setting, nothing, and as many random latents at the same strength, on held-out documents."""
    _, rule, latents = best
    live = (dense_forget > 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM))
    random = live[torch.randperm(len(live), generator=generator)[: len(latents)]]
    edits: dict[str, Callable[[Tensor], Tensor] | None] = {"nothing": None}
    for name, which in (("random latents", random), ("latents", latents)):
        edits[name] = pushed(dictionary, which, -rule.strength * scale[which]) if rule is not None else None
    means: dict[str, tuple[float, float]] = {}
    for name, edit in edits.items():
        forgot, forget_documents = answers(model, forget, site, edit)
        kept, retain_documents = answers(model, retain, site, edit)
        means[name] = 1 - float(forgot.mean()), float(kept.mean())
    estimates = []
    for values, documents in ((1 - forgot, forget_documents), (kept, retain_documents)):
        sums = DocumentSums(2)
        sums.add(documents, torch.stack([values, torch.ones_like(values)], dim=1))
        estimates.append(resampling.estimate(sums, ratio(0, 1)))
    found = [
        Score(name="forgotten: share of questions answered wrong", value=estimates[0], better="higher"),
        Score(name="kept: share of the other questions answered right", value=estimates[1], better="higher"),
    ]
    return found, [{arm: means[arm][i] for arm in ("nothing", "random latents")} for i in (0, 1)]
