"""How well a probe answers: hits of each class, summed by document, and what is made of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.evaluation.bootstrap import DocumentSums, Statistic
from sparsight.evaluation.features.labelled import Part
from sparsight.evaluation.features.probes import Probe
from sparsight.evaluation.record import Estimate, estimate


@dataclass(frozen=True)
class Resampling:
    """How intervals over documents are drawn."""

    n_resamples: int = 200
    level: float = 0.95
    seed: int = 0

    def of(self, sums: Float64[Tensor, "documents m"], statistic: Statistic) -> Estimate:
        """The statistic with its interval; without one where a single document leaves none."""
        return estimate(sums, statistic, n_resamples=self.n_resamples, level=self.level, seed=self.seed)


def hits(
    answers: Int64[Tensor, " n"], y: Int64[Tensor, " n"], document_ids: Int64[Tensor, " n"], n_classes: int
) -> Float64[Tensor, "documents m"]:
    """Right answers and tokens of each class, by document: `[hits of each class, tokens of each class]`."""
    of_class = torch.nn.functional.one_hot(y, n_classes).double()
    right = of_class * (answers == y)[:, None]
    sums = DocumentSums(2 * n_classes)
    sums.add(document_ids, torch.cat([right, of_class], dim=1))
    return sums.sums


def balanced_accuracy(sums: Float64[Tensor, "*draws m"]) -> Float64[Tensor, "*draws"]:
    """Mean over classes of the share of their tokens answered rightly; classes that a draw lacks are left out of it."""
    right, tokens = sums.chunk(2, dim=-1)
    there = tokens > 0
    return (right / tokens.clamp_min(1)).sum(dim=-1) / there.sum(dim=-1).clamp_min(1)


def score(probe: Probe, x: Float[Tensor, "n d"], part: Part, n_classes: int) -> Float64[Tensor, "documents m"]:
    """Hits of a probe on one side's examples, by document."""
    return hits(probe.scores(x).argmax(dim=1), part.y, part.document_ids, n_classes)


def difference(first: Tensor, second: Tensor, resampling: Resampling) -> Estimate:
    """Balanced accuracy of the first hits minus that of the second, the same documents drawn for both."""
    m = first.shape[1]
    return resampling.of(
        torch.cat([first, second], dim=1), lambda s: balanced_accuracy(s[..., :m]) - balanced_accuracy(s[..., m:])
    )


def share(found: Bool[Tensor, "*n"]) -> float:
    """Share that is true."""
    return float(found.double().mean())


def share_over_documents(
    found: Bool[Tensor, "m k"], document_ids: Int64[Tensor, " m"], resampling: Resampling
) -> Estimate:
    """Share that is true of `k` outcomes for each of `m` texts; texts of one document are drawn together."""
    right = found.double().sum(dim=1)
    sums = DocumentSums(2)
    sums.add(document_ids, torch.stack([right, torch.full_like(right, found.shape[1])], dim=1))
    return resampling.of(sums.sums, lambda s: s[..., 0] / s[..., 1])


def token_identity_answers(fit: Part, judge: Part, n_classes: int) -> Int64[Tensor, " n"]:
    """What one answers who knows the token and nothing else: the class it most often had, classes weighing alike.

    Tokens never seen while fitting get the class with the most token types.
    """
    types, place = torch.unique(fit.token_ids, return_inverse=True)
    table = torch.zeros(len(types), n_classes, dtype=torch.float64)
    table.index_put_((place, fit.y), 1 / torch.bincount(fit.y, minlength=n_classes).double()[fit.y], accumulate=True)
    best = table.argmax(dim=1)
    at = torch.searchsorted(types, judge.token_ids).clamp(max=len(types) - 1)
    unseen = int(torch.bincount(best, minlength=n_classes).argmax())
    return torch.where(types[at] == judge.token_ids, best[at], unseen)
