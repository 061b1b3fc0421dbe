"""Where a dictionary's shrinkage is, and of which kind: what an evaluation keeps of it."""

from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.shrinkage import Shrinkage

PANEL_CONVENTIONS = {
    "shrinkage_panel": "about what is reconstructed when every latent is silent; families as in shrinkage; refitted "
    "values solve non-negative least squares on the code's own support; each latent's scale is fitted jointly",
}


class TokenGroup(Record):
    """The shrinkage family of some of the tokens.

    Attributes:
        low, high: Ends of the group: norms, or positions (both included); None where it has none.
        n_tokens: Tokens in it.
        family: None where it is not defined: every activation or every reconstruction is at the centre.
    """

    low: float | None
    high: float | None
    n_tokens: int
    family: Shrinkage | None


class ValueBin(Record):
    """Values of the code in one range, against refitted ones.

    Attributes:
        low, high: Ends of the range; None for the outermost.
        n_values: Values in it.
        value: Their mean; None where there is none.
        refitted: Mean of the refitted values of the same latents and tokens.
        ratio: `value / refitted`; below 1 they are shrunk. None where the latter is 0.
        difference: `value - refitted`, in the units of the activations.
    """

    low: float | None
    high: float | None
    n_values: int
    value: float | None
    refitted: float | None
    ratio: float | None
    difference: float | None


class Spread(Record):
    """How a number differs between latents: median, and the ends that 5 % lie beyond on either side."""

    median: float
    p5: float
    p95: float


class ShrinkagePanel(Record):
    """Where shrinkage is, and of which kind.

    Attributes:
        n_tokens: Tokens it was judged on.
        family: Of all of them, about the offset.
        by_norm: In ten equally frequent ranges of the activation's norm, about the offset.
        by_position: By the token's place in its context: 0, 1, 2-3, 4-7 ... Empty where places are not known.
        by_value: In ten equally frequent ranges of the code's values.
        slope, intercept: Least-squares line of refitted values on values; a factor `g` gives `(1/g, 0)`, an amount `t`
            taken off `(1, t)`. None where values do not vary.
        explained_by_factor, explained_by_amount: Shares of `sum (value - refitted)^2` that multiplying all values by
            one number, or adding one, would remove. None where no value can be improved.
        refit_slope: Slope through the origin of refitted values on values, latent by latent.
        joint_scale: Best factor of each latent, all fitted together.
        n_latents: Latents behind these two: those active on at least ten tokens.
        scale_gain: Loss that one factor for all would remove, as a fraction of `E|x|^2`.
        joint_scale_gain: Loss that one factor for each latent would remove.
    """

    n_tokens: int
    family: Shrinkage | None
    by_norm: list[TokenGroup]
    by_position: list[TokenGroup]
    by_value: list[ValueBin]
    slope: float | None
    intercept: float | None
    explained_by_factor: float | None
    explained_by_amount: float | None
    refit_slope: Spread | None
    joint_scale: Spread | None
    n_latents: int
    scale_gain: float | None
    joint_scale_gain: float

    @property
    def kind(self) -> str | None:
        """ "factor" or "amount", whichever accounts for more; None where no value can be improved."""
        if self.explained_by_factor is None or self.explained_by_amount is None:
            return None
        return "factor" if self.explained_by_factor >= self.explained_by_amount else "amount"
