"""Where shrinkage is: in which groups of tokens, and whether values are too small by a factor or by an amount."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.pairs import float64_pair
from sparsight.evaluation.shrinkage import Shrinkage, family_of


@dataclass(frozen=True, eq=False)
class GroupedShrinkageSums:
    """The sums of the shrinkage family for each group of tokens: deciles of the norm, positions in the context.

    Attributes:
        n: Tokens in each group.
        sum_x_sq: `sum |x|^2` in each.
        sum_x_hat_sq: `sum |x_hat|^2` in each.
        sum_dot: `sum <x, x_hat>` in each.
    """

    n: Int64[Tensor, " g"]
    sum_x_sq: Float64[Tensor, " g"]
    sum_x_hat_sq: Float64[Tensor, " g"]
    sum_dot: Float64[Tensor, " g"]

    @staticmethod
    def of(
        x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], group: Int64[Tensor, " n"], n_groups: int
    ) -> "GroupedShrinkageSums":
        """Sums of one batch. Subtract a centre from both first, to have the family about it.

        Args:
            group: Number of each token's group, from 0.
            n_groups: How many there are.
        Raises:
            ValueError: a group is none of them.
        """
        x, x_hat = float64_pair(x, x_hat)
        if len(group) and not 0 <= int(group.min()) <= int(group.max()) < n_groups:
            raise ValueError(
                f"groups must be between 0 and n_groups-1={n_groups - 1}, got {int(group.min())} to {int(group.max())}"
            )

        def total(values: Tensor) -> Tensor:
            return torch.zeros(n_groups, dtype=values.dtype, device=values.device).index_add_(0, group, values)

        return GroupedShrinkageSums(
            total(torch.ones_like(group)),
            total(x.square().sum(dim=1)),
            total(x_hat.square().sum(dim=1)),
            total((x * x_hat).sum(dim=1)),
        )

    def __add__(self, other: "GroupedShrinkageSums") -> "GroupedShrinkageSums":
        return GroupedShrinkageSums(
            self.n + other.n,
            self.sum_x_sq + other.sum_x_sq,
            self.sum_x_hat_sq + other.sum_x_hat_sq,
            self.sum_dot + other.sum_dot,
        )

    @property
    def values(self) -> list[Shrinkage | None]:
        """The family of each group; None where it is not defined (`ShrinkageSums.about` says when)."""
        found: list[Shrinkage | None] = []
        for a, h, c in zip(self.sum_x_sq.tolist(), self.sum_x_hat_sq.tolist(), self.sum_dot.tolist(), strict=True):
            try:
                found.append(family_of(a, h, c))
            except UndefinedMetric:
                found.append(None)
        return found

    @property
    def pooled(self) -> Shrinkage:
        """The family of all tokens together. Raises as `ShrinkageSums.about` does."""
        return family_of(float(self.sum_x_sq.sum()), float(self.sum_x_hat_sq.sum()), float(self.sum_dot.sum()))


def norm_deciles(x: Float[Tensor, "n d_in"], n_groups: int = 10) -> Float64[Tensor, " edges"]:
    """The inner edges of `n_groups` equally frequent ranges of `|x|`, in the units of `x`."""
    return equally_frequent(x.detach().double().norm(dim=1), n_groups)


def equally_frequent(values: Float[Tensor, " n"], n_groups: int = 10) -> Float64[Tensor, " edges"]:
    """The inner edges of `n_groups` equally frequent ranges of numbers; all 0 of none."""
    shares = torch.linspace(0, 1, n_groups + 1, dtype=torch.float64)[1:-1]
    if not len(values):
        return torch.zeros_like(shares)
    ordered = values.detach().double().sort().values
    # The nearest rank below: `torch.quantile` refuses more than 16 million values.
    edges: Tensor = ordered[(shares * len(ordered)).long().clamp_max(len(ordered) - 1)]
    return edges


def norm_group(x: Float[Tensor, "n d_in"], edges: Float64[Tensor, " edges"]) -> Int64[Tensor, " n"]:
    """In which of the ranges between `edges` each token's norm lies, from 0."""
    return torch.bucketize(x.detach().double().norm(dim=1), edges, right=True)


@dataclass(frozen=True, eq=False)
class ValueProfile:
    """Values of a code against what they should be, in bins of the latter.

    What they should be is a matter of choice: planted values, or those refitted on the same support. Shrinkage by a
    factor shows as one `ratio` in all bins, shrinkage by an amount (that of an L1 penalty) as one `difference`.

    Attributes:
        edges: Inner edges of the bins, ascending, in the units of the values.
        n: Active pairs in each bin.
        sum_should: Sum of what values should be.
        sum_value: Sum of the values.
        sum_should_sq: Sum of squares of what they should be.
        sum_product: Sum of products of the two.
        sum_value_sq: Sum of squares of the values.
    """

    edges: Float64[Tensor, " edges"]
    n: Int64[Tensor, " bins"]
    sum_should: Float64[Tensor, " bins"]
    sum_value: Float64[Tensor, " bins"]
    sum_should_sq: Float64[Tensor, " bins"]
    sum_product: Float64[Tensor, " bins"]
    sum_value_sq: Float64[Tensor, " bins"]

    @staticmethod
    def of(
        values: Float[Tensor, " s"], should: Float[Tensor, " s"], edges: Float64[Tensor, " edges"]
    ) -> "ValueProfile":
        """Sums of one batch of pairs, usually those where the latent is active in both."""
        values, should = values.detach().double(), should.detach().double()
        into = torch.bucketize(should, edges, right=True)
        n_bins = len(edges) + 1

        def total(of: Tensor) -> Tensor:
            return torch.zeros(n_bins, dtype=of.dtype, device=of.device).index_add_(0, into, of)

        return ValueProfile(
            edges,
            total(torch.ones_like(into)),
            total(should),
            total(values),
            total(should.square()),
            total(values * should),
            total(values.square()),
        )

    def __add__(self, other: "ValueProfile") -> "ValueProfile":
        if not torch.equal(self.edges, other.edges):
            raise ValueError("profiles with different edges cannot be added; bin both by the same edges")
        return ValueProfile(
            self.edges,
            self.n + other.n,
            self.sum_should + other.sum_should,
            self.sum_value + other.sum_value,
            self.sum_should_sq + other.sum_should_sq,
            self.sum_product + other.sum_product,
            self.sum_value_sq + other.sum_value_sq,
        )

    @property
    def ratio(self) -> list[float | None]:
        """Mean value over mean of what it should be, in each bin; None where a bin is empty or that mean is 0."""
        pairs = zip(self.sum_value.tolist(), self.sum_should.tolist(), strict=True)
        return [value / should if should != 0 else None for value, should in pairs]

    @property
    def difference(self) -> list[float | None]:
        """Mean of value minus what it should be, in each bin, in the units of the values; None where it is empty."""
        rows = zip(self.n.tolist(), self.sum_value.tolist(), self.sum_should.tolist(), strict=True)
        return [(value - should) / n if n else None for n, value, should in rows]

    @property
    def line(self) -> tuple[float, float]:
        """Slope and intercept of the least-squares line of values on what they should be, all bins together.

        A factor g gives `(g, 0)`, an amount t taken off gives `(1, -t)`.

        Raises:
            UndefinedMetric: there are no two pairs that should differ.
        """
        n = int(self.n.sum())
        sums = (self.sum_should, self.sum_value, self.sum_should_sq, self.sum_product)
        should, value, should_sq, product = (float(of.sum()) for of in sums)
        spread = n * should_sq - should**2
        if n < 2 or spread <= 1e-12 * n * should_sq:
            raise UndefinedMetric(f"a line through {n} values that should all be equal is undefined; give more of them")
        slope = (n * product - should * value) / spread
        return slope, (value - slope * should) / n

    @property
    def factor(self) -> float:
        """The `g` for which `g * should` is nearest to the values, all bins together.

        Raises:
            UndefinedMetric: there is nothing, or all of it should be 0.
        """
        if (squares := float(self.sum_should_sq.sum())) <= 0:
            raise UndefinedMetric(f"a factor of {int(self.n.sum())} values that should all be 0 is undefined")
        return float(self.sum_product.sum()) / squares

    @property
    def amount(self) -> float:
        """The `t` for which `should - t` is nearest to the values: how much is taken off, in their units.

        Raises:
            UndefinedMetric: there is nothing.
        """
        if (n := int(self.n.sum())) == 0:
            raise UndefinedMetric("an amount taken off no values is undefined")
        return float((self.sum_should - self.sum_value).sum()) / n

    @property
    def explained(self) -> tuple[float, float]:
        """Shares of `sum (value - should)^2` that one factor and one amount account for, each alone.

        The larger one says of which kind shrinkage is; both near 0 say that values err without being shrunk.

        Raises:
            UndefinedMetric: all values are what they should be, or there are none.
        """
        value_sq, should_sq, product = (
            float(of.sum()) for of in (self.sum_value_sq, self.sum_should_sq, self.sum_product)
        )
        error = value_sq - 2 * product + should_sq
        if error <= 1e-13 * (value_sq + should_sq):
            raise UndefinedMetric("no value differs from what it should be: there is no shrinkage to explain")
        by_factor = should_sq * (self.factor - 1) ** 2
        by_amount = int(self.n.sum()) * self.amount**2
        return by_factor / error, by_amount / error
