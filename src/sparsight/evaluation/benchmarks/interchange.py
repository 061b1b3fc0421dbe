"""Cause and isolation: do latents carry one attribute of an answer, so that it can be exchanged and the rest stays?"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.examples import dense
from sparsight.evaluation.benchmarks.record import Benchmark, Cell, Score, mean
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.record_values import Estimate, Resampling, ratio
from sparsight.models import Site, Tokens

_PAIRS, _RANDOM = 0x9A1, 0x9A2
QUESTION = (
    "exchanging a mask of latents between two prompts: does one attribute of the answer change, and the other stay?"
)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts whose next token tells two attributes.

    Attributes:
        tokens: Prompts, padded on the right.
        last: Place of each prompt's last token: where latents are exchanged and the answer is read.
        attributes: Value of both attributes of each prompt.
        answers: Token id of the answer for each pair of values; all different, or an answer would tell nothing.
        documents: Document of each prompt.
        names: Of the two attributes.
    """

    tokens: Tokens
    last: Int64[Tensor, " n"]
    attributes: Int64[Tensor, "n 2"]
    answers: Int64[Tensor, "a b"]
    documents: Int64[Tensor, " n"]
    names: tuple[str, str]

    def __post_init__(self) -> None:
        flat = self.answers.flatten()
        if len(torch.unique(flat)) != len(flat):
            raise ValueError("two answers share a token: leave those values out, or no outcome can be told")

    def __len__(self) -> int:
        return len(self.last)

    def __getitem__(self, rows: Tensor) -> "Prompts":
        return Prompts(
            self.tokens[rows], self.last[rows], self.attributes[rows], self.answers, self.documents[rows], self.names
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of each pair.

    Attributes:
        cause: The target attribute became the source's.
        isolation: The other attribute stayed the base's.
    """

    cause: Bool[Tensor, " n"]
    isolation: Bool[Tensor, " n"]

    @staticmethod
    def of(
        answered: Int64[Tensor, " n"], base: Int64[Tensor, "n 2"], source: Int64[Tensor, "n 2"], n_b: int, target: int
    ) -> "Outcome":
        """From the place of the answer in the flattened table of answers."""
        values = torch.stack([answered // n_b, answered % n_b], dim=1)
        other = 1 - target
        return Outcome(values[:, target] == source[:, target], values[:, other] == base[:, other])


class Exchange:
    """A model, a dictionary and a site: runs prompts with latents exchanged at their last token.

    Args:
        model: With `logits(tokens, edits=...)` and `activations`.
        dictionary: Whose latents are exchanged; its error stays the base's.
        site: Where.
        prompts: All prompts; activations at their last tokens are read once.
    """

    def __init__(self, model: Any, dictionary: AbstractDictionary, site: Site, prompts: Prompts) -> None:
        self.model, self.site, self.prompts = model, site, prompts
        self.atoms = dictionary.atoms.detach()
        x = []
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(prompts)), 32):
                here = model.activations(prompts.tokens[rows].to(model.device), [site])[site]
                x.append(here[torch.arange(len(rows)), prompts.last[rows]].cpu())
        self.x = torch.cat(x).float()
        self.z = dense(lambda few: dictionary.encode(few.to(self.atoms)), self.x)

    def delta(
        self, base: Int64[Tensor, " n"], source: Int64[Tensor, " n"], mask: Float[Tensor, " m"]
    ) -> Float[Tensor, "n d"]:
        """What is added to the base's activations: the masked difference of the codes, decoded."""
        return ((self.z[source] - self.z[base]) * mask) @ self.atoms

    def answer_logits(self, base: Int64[Tensor, " n"], delta: Float[Tensor, "n d"]) -> Float[Tensor, "n answers"]:
        """Logits of every answer after the base prompts, with something added at their last token."""
        prompts = self.prompts[base]
        longest = int(prompts.last.max()) + 1
        tokens = Tokens(
            *(part[:, :longest] for part in (prompts.tokens.ids, prompts.tokens.mask, prompts.tokens.special))
        ).to(self.model.device)
        rows = torch.arange(len(base))

        def add(x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
            put = torch.zeros_like(x)
            put[rows, prompts.last] = delta.to(x)
            return x + put

        logits = self.model.logits(tokens, edits={self.site: add})
        answers: Tensor = logits[rows, prompts.last][:, prompts.answers.flatten().to(logits.device)]
        return answers.cpu()

    @torch.no_grad()
    def outcome(
        self, base: Int64[Tensor, " n"], source: Int64[Tensor, " n"], delta: Float[Tensor, "n d"], target: int
    ) -> Outcome:
        """Cause and isolation of every pair."""
        answered = torch.cat(
            [
                self.answer_logits(base[rows], delta[rows]).argmax(dim=1)
                for rows in torch.split(torch.arange(len(base)), 64)
            ]
        )
        attributes, n_b = self.prompts.attributes, self.prompts.answers.shape[1]
        return Outcome.of(answered, attributes[base], attributes[source], n_b, target)


def draw_pairs(prompts: Prompts, rows: Int64[Tensor, " k"], n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bases and sources that differ in both attributes, among some prompts.

    Raises:
        UndefinedMetric: there are none.
    """
    generator = torch.Generator().manual_seed(mix_seed(seed, _PAIRS))
    base = rows[torch.randint(len(rows), (20 * n,), generator=generator)]
    source = rows[torch.randint(len(rows), (20 * n,), generator=generator)]
    apart = (prompts.attributes[base] != prompts.attributes[source]).all(dim=1)
    if not bool(apart.any()):
        raise UndefinedMetric("no two prompts differ in both attributes; give prompts of more values")
    return base[apart][:n], source[apart][:n]


def learn_mask(
    exchange: Exchange,
    base: Int64[Tensor, " n"],
    source: Int64[Tensor, " n"],
    target: int,
    *,
    n_steps: int = 40,
    batch_size: int = 16,
    learning_rate: float = 0.3,
    size_penalty: float = 0.05,
    seed: int = 0,
) -> Bool[Tensor, " m"]:
    """A mask of latents that exchanges the target attribute, learnt from training pairs.

    Mask logits start at 0; their sigmoid's temperature falls from 1 to 0.05, so that the mask ends close to binary.
    Minimised is the cross-entropy of the answer that has the target attribute of the source and the other of the base,
    plus `size_penalty` times the share of the live latents that is in the mask: of two masks that do the same, the
    smaller is the better description.
    """
    attributes, n_b = exchange.prompts.attributes, exchange.prompts.answers.shape[1]
    live = (exchange.z[torch.cat([base, source])] != 0).any(dim=0).nonzero()[:, 0]
    logits = torch.zeros(len(live), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    generator = torch.Generator().manual_seed(mix_seed(seed, target))
    for step in range(n_steps):
        rows = torch.randint(len(base), (min(batch_size, len(base)),), generator=generator)
        temperature = 0.05 ** (step / max(1, n_steps - 1))
        with torch.enable_grad():
            soft = torch.sigmoid(logits / temperature)
            mask = torch.zeros(exchange.z.shape[1]).index_put((live,), soft)
            answers = exchange.answer_logits(base[rows], exchange.delta(base[rows], source[rows], mask))
            wanted = attributes[base[rows]].clone()
            wanted[:, target] = attributes[source[rows], target]
            loss = torch.nn.functional.cross_entropy(answers, wanted[:, 0] * n_b + wanted[:, 1])
            (gradient,) = torch.autograd.grad(loss + size_penalty * soft.mean(), logits)
        logits.grad = gradient
        optimizer.step()
    found = torch.zeros(exchange.z.shape[1], dtype=torch.bool)
    found[live[logits.detach() > 0]] = True
    return found


def subspace_delta(
    exchange: Exchange, train: Int64[Tensor, " k"], base: Int64[Tensor, " n"], source: Int64[Tensor, " n"], target: int
) -> Float[Tensor, "n d"]:
    """The ceiling without a dictionary: exchange in the span of the target's class means (the other averaged out)."""
    values, other = exchange.prompts.attributes[train, target], exchange.prompts.attributes[train, 1 - target]
    x = exchange.x[train].double()
    for value in torch.unique(other).tolist():
        x[other == value] = x[other == value] - x[other == value].mean(dim=0)
    means = torch.stack([x[values == value].mean(dim=0) for value in torch.unique(values).tolist()])
    centred = means - means.mean(dim=0)
    _, sizes, basis = torch.linalg.svd(centred, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes[0]]
    apart = (exchange.x[source] - exchange.x[base]).double()
    moved: Tensor = ((apart @ basis.T) @ basis).float()
    return moved


def interchange(
    model: Any,
    dictionary: AbstractDictionary,
    site: Site,
    families: Sequence[Prompts],
    train_rows: Sequence[Tensor],
    *,
    n_train: int = 256,
    n_test: int = 256,
    n_steps: int = 40,
    resampling: Resampling | None = None,
    seed: int = 0,
    recorded: Mapping[str, Cell] | None = None,
    left_out: Sequence[str] = (),
) -> Benchmark:
    """Learn a mask for each attribute of each family of prompts, and exchange it on pairs of held-out documents.

    Args:
        model: Answers the prompts.
        dictionary: Whose latents are exchanged.
        site: Where.
        families: Prompts with their answers.
        train_rows: For each family, the prompts a mask may be learnt from; the others are for the test. No document
            and no prompt is on both sides.
        n_train: Pairs to learn from.
        n_test: Pairs to judge on.
        n_steps: Of the optimiser of the mask.
        resampling: How intervals are drawn, over the documents of the bases.
        seed: Of pairs, masks and random latents.
        recorded: To be recorded.
        left_out: What could not be made a family, and why.
    Raises:
        UndefinedMetric: there is no family with prompts on both sides.
    """
    began = time.perf_counter()
    resampling = resampling or Resampling()
    rows: list[dict[str, Cell]] = []
    skipped = list(left_out)
    documents = DocumentSums(3)
    for prompts, train in zip(families, train_rows, strict=True):
        test = torch.ones(len(prompts), dtype=torch.bool).index_fill(0, train, False).nonzero()[:, 0]
        try:
            pairs = draw_pairs(prompts, train, n_train, seed)
            judged = draw_pairs(prompts, test, n_test, seed)
        except (UndefinedMetric, RuntimeError) as error:
            skipped.append(f"{' and '.join(prompts.names)}: {error}")
            continue
        exchange = Exchange(model, dictionary, site, prompts)
        for target in (0, 1):
            mask = learn_mask(exchange, *pairs, target, n_steps=n_steps, seed=seed)
            for arm, delta in _arms(exchange, train, judged, mask, target, seed).items():
                outcome = exchange.outcome(*judged, delta, target)
                cause, isolation = outcome.cause.double(), outcome.isolation.double()
                if arm == "mask":
                    terms = torch.stack([cause, isolation, torch.ones_like(cause)], dim=1)
                    documents.add(prompts.documents[judged[0]], terms)
                rows.append(
                    {
                        "attribute": prompts.names[target],
                        "kept": prompts.names[1 - target],
                        "arm": arm,
                        "latents": int(mask.sum()) if arm in ("mask", "random latents") else None,
                        "cause": float(cause.mean()),
                        "isolation": float(isolation.mean()),
                        "pairs": len(judged[0]),
                    }
                )
    if not rows:
        raise UndefinedMetric(f"interchange has no family of prompts: {'; '.join(skipped[:3]) or 'none was given'}")
    return _benchmark(rows, documents, resampling, skipped, seed, recorded or {}, began)


def _arms(
    exchange: Exchange, train: Tensor, judged: tuple[Tensor, Tensor], mask: Bool[Tensor, " m"], target: int, seed: int
) -> dict[str, Float[Tensor, "n d"]]:
    base, source = judged
    live = (exchange.z != 0).any(dim=0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM, target))
    random = torch.zeros_like(mask)
    random[live[torch.randperm(len(live), generator=generator)[: int(mask.sum())]]] = True
    return {
        "nothing": torch.zeros(len(base), exchange.x.shape[1]),
        "mask": exchange.delta(base, source, mask.float()),
        "random latents": exchange.delta(base, source, random.float()),
        "all latents": exchange.delta(base, source, torch.ones(len(mask))),
        "whole activation": exchange.x[source] - exchange.x[base],
        "span of class means": subspace_delta(exchange, train, base, source, target),
    }


def _benchmark(
    rows: Sequence[dict[str, Cell]],
    documents: DocumentSums,
    resampling: Resampling,
    skipped: Sequence[str],
    seed: int,
    recorded: Mapping[str, Cell],
    began: float,
) -> Benchmark:
    def score(name: str, columns: Sequence[int], keys: Sequence[str]) -> Score:
        def both(arm: str) -> float:
            return sum(mean(rows, key, arm=arm) for key in keys) / len(keys)

        estimate: Estimate = resampling.estimate(
            documents,
            lambda s: sum(ratio(column, 2)(s) for column in columns) / len(columns),  # type: ignore[arg-type,return-value]
        )
        return Score(
            name=name,
            value=estimate,
            better="higher",
            floors={arm: both(arm) for arm in ("nothing", "random latents", "all latents")},
            ceilings={"span of class means": both("span of class means")},
        )

    scores = (
        score("disentanglement: mean of cause and isolation", (0, 1), ("cause", "isolation")),
        score("cause", (0,), ("cause",)),
        score("isolation", (1,), ("isolation",)),
    )
    metrics = {
        "disentanglement_score": (mean(rows, "cause", arm="mask") + mean(rows, "isolation", arm="mask")) / 2,
        "cause_score": mean(rows, "cause", arm="mask"),
        "isolation_score": mean(rows, "isolation", arm="mask"),
    }
    return Benchmark(
        benchmark="ravel",
        question=QUESTION,
        settings={"seed": seed, **recorded},
        scores=scores,
        details=tuple(rows),
        left_out=tuple(skipped),
        metrics={"ravel": metrics},
        seconds=time.perf_counter() - began,
    )
