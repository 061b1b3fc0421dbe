"""Where the residual is: tokens in groups, by place in the context, by norm, by any label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.core_records import BreakdownRecord, GroupRecord
from sparsight.evaluation.record_values import Drawn, Resampling, ratio

POSITION, NORM = "position", "norm"
_RANGES = 12  # of positions: 0, 1, 2-3, 4-7, ..., 512-1023, 1024 and later
_COLUMNS = 4
_TOKENS, _LATENTS, _RESIDUAL, _CENTRED = range(_COLUMNS)


@dataclass(frozen=True, eq=False)
class Grouping:
    """A way to put tokens in groups.

    Attributes:
        by: What it goes by.
        names: Of the groups.
        assign: From activations, positions and labels to the group of each token; -1 for none.
    """

    by: str
    names: tuple[str, ...]
    assign: Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


def by_position() -> Grouping:
    """Ranges of the place in the context, each twice as long as the one before."""
    starts = [0, *(2**i for i in range(_RANGES - 1))]
    names = ["0", "1", *(f"{start} to {2 * start - 1}" for start in starts[2:-1]), f"{starts[-1]} and later"]
    edges = torch.tensor(starts[1:])
    return Grouping(POSITION, tuple(names), lambda x, places, labels: torch.bucketize(places.cpu(), edges, right=True))


def by_norm(edges: Float64[Tensor, " e"]) -> Grouping:
    """Ranges of the norm; inner edges in the units of the activations, rising."""
    ends = edges.tolist()
    names = [f"up to {ends[0]:.3g}"] if ends else ["all"]
    names += [f"{low:.3g} to {high:.3g}" for low, high in pairwise(ends)]
    names += [f"above {ends[-1]:.3g}"] if ends else []

    def assign(x: Tensor, places: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        return torch.bucketize(torch.linalg.vector_norm(x.double(), dim=1).cpu(), edges)

    return Grouping(NORM, tuple(names), assign)


def by_label(name: str, classes: Sequence[str]) -> Grouping:
    """Classes of a label."""
    return Grouping(name, tuple(classes), lambda x, places, labels: labels[name])


class Breakdown:
    """Sums of each group, for each document.

    Args:
        grouping: Which group a token is in.
    """

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping
        self._documents = DocumentSums(_COLUMNS * len(grouping.names))
        self._counts = torch.zeros(len(grouping.names), dtype=torch.int64)
        self._outside = 0

    def add(
        self,
        groups: Int64[Tensor, " labels"],
        document_ids: Int64[Tensor, " n"],
        latents: Float64[Tensor, " n"],
        residual_sq: Float64[Tensor, " n"],
        centred_sq: Float64[Tensor, " n"],
    ) -> None:
        """Add a batch.

        Raises:
            ValueError: a group is none of those named.
        """
        n_groups = len(self.grouping.names)
        if len(groups) != len(document_ids):
            raise ValueError(
                f"labels of {self.grouping.by!r} must be one for each token, got {len(groups)} for "
                f"{len(document_ids)} tokens; harvest the store again"
            )
        if len(groups) and int(groups.max()) >= n_groups:
            raise ValueError(f"{self.grouping.by!r} has {n_groups} classes, got class {int(groups.max())}")
        inside = groups >= 0
        columns = torch.stack([torch.ones_like(latents), latents, residual_sq, centred_sq], dim=1).cpu()
        wide = torch.zeros(len(groups), n_groups, _COLUMNS, dtype=torch.float64)
        rows = inside.nonzero()[:, 0]
        wide[rows, groups[rows]] = columns[rows]
        self._documents.add(document_ids, wide.flatten(1))
        self._counts += torch.bincount(groups[rows], minlength=n_groups)
        self._outside += len(groups) - len(rows)

    def weighted_fvu(self) -> float | None:
        """The FVU put together again from the groups; None if some tokens are in none."""
        total = self._documents.totals.view(-1, _COLUMNS).sum(dim=0)
        return None if self._outside else (total[_RESIDUAL] / total[_CENTRED]).item()

    def record(self, resampling: Resampling) -> BreakdownRecord:
        """Every group that has tokens."""
        drawn = resampling.over(self._documents)
        groups = [self._group(drawn, i) for i in range(len(self.grouping.names)) if self._counts[i]]
        return BreakdownRecord(by=self.grouping.by, n_unlabelled=self._outside, groups=groups)

    def _group(self, drawn: Drawn, i: int) -> GroupRecord:
        at = _COLUMNS * i
        total = drawn.total
        everything = total.view(-1, _COLUMNS).sum(dim=0)
        varies = bool(total[at + _CENTRED] > 0)
        return GroupRecord(
            group=self.grouping.names[i],
            n_tokens=int(self._counts[i]),
            l0=drawn.estimate(ratio(at + _LATENTS, at + _TOKENS)),
            fvu=drawn.estimate(ratio(at + _RESIDUAL, at + _CENTRED)) if varies else None,
            share_of_variance=_share(total[at + _CENTRED], everything[_CENTRED]),
            share_of_residual=_share(total[at + _RESIDUAL], everything[_RESIDUAL]),
        )


def _share(part: Float[Tensor, ""], whole: Float[Tensor, ""]) -> float:
    return (part / whole).item() if whole > 0 else 0.0
