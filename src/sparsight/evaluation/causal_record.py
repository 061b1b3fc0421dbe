"""What `causal_prediction` leaves behind: coders judged by what removing atoms does, as JSON and as a table."""

from typing import Literal

from sparsight.evaluation.record import DictionaryRecord, Estimate, Record

CAUSAL_CONVENTIONS = {
    "pair": "a counted token and a latent, drawn uniformly among those that at least one coder calls active there",
    "projection": "x becomes x - <x - mean, d_j> d_j at that token: all that lies along the atom, about the mean",
    "constant": "x becomes x - c d_j, with one c for all pairs: the root mean square of the projections",
    "size": "sqrt(2 sum KL(clean || ablated)) over all predictions from that token on; linear in a small dose",
    "loss": "sum over the same predictions of ablated minus clean loss, in nats",
    "size agreement": "of the value z_j with the size",
    "loss agreement": "of the first-order prediction, -z_j <gradient of the loss, d_j>, with the change of loss; "
    "slope 1 where the value is the dose and the loss is linear",
    "projection (as coder)": "max(0, <x - mean, d_j>): no code at all, the yardstick for what follows from the dose",
    "interval": "percentile bootstrap over documents; differences draw the same documents for both",
}


class Agreement(Record):
    """How predictions go with measurements over all pairs.

    Attributes:
        spearman: Rank correlation, ties at their mean rank, in `[-1, 1]`.
        pearson: Correlation, in `[-1, 1]`.
        slope: Least-squares change of the measurement with the prediction.
    """

    spearman: Estimate
    pearson: Estimate
    slope: Estimate


class CoderRecord(Record):
    """One coder. `active` is the share of pairs in which it calls the latent active."""

    coder: str
    active: float
    size: Agreement
    loss: Agreement


class RankDifference(Record):
    """Rank correlation of the first coder minus that of the second: above 0, the first predicts better."""

    first: str
    second: str
    size: Estimate
    loss: Estimate


class CausalPrediction(Record):
    """Coders of one dictionary, judged by what removing atoms does."""

    schema_version: Literal[1] = 1
    dictionary: DictionaryRecord
    site: str
    model: str
    split: str
    dose: str
    k: int
    n_pairs: int
    n_documents: int
    mean_size: float
    conventions: dict[str, str] = CAUSAL_CONVENTIONS
    coders: list[CoderRecord]
    differences: list[RankDifference]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """A table in Markdown."""
        head = "| coder | active | size: Spearman | Pearson | slope | loss: Spearman | Pearson | slope |"
        rows = [
            f"| {c.coder} | {c.active:.2f} | "
            + " | ".join(str(e) for a in (c.size, c.loss) for e in (a.spearman, a.pearson, a.slope))
            + " |"
            for c in self.coders
        ]
        return "\n".join([head, "|---" * 8 + "|", *rows])
