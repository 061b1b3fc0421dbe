"""Parts of an evaluation's record: groups of tokens, token sets, baselines, the held-out gap, identities."""

from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record_values import Estimate


class GroupRecord(Record):
    """One group of tokens.

    Attributes:
        group: A range of positions or norms, or a class of a label.
        n_tokens: Tokens in it.
        l0: Mean latents in use.
        fvu: Residual of the group over its squared distance from the mean of *all* evaluated tokens; None where every
            token of the group is at that mean.
        share_of_variance: Share of the squared distance from that mean that lies in the group, in `[0, 1]`.
        share_of_residual: Share of the squared residual that lies in the group, in `[0, 1]`.
    """

    group: str
    n_tokens: int
    l0: Estimate
    fvu: Estimate | None
    share_of_variance: float
    share_of_residual: float


class BreakdownRecord(Record):
    """The tokens in groups; `share_of_variance` times `fvu`, added up over them, is the FVU.

    Attributes:
        by: "position", "norm", or the name of a label.
        n_unlabelled: Tokens in no group: the label is not defined there.
        groups: Groups with tokens, in their own order.
    """

    by: str
    n_unlabelled: int
    groups: list[GroupRecord]


class TokenSide(Record):
    """What one kind of token does to the headline: measured with it and without it.

    Attributes:
        tokens: Which tokens.
        counted: Whether the headline counts them.
        n_tokens: How many there are among `n_all`.
        n_all: Tokens looked at, these included.
        fvu_with: FVU with them, about the mean with them; None where it is not defined.
        fvu_without: FVU without them, about the mean without them; None where it is not defined.
        l0_with: Mean latents in use with them.
        l0_without: Mean latents in use without them; None where no other token is left.
        differ: Whether either number changes by more than 5 %.
    """

    tokens: str
    counted: bool
    n_tokens: int
    n_all: int
    fvu_with: float | None
    fvu_without: float | None
    l0_with: float
    l0_without: float | None
    differ: bool


class BaselineRecord(Record):
    """What something that is no trained dictionary scores on the same tokens.

    Attributes:
        baseline: Its name.
        what: What it is.
        n_tokens: Tokens it was measured on, the same for all rows with the same number.
        l0: Mean numbers per token that its reconstruction uses.
        fvu: As in the headline.
        loss_added: As in the headline, on the same predicted tokens for all rows; None without a model.
    """

    baseline: str
    what: str
    n_tokens: int
    l0: float
    fvu: Estimate
    loss_added: Estimate | None


class GapRecord(Record):
    """Training documents against held-out ones.

    Attributes:
        n_train: Tokens of training documents.
        n_heldout: Tokens of held-out documents.
        fvu_train: FVU on the first.
        fvu_heldout: FVU on the second.
        fvu_gap: `fvu_heldout - fvu_train`: above 0, the dictionary has learnt its training documents.
        l0_train: Mean latents in use on the first.
        l0_heldout: Mean latents in use on the second.
    """

    n_train: int
    n_heldout: int
    fvu_train: Estimate
    fvu_heldout: Estimate
    fvu_gap: Estimate
    l0_train: float
    l0_heldout: float


class IdentityRecord(Record):
    """Two routes to one number. A wrong sum, a wrong unit or a wrong mean breaks one of them.

    Attributes:
        identity: What must be equal.
        residual: By how much it is not, as a share of the number, or in its units where that is 0.
        tolerance: What rounding may cause.
    """

    identity: str
    residual: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the residual is within rounding."""
        return self.residual <= self.tolerance


class DenseLatent(Record):
    """A latent in use on a large share of the tokens."""

    latent: int
    density: float
