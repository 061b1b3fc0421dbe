"""What `shift` returns: a record of what was judged and done, and the corrected classifier."""

from dataclasses import dataclass
from typing import Literal

from sparsight.circuits.shift.classifier import Accuracies, Classifier, Intervention
from sparsight.circuits.shift.hypotheses import Hypotheses
from sparsight.circuits.shift.judges import Judgement
from sparsight.evaluation.frozen_record import Record

Unclear = Literal["keep", "remove"]


class ShiftRecord(Record):
    """What SHIFT found and did, as data.

    Attributes:
        model, site: Whose activations are classified, and where.
        judge: Who judged.
        unclear: What was done with nodes judged unclear.
        unjudged: What was done with nodes that nobody judged, and with errors.
        n_judged: Nodes that were judged, those with the largest support; the largest magnitude where those not judged
            were removed.
        judgements: One for each, with reasons and the number of texts each has seen.
        removed: Judged nodes set to 0, by site.
        error_share: By site, effect of the errors over that of errors and nodes together, in absolute value: what
            judging nodes cannot reach.
        original, ablated, retrained: Accuracies on test texts: of the classifier as it was, with the nodes removed, and
            fitted anew on the biased texts with the nodes removed. None without test texts.
        undecided: Readings of the judged nodes that the biased texts cannot tell apart.
        effects: Of each judged node on the right class's logit, exact: "site/latent" to mean over texts.
        attributed: The same at first order, by which the nodes were ranked.
    """

    schema_version: Literal[1] = 1
    model: str
    site: str
    judge: str
    unclear: Unclear
    unjudged: Unclear = "keep"
    n_judged: int
    judgements: list[Judgement]
    removed: dict[str, list[int]]
    error_share: dict[str, float]
    original: Accuracies | None
    ablated: Accuracies | None
    retrained: Accuracies | None
    undecided: list[Hypotheses]
    effects: dict[str, float]
    attributed: dict[str, float]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)


@dataclass(frozen=True, eq=False)
class Shift:
    """The outcome of `shift`.

    Attributes:
        record: What was found and done.
        original: The classifier as it was fitted on the biased texts.
        retrained: The classifier fitted with the nodes removed. Use it under `intervention`.
        intervention: Edits that remove the nodes, for a batch of tokens.
    """

    record: ShiftRecord
    original: Classifier
    retrained: Classifier
    intervention: Intervention
