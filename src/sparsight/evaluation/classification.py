"""How well a latent tells one class of tokens from the rest: AUROC, and F1 at a threshold chosen elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric


def auroc(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """Probability that a positive scores above a negative, ties counting half; in `[0, 1]`, 0.5 is chance.

    By ranks: `(sum of positives' mid-ranks - P (P + 1) / 2) / (P N)`, exact with ties.

    Raises:
        UndefinedMetric: a class is empty.
    """
    n_positive, n_negative = _class_sizes(labels)
    _, place, counts = _ties(scores)
    # The mid-rank of a block of ties that ends at rank `e` and holds `c` scores is e - (c - 1) / 2.
    mid_ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    total = mid_ranks[place[labels]].sum().item()
    return float((total - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


@dataclass(frozen=True, eq=False)
class SparseColumns:
    """The non-zero entries of many codes, sorted by latent and then by value.

    The columns of a code matrix, ready for rank statistics: zeros are never stored, they are one block of ties.

    Attributes:
        rows: Token of each entry.
        values: Its value, never 0.
        starts: Entries of latent `j` are `starts[j]:starts[j + 1]`.
        n_rows: Tokens.
    """

    rows: Int64[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    starts: Int64[Tensor, " bounds"]
    n_rows: int

    @staticmethod
    def of(codes: Sequence[SparseCode]) -> "SparseColumns":
        """Columns of the codes, one below the other.

        Raises:
            ValueError: no code came, or the codes are over different dictionaries.
        """
        widths = {code.n_latents for code in codes}
        if len(widths) != 1:
            raise ValueError(f"codes must share one n_latents, got {sorted(widths)}")
        n_latents = widths.pop()
        rows, latents, values, before = [], [], [], 0
        for code in codes:
            row, slot = code.values.nonzero(as_tuple=True)
            rows.append(row + before)
            latents.append(code.indices[row, slot])
            values.append(code.values[row, slot])
            before += len(code)
        all_latents, all_values = torch.cat(latents), torch.cat(values)
        by_value = all_values.argsort(stable=True)
        order = by_value[all_latents[by_value].argsort(stable=True)]
        per_latent = torch.bincount(all_latents, minlength=n_latents)
        starts = torch.cat([per_latent.new_zeros(1), per_latent.cumsum(0)])
        return SparseColumns(torch.cat(rows)[order], all_values[order], starts, before)

    @property
    def n_latents(self) -> int:
        """Columns."""
        return len(self.starts) - 1

    def column(self, latent: int) -> Float[Tensor, " n_rows"]:
        """One latent's value at every token."""
        entries = slice(int(self.starts[latent]), int(self.starts[latent + 1]))
        dense = self.values.new_zeros(self.n_rows)
        dense[self.rows[entries]] = self.values[entries]
        return dense

    @cached_property
    def latents(self) -> Int64[Tensor, " entries"]:
        """Latent of each entry."""
        return torch.arange(self.n_latents).repeat_interleave(self.starts.diff())

    @cached_property
    def _ties(self) -> tuple[Int64[Tensor, " entries"], Int64[Tensor, " entries"]]:
        """First entry of the block of ties that each entry is in, and the entry after its last."""
        n = len(self.values)
        new = torch.ones(n, dtype=torch.bool)
        new[1:] = (self.latents[1:] != self.latents[:-1]) | (self.values[1:] != self.values[:-1])
        bounds = torch.cat([new.nonzero()[:, 0], torch.tensor([n])])
        block = new.cumsum(0) - 1
        return bounds[block], bounds[block + 1]

    def auroc(
        self, labels: Bool[Tensor, " n_rows"], defined: Bool[Tensor, " n_rows"] | None = None
    ) -> Float64[Tensor, " n_latents"]:
        """AUROC of every latent at once, exactly as `auroc` would give column by column.

        Time and memory go with the non-zero entries, not with `n_rows * n_latents`. A latent never in use scores 0.5.

        Args:
            labels: The class, one token each.
            defined: Tokens to count; all when not given.
        Raises:
            UndefinedMetric: a class is empty.
        """
        if defined is None:
            defined = torch.ones_like(labels)
        n_positive, n_negative = _class_sizes(labels[defined])
        # Entries of positive tokens, and how many entries of negative tokens come before each entry.
        positive = (labels & defined)[self.rows].nonzero()[:, 0]
        negative = (~labels & defined)[self.rows]
        before = torch.cat([self.starts.new_zeros(1), negative.cumsum(0)])
        owner = self.latents[positive]
        p, n = _count(owner, self.n_latents), before[self.starts].diff()
        # Twice the number of (positive, negative) pairs in the right order; ties count once. Integers: exact.
        zeros_p, zeros_n = n_positive - p, n_negative - n
        twice = zeros_p * zeros_n
        twice += 2 * zeros_n * _count(owner[self.values[positive] > 0], self.n_latents)
        twice += 2 * zeros_p * _count(self.latents[negative & (self.values < 0)], self.n_latents)
        # Among entries: those of the latent below the block count twice, those in the block once.
        first, after = (bound[positive] for bound in self._ties)
        pairs = before[first] + before[after] - 2 * before[self.starts[owner]]
        twice.index_add_(0, owner, pairs)
        return twice.double() / (2 * n_positive * n_negative)


@dataclass(frozen=True)
class Detection:
    """A latent read as a detector: positive where its value is at least `threshold`.

    Attributes:
        threshold: In the units of the latent's values.
        precision: Share of the tokens it fires on that are of the class, in `[0, 1]`; 0 when it never fires.
        recall: Share of the class it fires on, in `[0, 1]`.
        f1: `2 TP / (2 TP + FP + FN)`, in `[0, 1]`.
    """

    threshold: float
    precision: float
    recall: float
    f1: float


def best_threshold(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """The threshold with the largest F1; of equals the largest. To be chosen on other tokens than it is scored on.

    Candidates are the scores themselves, so that "everything is positive" is among them.

    Raises:
        UndefinedMetric: a class is empty.
    """
    n_positive, _ = _class_sizes(labels)
    values, place, counts = _ties(scores)
    positives = torch.bincount(place[labels], minlength=len(values))
    true_positive = positives.flip(0).cumsum(0).flip(0)  # at or above each value
    fired = counts.flip(0).cumsum(0).flip(0)
    f1 = 2 * true_positive.double() / (fired + n_positive)
    best = len(values) - 1 - int(f1.flip(0).argmax())
    return float(values[best])


def detect(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"], threshold: float) -> Detection:
    """Precision, recall and F1 of `scores >= threshold`.

    Raises:
        UndefinedMetric: a class is empty.
    """
    n_positive, _ = _class_sizes(labels)
    fired = scores >= threshold
    hits, n_fired = int((fired & labels).sum()), int(fired.sum())
    return Detection(
        threshold=threshold,
        precision=hits / n_fired if n_fired else 0.0,
        recall=hits / n_positive,
        f1=2 * hits / (n_fired + n_positive),
    )


def _ties(scores: Float[Tensor, " n"]) -> tuple[Float[Tensor, " u"], Int64[Tensor, " n"], Int64[Tensor, " u"]]:
    """Distinct scores in rising order, which of them each score is, and how often each occurs."""
    values, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    return values, place, counts


def _class_sizes(labels: Bool[Tensor, " n"]) -> tuple[int, int]:
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    if n_positive == 0 or n_negative == 0:
        raise UndefinedMetric(
            f"a detector needs tokens of both classes, got {n_positive} positive and {n_negative} negative"
        )
    return n_positive, n_negative


def _count(indices: Int64[Tensor, " m"], size: int) -> Int64[Tensor, " size"]:
    return torch.bincount(indices, minlength=size)
