"""Which single latent tells best where a labelled feature is present: chosen on training documents, scored on others.

The feature is the labelled property of the input, given; the latent is a coordinate of the code, found. What links them
is the score, and nothing else: no name passes from one to the other.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.classification import SparseColumns, auroc, best_threshold, detect
from sparsight.evaluation.evaluate import Code, coder_of
from sparsight.evaluation.reading import StoredActivations, batches, part_of, reported, row_blocks, site_for
from sparsight.evaluation.record import Record
from sparsight.models import Site

UNDEFINED = -1  # label of a token for which a feature is not defined


class FeatureRow(Record):
    """The best latent of one class of a labelled feature.

    Attributes:
        feature: Name of the labelled property of the input.
        label: Class told apart from the rest.
        latent: Latent with the largest AUROC on training documents; of equals the first.
        auroc_train: That AUROC: the largest of many, so flattered by the choice.
        auroc: The same latent's AUROC on held-out documents. 0.5 is chance.
        threshold: Value with the best F1 on training documents; the latent fires at or above it.
        f1: F1 on held-out documents, as precision and recall.
        precision: Share of tokens it fires on that are of the class.
        recall: Share of the class it fires on.
        n_positive: Held-out tokens of the class.
        n: Held-out tokens for which the feature is defined.
        n_positive_train: Training tokens of the class.
        n_train: Training tokens for which the feature is defined.
    """

    feature: str
    label: str
    latent: int
    auroc_train: float
    auroc: float
    threshold: float
    f1: float
    precision: float
    recall: float
    n_positive: int
    n: int
    n_positive_train: int
    n_train: int


class LeftOut(Record):
    """A class that could not be measured, and why."""

    feature: str
    label: str
    reason: str


class FeatureTable(Record):
    """The best latent of every class of every labelled feature of a store."""

    schema_version: Literal[1] = 1
    site: str
    model: str
    n_latents: int
    n_train: int
    n_heldout: int
    rows: list[FeatureRow]
    left_out: list[LeftOut]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """A table for people."""
        from sparsight.evaluation.tables import feature_table

        return feature_table(self)


def best_latents(
    dictionary: AbstractDictionary,
    store: StoredActivations,
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    coder: str | None = None,
    k: int | None = None,
    site: Site | str | None = None,
    n_tokens: int | None = 100_000,
    batch_size: int = 4096,
    force: bool = False,
    progress: bool = False,
) -> FeatureTable:
    """Find, for each labelled feature, the latent that best tells where it is present.

    Every class of a feature is told apart from its other classes, over the tokens where the feature is defined; a
    feature with the two classes 0 and 1 is one question, not two. The latent is the one with the largest AUROC on
    training documents, the threshold the one with the best F1 there; both are then scored on held-out documents.

    Args:
        dictionary: Takes raw activations.
        store: Activations with labels.
        classes: Names of the classes of each feature, in the order of their numbers; numbers are used where absent.
        coder: None for the dictionary's own code; else the name of an arm of `compare_coders`, with `k`.
        k: Latents per token, with `coder`.
        site: Where, if not at the dictionary's own site.
        n_tokens: About how many tokens of each side to use, spread evenly; all when None. Memory goes with
            `n_tokens * L0`.
        batch_size: Rows coded at once.
        force: Measure though the dictionary was made for another site or model.
        progress: Show a bar on stderr.
    Raises:
        DataError: the store has no labels, or lacks the site or a split, or provenance forbids it.
        ValueError: widths differ, or an argument is out of range.
    """
    if not store.label_names:
        raise DataError("the store has no labels; harvest documents that carry labels, such as the organism's")
    code = coder_of(dictionary, coder, k)
    chosen = site_for(dictionary, store, site, force=force)
    sides = {}
    for name in ("train", "heldout"):
        sides[name] = _Side(dictionary, code, part_of(store, name), chosen, n_tokens, batch_size, progress)
    train, heldout = sides["train"], sides["heldout"]
    rows, left_out = [], []
    for feature in store.label_names:
        for value in _questions(train.labels[feature], heldout.labels[feature]):
            label = _class_name(classes, feature, value)
            try:
                rows.append(_row(feature, label, value, train, heldout))
            except UndefinedMetric as error:
                left_out.append(LeftOut(feature=feature, label=label, reason=str(error)))
    return FeatureTable(
        site=str(chosen),
        model=store.model,
        n_latents=dictionary.n_latents,
        n_train=train.columns.n_rows,
        n_heldout=heldout.columns.n_rows,
        rows=rows,
        left_out=left_out,
    )


class _Side:
    """Codes, by column, and labels of one side of the split."""

    def __init__(
        self,
        dictionary: AbstractDictionary,
        code: Code,
        part: StoredActivations,
        site: Site,
        n_tokens: int | None,
        batch_size: int,
        progress: bool,
    ) -> None:
        blocks = row_blocks(len(part), batch_size, n_tokens)
        codes = []
        labels: dict[str, list[Tensor]] = {name: [] for name in part.label_names}
        with reported("coding", sum(b.stop - b.start for b in blocks), shown=progress) as advance:
            for block, x in batches(part, site, blocks, dictionary.atoms.device, advance):
                codes.append(code(x).to("cpu"))
                for name, values in part.labels(block).items():
                    labels[name].append(values)
        self.columns = SparseColumns.of(codes)
        self.labels = {name: torch.cat(values) for name, values in labels.items()}


def _questions(train: Int64[Tensor, " n"], heldout: Int64[Tensor, " m"]) -> list[int]:
    """Classes to tell from the rest: each that occurs, but only class 1 of a feature that is absent or present."""
    seen = torch.unique(torch.cat([train, heldout])).tolist()
    found = [value for value in seen if value != UNDEFINED]
    return [1] if found in ([0], [1], [0, 1]) else found


def _class_name(classes: Mapping[str, Sequence[str]] | None, feature: str, value: int) -> str:
    names = (classes or {}).get(feature, ())
    return names[value] if value < len(names) else str(value)


def _row(feature: str, label: str, value: int, train: _Side, heldout: _Side) -> FeatureRow:
    def labelled(side: _Side) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        return side.labels[feature] == value, side.labels[feature] != UNDEFINED

    is_class, defined = labelled(train)
    scores = train.columns.auroc(is_class, defined)
    latent = int(scores.argmax())
    threshold = best_threshold(train.columns.column(latent)[defined], is_class[defined])
    here, there = labelled(heldout)
    values = heldout.columns.column(latent)[there]
    found = detect(values, here[there], threshold)
    return FeatureRow(
        feature=feature,
        label=label,
        latent=latent,
        auroc_train=scores[latent].item(),
        auroc=auroc(values, here[there]),
        threshold=threshold,
        f1=found.f1,
        precision=found.precision,
        recall=found.recall,
        n_positive=int(here.sum()),
        n=int(there.sum()),
        n_positive_train=int(is_class.sum()),
        n_train=int(defined.sum()),
    )
