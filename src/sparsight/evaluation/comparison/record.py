"""What a comparison of coders leaves behind: one row for each arm at each sparsity, and the paired differences."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparsight.evaluation.record import CONVENTIONS, TOKEN_POLICY, DictionaryRecord, Estimate, Record, SearchRecord

if TYPE_CHECKING:
    import matplotlib.figure
    import plotly.graph_objects

Level = int | Literal["own"]
"""A number of latents per token, or as many in each token as the dictionary's own code uses there."""

COMPARISON_CONVENTIONS = {
    "encoder": "the dictionary's own code where its mean L0 rounds to k; else the k largest pre-activations",
    "topk": "the k largest positive pre-activations of each token, with their own values",
    "refit": "the latents of the encoder arm, values by non-negative least squares",
    "thresholded": "positive pre-activations above one threshold, set on training documents for a mean L0 of k",
    "scaled": "the encoder arm's code times one factor, fitted on training documents",
    "joint_scaled": "the encoder arm's code times one factor for each latent, fitted jointly on training documents",
    "pursuit": "non-negative gradient pursuit, k steps",
    "polished": "that, its values on the final support by non-negative least squares",
    "matching_pursuit": "non-negative matching pursuit, k steps",
    "orthogonal_matching_pursuit": "non-negative orthogonal matching pursuit, k steps",
    "lasso": "support of the non-negative lasso at one penalty, set on training documents for a mean L0 of k; values "
    "by non-negative least squares",
    "oracle": "the planted latents, whatever k; values by non-negative least squares",
    "own_l0": "where k is the mean L0 of the dictionary's own code, each token keeps the L0 of that code in every arm "
    "(thresholded and lasso match the mean instead)",
    "l0": CONVENTIONS["l0"] + "; may fall below k where fewer latents are positive or the residual vanishes",
    "fvu": CONVENTIONS["fvu"],
    "jaccard": "latents in both this arm's code and the encoder arm's over latents in either; mean over tokens",
    "loss_added": "next-token loss with the reconstruction spliced in, minus the clean loss, nats per token",
    "seconds": "time to code n_tokens",
    "recall": "planted latents that the code uses over planted latents; matched to the dictionary's by cosine >= 0.9",
    "precision_small": "share of latents in use that are planted, among those below 0.1 of their own 99th percentile",
    "precision_large": "the same among the others",
    "small_weight_mass": "share of values below q times the 99th percentile of their own latent's values",
    "span_overlap": "length of a chosen atom's projection on the span of those before it: mean over a token's atoms "
    "from the second on, then over tokens; in the order of choice for pursuits, else the largest value first",
    "kkt_residual": "largest violation of the optimality of the values on their support, over |x - b_dec|",
    "duality_gap": "bound on how far the lasso's code, before its values are solved anew, is above its minimum, over "
    "|x - b_dec|^2 / 2",
    "interference_floor": "|z| / sqrt(d): spread of what unrelated unit directions read from the active latents",
    "off_support_std": "standard deviation of <e_j, x - b_dec> over latents off the support, e_j the encoder's column "
    "(without an encoder: the atom) of unit norm",
    "threshold_over_floor": "median over latents of (threshold - b_enc) over the norm of the encoder's column, "
    "over the mean interference floor",
    "interval": CONVENTIONS["interval"] + "; differences draw the same documents for both",
}


class Diagnostics(Record):
    """What a code shows about the coder that wrote it. Definitions are in the comparison's `conventions`.

    Attributes:
        n_tokens: Tokens, spread evenly, on which overlaps, optimality and read-outs were measured. Small values and
            the interference floor are measured on all.
        small_weight_mass: Share of small values, for each `q`.
        span_overlap: Overlap of each atom with the span of those before it; None where no token uses two.
        span_overlap_random: That of random atoms with the same spans.
        overlap_minus_random: The difference of the two, the same documents drawn for both.
        overlap_minus_encoder: The code's overlap less that of the encoder arm's code; None where that arm is absent.
        kkt_residual: Distance from the best values on the support, relative.
        duality_gap: Distance from the lasso's optimum, relative; None but for the lasso.
        interference_floor: Spread of what unrelated directions read, in the units of the activations.
        off_support_std: Spread of what the directions of inactive latents read, the same units.
        threshold_over_floor: Thresholds in units of the floor; None where the dictionary has none.
    """

    n_tokens: int
    small_weight_mass: dict[str, Estimate] | None
    span_overlap: Estimate | None
    span_overlap_random: Estimate | None
    overlap_minus_random: Estimate | None
    overlap_minus_encoder: Estimate | None
    kkt_residual: Estimate
    duality_gap: Estimate | None
    interference_floor: Estimate
    off_support_std: Estimate | None
    threshold_over_floor: float | None


class ArmRecord(Record):
    """One coder at one sparsity.

    Attributes:
        arm: Name of the coder.
        k: Sparsity asked for.
        l0: Mean L0 it realised.
        l0_p5: The L0 that 5 % of the tokens do not exceed.
        l0_p95: The L0 that 95 % of the tokens do not exceed.
        fvu: Fraction of variance unexplained.
        jaccard: Overlap of its support with the encoder arm's; None when that arm is absent.
        loss_added: Next-token loss added, in nats per token; None without a causal model.
        seconds: Time to code the tokens.
        own_l0: Whether each token kept the L0 of the dictionary's own code.
        recall: Share of the planted latents it uses; None where the truth is not known.
        precision_small: Share of its small values whose latent is planted; None without a truth or without such values.
        precision_large: Share of its other values whose latent is planted.
        diagnostics: What its codes show; None when none were asked for.
        search: What an approximate search did, and what it cost on a sample; None where the search was exact or none.
    """

    arm: str
    k: Level
    l0: float
    l0_p5: int
    l0_p95: int
    fvu: Estimate
    jaccard: Estimate | None
    loss_added: Estimate | None
    seconds: float
    own_l0: bool
    recall: Estimate | None
    precision_small: Estimate | None
    precision_large: Estimate | None
    diagnostics: Diagnostics | None
    search: SearchRecord | None = None


class Difference(Record):
    """FVU of one arm minus that of another, the same documents drawn for both: below 0, the first is better."""

    first: str
    second: str
    k: Level
    fvu: Estimate


class Comparison(Record):
    """Coders of one dictionary on one part of a store, or on a plain tensor (`split` is "given" then)."""

    schema_version: Literal[2] = 2
    dictionary: DictionaryRecord
    site: str | None
    model: str | None
    split: str
    n_tokens: int
    n_documents: int
    own_l0: float
    token_policy: str = TOKEN_POLICY
    conventions: dict[str, str] = COMPARISON_CONVENTIONS
    level: float
    n_resamples: int
    seed: int
    arms: list[ArmRecord]
    differences: list[Difference]
    no_loss_because: str | None
    notes: list[str]

    @property
    def place(self) -> str:
        """Where the activations were read, for titles."""
        return "given activations" if self.model is None else f"{self.model} at {self.site}"

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """A table for people."""
        from sparsight.evaluation.comparison.table import comparison_table

        return comparison_table(self)

    def save(self, folder: str | Path) -> None:
        """Write `comparison.json`, the table as `comparison.txt`, and the figure as `comparison.svg` and `.png`."""
        from sparsight.evaluation.comparison.figure import write_plot

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "comparison.json").write_text(self.to_json() + "\n", encoding="utf8")
        (place / "comparison.txt").write_text(self.to_table() + "\n", encoding="utf8")
        write_plot(self, place)

    def to_figure(self) -> "plotly.graph_objects.Figure":
        """FVU against realised L0, one line for each arm, with intervals."""
        from sparsight.evaluation.comparison.figure import interactive

        return interactive(self)

    def to_plot(self) -> "matplotlib.figure.Figure":
        """A panel for each of FVU, loss added, small values and span overlap, one line for each arm, for print."""
        from sparsight.evaluation.comparison.figure import plot

        return plot(self)
