"""Every metric as a pure function of arrays: the whole batch in, the number out.

The classes behind these (`Fvu`, `L0`, `Density`, ...) hold sums that add over batches; use them to stream.
"""

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.evaluation.bootstrap import bootstrap, paired_difference
from sparsight.evaluation.classification import auroc, best_threshold, detect
from sparsight.evaluation.cosine import Cosine
from sparsight.evaluation.density import DENSE, Density
from sparsight.evaluation.fvu import Fvu, FvuTokenMean, FvuUncentred
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.loss import next_token_kl, next_token_loss
from sparsight.evaluation.recovery import recovery
from sparsight.evaluation.shrinkage import shrinkage

__all__ = [
    "auroc",
    "best_threshold",
    "bootstrap",
    "cosine",
    "dead",
    "dead_fraction",
    "dense_fraction",
    "density",
    "detect",
    "fvu",
    "fvu_token_mean",
    "fvu_uncentred",
    "l0",
    "next_token_kl",
    "next_token_loss",
    "paired_difference",
    "recovery",
    "shrinkage",
]


def fvu(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> float:
    """Fraction of variance unexplained; see `Fvu`."""
    return Fvu.of(x, x_hat).value


def fvu_uncentred(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> float:
    """Fraction of energy unexplained; see `FvuUncentred`."""
    return FvuUncentred.of(x, x_hat).value


def fvu_token_mean(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> float:
    """Mean over tokens of residual over distance from the mean of `x`, both squared; see `FvuTokenMean`."""
    return FvuTokenMean.of(x, x_hat, mean=x.double().mean(dim=0)).value


def cosine(
    x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], *, centre: Float[Tensor, " d_in"] | None = None
) -> float:
    """Mean cosine over tokens, about the origin or about `centre`; see `Cosine`."""
    return Cosine.of(x, x_hat, centre=centre).value


def l0(code: SparseCode) -> float:
    """Mean number of latents in use; see `L0`."""
    return L0.of(code).value


def density(code: SparseCode) -> Float64[Tensor, " n_latents"]:
    """Share of tokens on which each latent is in use; see `Density`."""
    return Density.of(code).value


def dead(code: SparseCode) -> Bool[Tensor, " n_latents"]:
    """Latents never in use in these tokens; see `Density`."""
    return Density.of(code).dead


def dead_fraction(code: SparseCode) -> float:
    """Share of latents never in use in these tokens; see `Density`."""
    return Density.of(code).dead_fraction


def dense_fraction(code: SparseCode, threshold: float = DENSE) -> float:
    """Share of latents in use on more than `threshold` of these tokens; see `Density`."""
    return Density.of(code).dense_fraction(threshold)
