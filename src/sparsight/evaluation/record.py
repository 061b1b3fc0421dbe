"""What an evaluation leaves behind: numbers with their intervals, definitions and tokens, as JSON and as a table."""

from typing import Literal

from sparsight.evaluation.core_records import (
    BaselineRecord,
    BreakdownRecord,
    DenseLatent,
    GapRecord,
    IdentityRecord,
    TokenSide,
)
from sparsight.evaluation.frozen_record import Record as Record
from sparsight.evaluation.record_values import Estimate as Estimate
from sparsight.evaluation.record_values import estimate as estimate
from sparsight.evaluation.record_values import of_interval as of_interval
from sparsight.evaluation.shrinkage import Shrinkage
from sparsight.evaluation.shrinkage_panel_record import PANEL_CONVENTIONS, ShrinkagePanel

TOKEN_POLICY = (
    "every stored token: padding and special tokens (such as BOS) are left out; tokens of outlying norm are in, and "
    "the FVU without them stands beside the headline"
)

CONVENTIONS = {
    "l0": "number of latents with a value other than 0, per token",
    "fvu": "sum |x - x_hat|^2 / sum |x - mean|^2 over all tokens and coordinates; mean over the same tokens",
    "explained_variance": "1 - fvu",
    "fvu_uncentred": "sum |x - x_hat|^2 / sum |x|^2",
    "fvu_token_mean": "mean over tokens of |x - x_hat|^2 / |x - mean|^2",
    "fvu_without_outliers": "fvu over the tokens whose norm is at most 10 times the median norm",
    "mse": "sum |x - x_hat|^2 / tokens: summed over coordinates, in squared units of the site",
    "l1": "sum of |latent values| per token, in units of the site; atoms have norm 1",
    "norm_ratio": "mean over tokens of |x_hat| / |x|; tokens of norm 0 are left out",
    "breakdowns": "fvu of a group: its residual over its squared distance from the mean of all evaluated tokens",
    "token_sides": "fvu with and without one kind of token, each about its own mean",
    "baselines": "what no trained dictionary scores on the same tokens with as many numbers per token",
    "gap": "fvu of held-out documents less that of training documents, each about its own mean",
    "cosine": "mean over tokens of the cosine of x and x_hat, about the origin; a zero x_hat counts as 0",
    "cosine_centred": "the same about the mean of x",
    "density": "share of tokens on which a latent is not 0; dead: on none of n_tokens; dense: on more than 0.1",
    "shrinkage": "a = E|x|^2, h = E|x_hat|^2, c = E<x, x_hat>; rho = c / sqrt(ah), nu = sqrt(h/a), r = h/c",
    "shrinkage_centred": "the same for x - b_dec and x_hat - b_dec",
    **PANEL_CONVENTIONS,
    "loss": "next-token cross-entropy in nats, mean over predicted counted tokens; splice and ablations replace the "
    "same positions; the mean is that of the evaluated tokens",
    "interval": "percentile bootstrap over documents",
}


class DictionaryRecord(Record):
    """Which dictionary was measured."""

    architecture: str
    n_latents: int
    d_in: int
    site: str | None
    model: str | None


class L0Record(Record):
    """Latents in use per token."""

    mean: Estimate
    median: int
    p5: int
    p95: int
    p99: int


class DensityRecord(Record):
    """How often latents are in use, judged on `n_tokens`.

    Attributes:
        n_tokens: Tokens it was judged on; a latent never seen in them is "dead", of density up to `dead_bound`.
        dead_fraction: Share of latents never seen.
        dead_bound: `3 / n_tokens`.
        dense_fraction: Share of latents in use on more than a tenth of the tokens.
        over_1_percent: Share of latents in use on more than a hundredth of the tokens.
        uses_over_1_percent: Share of all uses that falls on those.
        uses_dense: Share of all uses that falls on dense latents.
        densest: The dense latents, densest first, at most 20.
        histogram_edges: Edges in `log10` of density.
        histogram_counts: Live latents in each bin.
    """

    n_tokens: int
    dead_fraction: float
    dead_bound: float
    dense_fraction: float
    over_1_percent: float = 0.0
    uses_over_1_percent: float = 0.0
    uses_dense: float = 0.0
    densest: tuple[DenseLatent, ...] = ()
    histogram_edges: list[float]
    histogram_counts: list[int]


class SiteRecord(Record):
    """How well a dictionary of several sites does at one of them."""

    site: str
    model: str
    fvu: Estimate


class LossRecord(Record):
    """Next-token losses, in nats per token, over `n_tokens` predicted tokens of `n_documents`.

    Attributes:
        clean: Loss of the untouched model.
        added: Loss added by splicing the reconstruction in.
        added_by_zero: Loss added by zero ablation of the same positions.
        added_by_mean: Loss added by mean ablation of the same positions.
        fraction_of_zero: `added / added_by_zero`; None when zero ablation adds no loss.
        fraction_of_mean: `added / added_by_mean`; None when mean ablation adds no loss.
        kl: `KL(clean || spliced)`, mean over predicted tokens.
        kl_median: Its median over predicted tokens, by nearest rank, right to 1.1 %; None for an old record.
        kl_p99: Its 99th percentile: divergences have a heavy tail.
        kl_by_zero: `KL(clean || zero-ablated)`.
        kl_by_mean: `KL(clean || mean-ablated)`.
    """

    n_tokens: int
    n_documents: int
    clean: float
    added: Estimate
    added_by_zero: Estimate
    added_by_mean: Estimate
    fraction_of_zero: Estimate | None
    fraction_of_mean: Estimate | None
    kl: Estimate
    kl_median: float | None = None
    kl_p99: float | None = None
    kl_by_zero: Estimate | None = None
    kl_by_mean: Estimate | None = None


class SearchRecord(Record):
    """What an approximate search did to the codes it was used for, and its codes beside exact ones on a sample.

    Attributes:
        method: Always "approximate".
        candidates: Atoms kept for each row between two scans.
        scans: Scans of all atoms planned for a row.
        rows: Rows coded.
        choices: Atoms chosen.
        scanned: Choices made right after a scan of all atoms.
        proven_share: Share of choices proven to be those of an exact search; the others may be, too.
        checked_rows: Rows, spread evenly, that were also coded with the exact search.
        fvu: FVU of the approximate codes on those rows, about their mean; None where they do not vary.
        fvu_exact: FVU of the exact codes on the same rows.
        fvu_difference: The first less the second: what the approximation costs.
        same_support: Share of those rows with the same latents in both codes.
    """

    method: Literal["approximate"] = "approximate"
    candidates: int
    scans: int
    rows: int
    choices: int
    scanned: int
    proven_share: float
    checked_rows: int
    fvu: float | None
    fvu_exact: float | None
    fvu_difference: float | None
    same_support: float

    def __str__(self) -> str:
        cost = "" if self.fvu_difference is None else f"FVU {self.fvu_difference:+.2g} against the exact search and "
        return (
            f"approximate search ({self.candidates} candidates, {self.scans} scans): {self.proven_share:.0%} of "
            f"{self.choices:,} choices proven; {cost}the same latents in {self.same_support:.0%} of "
            f"{self.checked_rows} rows coded both ways"
        )


class Evaluation(Record):
    """All measurements of one dictionary on one part of a store, with what is needed to read them.

    Definitions and ranges are in `conventions` and in docs/evaluation.md.
    """

    schema_version: Literal[1] = 1
    sparsight_version: str
    dictionary: DictionaryRecord
    site: str
    model: str
    split: str
    coder: str
    k: int | None
    search: SearchRecord | None = None
    n_tokens: int
    n_documents: int
    token_policy: str = TOKEN_POLICY
    conventions: dict[str, str] = CONVENTIONS
    level: float
    n_resamples: int
    seed: int
    l0: L0Record
    l1: Estimate | None = None
    fvu: Estimate
    explained_variance: Estimate | None = None
    mse: Estimate | None = None
    by_site: list[SiteRecord] | None = None
    fvu_uncentred: Estimate
    fvu_token_mean: Estimate | None
    n_outliers: int
    fvu_without_outliers: Estimate | None
    cosine: Estimate
    cosine_centred: Estimate
    norm_ratio: Estimate | None = None
    density: DensityRecord
    shrinkage: Shrinkage | None
    shrinkage_centred: Shrinkage | None
    shrinkage_panel: ShrinkagePanel | None = None
    loss: LossRecord | None
    no_loss_because: str | None
    breakdowns: tuple[BreakdownRecord, ...] = ()
    token_sides: tuple[TokenSide, ...] = ()
    baselines: tuple[BaselineRecord, ...] = ()
    no_baselines_because: str | None = None
    gap: GapRecord | None = None
    no_gap_because: str | None = None
    identities: tuple[IdentityRecord, ...] = ()
    notes: list[str]
    seconds: float

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """A table for people."""
        from sparsight.evaluation.tables import evaluation_table

        return evaluation_table(self)
