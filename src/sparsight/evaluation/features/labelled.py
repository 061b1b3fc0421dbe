"""Labelled features of stored tokens, checked against the store, and the examples to fit and to judge probes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.reading import StoredActivations

Kind = Literal["binary", "categorical", "cyclic", "ordinal"]
KINDS = ("binary", "categorical", "cyclic", "ordinal")
UNDEFINED = -1
"""Label of a token for which a feature is not defined."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A feature: a property of the input, with its class at every stored token.

    Attributes:
        name: Of the feature.
        kind: `binary`, `categorical` (no order), `cyclic` (after the last class comes the first), `ordinal` (ordered).
        classes: Name of each class.
        description: What the label says.
        labels: Class of each row of the whole store; -1 where the feature is not defined.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    description: str
    labels: Int64[Tensor, " n"]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of {self.name} must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if len(self.labels) and int(self.labels.max()) >= len(self.classes):
            raise DataError(
                f"{self.name} has {len(self.classes)} classes, got label {int(self.labels.max())}; name all classes"
            )
        if len(self.labels) and int(self.labels.min()) < UNDEFINED:
            raise DataError(f"labels of {self.name} must be -1 or a class, got {int(self.labels.min())}")


@dataclass(frozen=True)
class Meaning:
    """What a label file or a caller says of a feature's labels; the organism's `Feature` reads the same."""

    kind: Kind
    classes: tuple[str, ...]
    description: str = ""


def labelled_features(
    store: StoredActivations,
    labels: Sequence[str] | Mapping[str, Tensor] | None = None,
    meanings: Mapping[str, Any] | None = None,
) -> list[Labelled]:
    """The features to report on, with their labels at every row of a store.

    Args:
        store: Whole, not a split of it.
        labels: None for all that the store holds; names of some of them; or labels by name, one for each row.
        meanings: Kind, classes and description by name (`Meaning`, or the organism's `FEATURES`). A feature without
            one is binary where it has two classes, categorical else, its classes numbered.
    Raises:
        DataError: the store has no labels or lacks a feature, or labels do not fit its rows or their classes.
    """
    if isinstance(labels, Mapping):
        given = dict(labels)
        for name, values in given.items():
            if values.dim() != 1 or len(values) != len(store):
                raise DataError(
                    f"labels of {name} are misaligned: expected one for each of the {len(store)} stored tokens, "
                    f"got {list(values.shape)}; special tokens and padding have no row and need no label"
                )
    else:
        if not store.label_names:
            raise DataError("the store has no labels; harvest documents that carry labels, or give labels by row")
        unknown = sorted(set(labels or ()) - set(store.label_names))
        if unknown:
            raise DataError(f"the store has no feature {unknown[0]!r}; it has {', '.join(store.label_names)}")
        held = store.labels(slice(0, len(store)))
        given = {name: held[name] for name in (labels or store.label_names)}
    known = _meanings(store, meanings)
    return [_labelled(name, values.to(torch.int64), known.get(name)) for name, values in given.items()]


def _meanings(store: StoredActivations, meanings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if meanings is not None:
        return meanings
    if store.model.rstrip("/").rsplit("/", 1)[-1] in ("organism", "organism-backdoored"):
        from sparsight.models.organism import FEATURES

        return FEATURES
    return {}


def _labelled(name: str, values: Int64[Tensor, " n"], meaning: Any) -> Labelled:
    if meaning is not None:
        return Labelled(name, meaning.kind, tuple(meaning.classes), meaning.description, values)
    n = max(2, int(values.max()) + 1 if len(values) else 0)
    return Labelled(name, "binary" if n == 2 else "categorical", tuple(map(str, range(n))), "", values)


@dataclass(frozen=True, eq=False)
class Part:
    """Examples of one feature on one side of the documents.

    Attributes:
        rows: Of the whole store.
        y: Class of each, numbered among the classes kept.
        document_ids, token_ids: Of each.
        strata: Class of the feature that is held fixed; all 0 where there is none.
    """

    rows: Int64[Tensor, " n"]
    y: Int64[Tensor, " n"]
    document_ids: Int64[Tensor, " n"]
    token_ids: Int64[Tensor, " n"]
    strata: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Examples:
    """Where a feature is fitted, where choices are made, and where it is judged: three sets of documents.

    Attributes:
        feature: The property, with the labels of all rows.
        kept: Its classes with examples on every side; `y` numbers these.
        left_out: Why each other class was dropped.
        fit, choose, judge: Examples; no document is in two of them.
        n_strata: Number of classes of the feature held fixed; 1 where there is none.
    """

    feature: Labelled
    kept: tuple[int, ...]
    left_out: dict[str, str]
    fit: Part
    choose: Part
    judge: Part
    n_strata: int

    @property
    def n_classes(self) -> int:
        return len(self.kept)


@dataclass(frozen=True, eq=False)
class Documents:
    """Which side each stored token is on, and which token it is.

    Attributes:
        document_ids, token_ids: Of each row of the whole store.
        side: 0 to fit on, 1 to choose on, 2 to judge on.
    """

    document_ids: Int64[Tensor, " n"]
    token_ids: Int64[Tensor, " n"]
    side: Int64[Tensor, " n"]

    @staticmethod
    def of(store: StoredActivations, *, share_to_choose: float = 0.25, seed: int = 0) -> "Documents":
        """Split a store: held-out documents judge, a share of the training documents chooses, the others are fitted on.

        Raises:
            DataError: there are not two training documents and one held-out one.
        """
        tokens = store.tokens(slice(0, len(store)))
        ids = tokens.document_ids
        all_documents = torch.unique(ids)
        if len(all_documents) < 3:
            raise DataError(
                f"a report needs documents to fit on, to choose on and to judge on, got {len(all_documents)} in all; "
                "harvest more documents"
            )
        heldout = store.split("heldout")
        judged = torch.unique(heldout.tokens(slice(0, len(heldout))).document_ids)
        train = all_documents[~torch.isin(all_documents, judged)]
        if len(train) < 2 or len(judged) < 1:
            raise DataError(
                f"a report needs two training documents and a held-out one, got {len(train)} and {len(judged)}; "
                "harvest more documents or another share"
            )
        shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
        chooses = shuffled[: max(1, round(share_to_choose * len(train)))]
        side = torch.isin(ids, chooses).long() + 2 * torch.isin(ids, judged).long()
        return Documents(ids, tokens.token_ids, side)


def examples_of(
    feature: Labelled,
    documents: Documents,
    *,
    given: Labelled | None = None,
    sizes: tuple[int, int, int] = (1500, 600, 1200),
    seed: int = 0,
) -> Examples:
    """Draw examples of a feature, classes as evenly as there are tokens for.

    Args:
        feature: With a label for each row.
        documents: Which rows are on which side.
        given: A feature to hold fixed: geometry and interventions stay within its classes.
        sizes: Most tokens to fit on, to choose on, to judge on.
        seed: Of the draw.
    Raises:
        UndefinedMetric: fewer than two classes have examples on every side.
    """
    y = feature.labels
    usable = y != UNDEFINED
    if given is not None:
        usable &= given.labels != UNDEFINED
    n = len(feature.classes)
    counts = torch.stack([torch.bincount(y[usable & (documents.side == s)], minlength=n) for s in range(3)])
    names = ("to fit on", "to choose on", "to judge on")
    left_out = {}
    for c in range(n):
        missing = [name for name, count in zip(names, counts[:, c].tolist(), strict=True) if count == 0]
        if missing:
            left_out[feature.classes[c]] = f"no examples {', '.join(missing)}"
    kept = tuple(c for c in range(n) if feature.classes[c] not in left_out)
    if len(kept) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UndefinedMetric(f"{feature.name} has {len(kept)} classes with examples on every side ({reasons})")
    number = torch.full((n,), UNDEFINED)
    number[list(kept)] = torch.arange(len(kept))
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for side, size in enumerate(sizes):
        rows = (usable & (documents.side == side)).nonzero()[:, 0]
        rows = rows[number[y[rows]] >= 0]
        rows = _balanced(rows, number[y[rows]], size, generator)
        strata = torch.zeros_like(rows) if given is None else given.labels[rows]
        parts.append(Part(rows, number[y[rows]], documents.document_ids[rows], documents.token_ids[rows], strata))
    return Examples(feature, kept, left_out, parts[0], parts[1], parts[2], 1 if given is None else len(given.classes))


def _balanced(
    rows: Int64[Tensor, " n"], y: Int64[Tensor, " n"], size: int, generator: torch.Generator
) -> Int64[Tensor, " m"]:
    """At most `size` rows: one of each class in turn, until the classes run out; in rising order."""
    order = torch.randperm(len(rows), generator=generator)
    y = y[order]
    rank = torch.empty_like(y)
    for c in torch.unique(y).tolist():
        mine = y == c
        rank[mine] = torch.arange(int(mine.sum()))
    taken = order[rank.argsort(stable=True)[:size]]
    return rows[taken].sort().values
