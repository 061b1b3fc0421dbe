"""Single numbers of mediation: what ablating, adding and swapping a subspace does to a behaviour."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import bootstrap
from sparsight.evaluation.frozen_record import Record
from sparsight.intervention.mediation.readout import Readout


class Effect(Record):
    """A number with its 95 % interval over pairs (or inputs)."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Pairs:
    """Base inputs and, for each, a source input of the other class.

    Attributes:
        base, source: Rows of the readout.
        score_base, score_source: Behaviour as it is.
        score_full: Behaviour of the base with the source's whole activation.
    """

    base: Int64[Tensor, " n"]
    source: Int64[Tensor, " n"]
    score_base: Float64[Tensor, " n"]
    score_source: Float64[Tensor, " n"]
    score_full: Float64[Tensor, " n"]


def draw_pairs(readout: Readout, labels: Int64[Tensor, " n"], n_pairs: int, seed: int) -> Pairs:
    """Random pairs of unlike class, half of them with a positive base.

    Raises:
        UndefinedMetric: one class is empty, or the whole swap does not change the behaviour.
    """
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (torch.nonzero(labels == c).flatten() for c in (1, 0))
    if len(positive) == 0 or len(negative) == 0:
        raise UndefinedMetric("mediation needs inputs of both classes, labelled 0 and 1")
    half = max(1, n_pairs // 2)

    def drawn(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (half,), generator=generator)]

    base = torch.cat([drawn(positive), drawn(negative)])
    source = torch.cat([drawn(negative), drawn(positive)])
    x = readout.x
    with torch.no_grad():
        scores = [readout.score(x[rows], rows).double().cpu() for rows in (base, source)]
        full = readout.score(x[source], base).double().cpu()
    pairs = Pairs(base, source, scores[0], scores[1], full)
    if float((signed(pairs, full)).mean()) <= 0:
        raise UndefinedMetric(
            "no mediated fraction: swapping the whole activation does not move the behaviour towards the source's; "
            "the behaviour is not decided at this site and token"
        )
    return pairs


def signed(pairs: Pairs, scores: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """Change of the behaviour from the base's, positive towards the source's."""
    return (scores - pairs.score_base) * (pairs.score_source - pairs.score_base).sign()


def swapped(
    readout: Readout, pairs: Pairs, basis: Float[Tensor, "k d"], *, rest: bool = False
) -> Float64[Tensor, " n"]:
    """Behaviour of the base with the source's coordinates along a basis, or with all but these."""
    base, source = readout.x[pairs.base], readout.x[pairs.source]
    rows = basis.to(base)
    off = source - base
    along = (off @ rows.T) @ rows
    with torch.no_grad():
        return readout.score(base + (off - along if rest else along), pairs.base).double().cpu()


def fraction_mediated(
    readout: Readout, pairs: Pairs, basis: Float[Tensor, "k d"], *, rest: bool = False, seed: int = 0
) -> Effect:
    """Effect of swapping a subspace's coordinates over the effect of swapping everything, with its interval over pairs.

    1: the subspace carries all of it; 0: none. With `rest` everything but the subspace is swapped; in a network that is
    not linear the two fractions need not add up to 1.

    Args:
        readout: Inputs and behaviour.
        pairs: Bases and sources.
        basis: Orthonormal rows.
        rest: Swap all but the subspace.
        seed: Of the resamples.
    Raises:
        UndefinedMetric: on some resample the whole swap has no effect.
    """
    part = signed(pairs, swapped(readout, pairs, basis, rest=rest))
    return ratio(part, signed(pairs, pairs.score_full), seed)


def share_mediated(readout: Readout, pairs: Pairs, basis: Float[Tensor, "k d"]) -> float:
    """`fraction_mediated` without its interval: for controls, of which there are many."""
    whole = signed(pairs, pairs.score_full).mean()
    return float(signed(pairs, swapped(readout, pairs, basis)).mean() / whole)


def ratio(part: Float64[Tensor, " n"], whole: Float64[Tensor, " n"], seed: int) -> Effect:
    """Ratio of means with its interval, pairs resampled together."""
    sums = torch.stack([part, whole], dim=1)
    found = bootstrap(sums, lambda s: s[..., 0] / s[..., 1], n_resamples=500, seed=seed)
    return Effect(value=found.value, low=found.low, high=found.high, n=len(part))


def edited_scores(
    readout: Readout, rows: Int64[Tensor, " n"], edit: Callable[[Tensor], Tensor]
) -> Float64[Tensor, " n"]:
    """Behaviour of some inputs with a function of their activations in their place."""
    with torch.no_grad():
        return readout.score(edit(readout.x[rows]), rows).double().cpu()


def read_subspace(readout: Readout, pairs: Pairs, *, kept: float = 0.999, limit: int = 128) -> Float[Tensor, "r d"]:
    """The directions that the behaviour reads: the span of its gradients at bases and sources, up to a share of energy.

    Args:
        readout: Inputs and behaviour, differentiable.
        pairs: Where gradients are taken.
        kept: Share of the gradients' squared length that the span holds.
        limit: Most inputs to take gradients at.
    Raises:
        UndefinedMetric: the behaviour has no gradient anywhere.
    """
    rows = torch.unique(torch.cat([pairs.base, pairs.source]))[:limit]
    at = readout.x[rows].detach().requires_grad_()
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(readout.score(at, rows).sum(), at)
    gradients = gradients.double()
    if float(gradients.norm()) == 0:
        raise UndefinedMetric("the behaviour has no gradient at this site: what stands here is not read")
    _, singular, right = torch.linalg.svd(gradients, full_matrices=False)
    energy = singular.square().cumsum(dim=0) / singular.square().sum()
    span: Tensor = right[: int((energy < kept).sum()) + 1]
    return span


def greedy_dimension(
    readout: Readout,
    pairs: Pairs,
    first: Float[Tensor, "k d"],
    *,
    most: int = 8,
    enough: float = 0.9,
    gain: float = 0.02,
) -> list[float]:
    """Mediated fraction of growing subspaces: the direction, then the best of the differences' components.

    Stops at `enough`, at `most` dimensions, or when the next one adds less than `gain`.

    Returns:
        The fraction with 1, 2, ... dimensions beyond those of `first` less one.
    """
    basis = first.double()
    off = (readout.x[pairs.source] - readout.x[pairs.base]).double()
    fractions = [share_mediated(readout, pairs, basis)]
    while fractions[-1] < enough and len(basis) < most:
        left = off - (off @ basis.T) @ basis
        _, _, right = torch.linalg.svd(left, full_matrices=False)
        tried = []
        for candidate in right[:6]:
            wider = torch.linalg.qr(torch.cat([basis, candidate[None]]).T).Q.T
            tried.append((share_mediated(readout, pairs, wider), wider))
        best, basis_next = max(tried, key=lambda pair: pair[0])
        if best - fractions[-1] < gain:
            break
        fractions.append(best)
        basis = basis_next
    return fractions
