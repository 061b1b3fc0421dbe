"""What gradients of a matrix with one row for each latent are added up from."""

from typing import NamedTuple

from jaxtyping import Float, Int32, Int64
from torch import Tensor

# Slots of a latent, on average, beyond which gradients are written down once and not added up twice.
KEPT_FROM = 8


class Terms(NamedTuple):
    """The gradient of latent `i`'s row is `sum weights[s] source[of[s]]` over its slots `s`, plus its row of `more`.

    It is added up where it is needed, twice in a step, and not kept: that would take half as much memory as Adam's
    averages do.

    Attributes:
        starts, order: The slots of latent `i` are `order[starts[i] : starts[i + 1]]`.
        of, weights: Of each slot.
        source: What is added up.
        extra: Row of each latent in `more`; -1 for those that have none.
        more: Gradients from elsewhere.
    """

    starts: Int64[Tensor, " m1"]
    order: Int64[Tensor, " s"]
    of: Int64[Tensor, " s"]
    weights: Float[Tensor, " s"]
    source: Float[Tensor, "n d"]
    extra: Int32[Tensor, " m"]
    more: Float[Tensor, "r d"]
