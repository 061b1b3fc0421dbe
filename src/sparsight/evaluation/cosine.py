"""Cosine similarity between activations and their reconstructions, token by token."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.pairs import float64_pair


@dataclass(frozen=True)
class Cosine:
    """Mean over tokens of `<x, x_hat> / (|x| |x_hat|)`, in `[-1, 1]`; 1 is the right direction on every token.

    Blind to length. About the origin, a large common mean gives 0.98 to a useless reconstruction: subtract the mean
    from both first for the centred version. A reconstruction of zero has no direction and counts as 0; an activation of
    zero has none to be found and is left out (`n_zero` says how many).

    Attributes:
        n: Tokens that have a direction.
        n_zero: Tokens left out because the activation is zero.
        sum_cosine: Sum over the `n` tokens.
    """

    n: int
    n_zero: int
    sum_cosine: float

    @staticmethod
    def of(
        x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], *, centre: Float[Tensor, " d_in"] | None = None
    ) -> "Cosine":
        """Sums of one batch, after subtracting `centre` (the same in every batch) from both."""
        x, x_hat = float64_pair(x, x_hat)
        if centre is not None:
            x, x_hat = x - centre.double(), x_hat - centre.double()
        norms, norms_hat = x.norm(dim=1), x_hat.norm(dim=1)
        there = (norms > 0) & (norms_hat > 0)
        cosine = (x * x_hat).sum(dim=1)[there] / norms[there] / norms_hat[there]
        n_zero = int((norms == 0).sum())
        return Cosine(len(x) - n_zero, n_zero, cosine.sum().item())

    def __add__(self, other: "Cosine") -> "Cosine":
        return Cosine(self.n + other.n, self.n_zero + other.n_zero, self.sum_cosine + other.sum_cosine)

    @property
    def value(self) -> float:
        """The mean cosine.

        Raises:
            UndefinedMetric: no activation has a direction.
        """
        if self.n == 0:
            raise UndefinedMetric(f"cosine is undefined: all {self.n_zero} activations are zero")
        return self.sum_cosine / self.n
