"""Which tokens count, said beside every number; and what the others would have done to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.evaluation.core_records import TokenSide
from sparsight.evaluation.norms import OUTLIER

# Kinds of token, each a bit: a token may be of several.
OUTLYING, FIRST, SPECIAL = 1, 2, 4
N_CELLS = 8
_TOKENS, _LATENTS, _RESIDUAL, _CENTRED = range(4)
_NAMES = {OUTLYING: "of outlying norm", FIRST: "first in the context", SPECIAL: "special (BOS, EOS and their like)"}
DIFFER = 0.05  # a headline that a kind of token changes by more than this share is shown with and without it


@dataclass(frozen=True)
class TokenPolicy:
    """Which stored tokens count. Padding never does; special tokens have no row in a store.

    Attributes:
        outliers: Count tokens whose norm is more than `outlier_norm` times the median: attention sinks and their like.
        first: Count the first token the model saw (position 0), the usual attention sink where there is no BOS.
        outlier_norm: Times the median norm of the stored tokens.
    """

    outliers: bool = True
    first: bool = True
    outlier_norm: float | int = OUTLIER

    def __post_init__(self) -> None:
        if not self.outlier_norm > 1:
            raise ValueError(f"outlier_norm must be above 1, in median norms, got {self.outlier_norm}; 10 is usual")

    @property
    def left_out(self) -> int:
        """Kinds of token that do not count, as bits."""
        return (0 if self.outliers else OUTLYING) | (0 if self.first else FIRST)

    def kinds(
        self, x: Float[Tensor, "n d"], positions: Int64[Tensor, " n"], longest: float | int
    ) -> Int64[Tensor, " n"]:
        """What each stored token is, as bits."""
        outlying = torch.linalg.vector_norm(x.double(), dim=1) > longest
        kinds: Tensor = OUTLYING * outlying.long() + FIRST * (positions.to(x.device) == 0).long()
        return kinds

    def counted(self, kinds: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which tokens the headline counts."""
        counted: Tensor = (kinds & self.left_out) == 0
        return counted

    def __str__(self) -> str:
        return (
            "stored tokens; padding out; special tokens (BOS, EOS and their like) out; tokens of more than "
            f"{self.outlier_norm:g} times the median norm {'in' if self.outliers else 'out'}; first token of the "
            f"context {'in' if self.first else 'out'}"
        )


class CellSums:
    """Sums over the tokens of each combination of kinds, so that any set of them can be measured about its own mean.

    Args:
        reference: Any point near the activations; squared distances are taken from it.
    """

    def __init__(self, reference: Float64[Tensor, " d"]) -> None:
        self._reference = reference
        self._terms = torch.zeros(N_CELLS, 4, dtype=torch.float64)
        self._sum = torch.zeros(N_CELLS, len(reference), dtype=torch.float64)

    def add(
        self,
        shifted: Float64[Tensor, "n d"],
        kinds: Int64[Tensor, " n"],
        latents: Float64[Tensor, " n"],
        residual_sq: Float64[Tensor, " n"],
        shifted_sq: Float64[Tensor, " n"],
    ) -> None:
        """Add a batch: activations less the reference, and of each token its kinds, L0, residual and distance."""
        terms = torch.stack([torch.ones_like(latents), latents, residual_sq, shifted_sq], dim=1)
        kinds = kinds.cpu()
        self._terms.index_add_(0, kinds, terms.cpu())
        rare = kinds != 0  # the common cell is a plain sum, which is far faster
        shifted = shifted.cpu()
        self._sum.index_add_(0, kinds[rare], shifted[rare])
        self._sum[0] += shifted.sum(dim=0) - shifted[rare].sum(dim=0)

    def side(self, kind: int, left_out: int) -> TokenSide:
        """What one kind does to a headline without the kinds in `left_out`."""
        base = [cell for cell in range(N_CELLS) if not cell & left_out & ~kind]
        with_, without = self._measured(base), self._measured([cell for cell in base if not cell & kind])
        pairs = ((with_.fvu, without.fvu), (with_.l0, without.l0))
        return TokenSide(
            tokens=_NAMES[kind],
            counted=not kind & left_out,
            n_tokens=with_.n - without.n,
            n_all=with_.n,
            fvu_with=with_.fvu,
            fvu_without=without.fvu,
            l0_with=with_.l0 or 0.0,
            l0_without=without.l0,
            differ=any(_differ(a, b) for a, b in pairs),
        )

    def _measured(self, cells: list[int]) -> "_Measured":
        terms, total = self._terms[cells].sum(dim=0), self._sum[cells].sum(dim=0)
        n = int(terms[_TOKENS])
        if n == 0:
            return _Measured(0, None, None)
        # About their own mean: the distance from the reference, less that of the mean.
        variance = terms[_CENTRED].item() - total.square().sum().item() / n
        defined = variance > 1e-12 * terms[_CENTRED].item()
        return _Measured(n, terms[_RESIDUAL].item() / variance if defined else None, terms[_LATENTS].item() / n)


@dataclass(frozen=True)
class _Measured:
    n: int
    fvu: float | None
    l0: float | None


def _differ(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is not second
    return abs(first - second) > DIFFER * max(abs(first), abs(second))


def side_note(side: TokenSide) -> str:
    """A line about a kind of token that changes the headline."""

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4g}"

    return (
        f"{side.n_tokens} of {side.n_all} tokens are {side.tokens}, {'in' if side.counted else 'not in'} the headline: "
        f"FVU is {number(side.fvu_with)} with them, {number(side.fvu_without)} without; "
        f"L0 {number(side.l0_with)} and {number(side.l0_without)}"
    )
