"""Labels from a JSON file: the kind, the classes and the labels of each feature, by row or by document."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsight.errors import DataError
from sparsight.evaluation.features.labelled import KINDS, UNDEFINED, Meaning
from sparsight.evaluation.reading import StoredActivations


def read_labels(path: Path, store: StoredActivations) -> tuple[dict[str, Tensor], dict[str, Meaning]]:
    """Labels for every row of a store, and what they mean.

    The file holds `{"english": {"classes": ["no", "yes"], "kind": "binary", "documents": {"0": 1, "1": 0}}}`: a class,
    by number or by name, for each document, by its id. In place of `documents`, `rows` lists a class (or -1) for each
    stored token. A document that is not listed is undefined.

    Raises:
        DataError: the file is not of this form, names a class or a kind that is not there, or is misaligned.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"labels {path} cannot be read as JSON: {error}") from None
    if not isinstance(entries, dict) or not entries:
        raise DataError(f'labels {path} must be an object {{"feature": {{"classes": [...], "documents": {{...}}}}}}')
    labels, meanings = {}, {}
    for name, entry in entries.items():
        try:
            classes = tuple(str(label) for label in entry["classes"])
            kind = entry.get("kind", "binary" if len(classes) == 2 else "categorical")
            said = entry["documents"] if "documents" in entry else entry["rows"]
        except (KeyError, TypeError, AttributeError):
            raise DataError(f'feature {name!r} in {path} needs "classes", and "documents" or "rows"') from None
        if kind not in KINDS:
            raise DataError(f"feature {name!r} in {path} is of kind {kind!r}; expected one of {', '.join(KINDS)}")
        if isinstance(said, dict):
            labels[name] = _by_document(name, said, classes, store)
        else:
            labels[name] = torch.tensor([_class(name, value, classes) for value in said], dtype=torch.int64)
        meanings[name] = Meaning(kind, classes, str(entry.get("description", "")))
    return labels, meanings


def _by_document(
    name: str, said: dict[str, Any], classes: tuple[str, ...], store: StoredActivations
) -> Int64[Tensor, " n"]:
    ids = store.tokens(slice(0, len(store))).document_ids
    labels = torch.full_like(ids, UNDEFINED)
    there = set(torch.unique(ids).tolist())
    try:
        by_id = {int(document): _class(name, value, classes) for document, value in said.items()}
    except ValueError:
        raise DataError(f"documents of {name} must be named by their numbers, got {next(iter(said))!r}") from None
    if not there & set(by_id):
        raise DataError(f"labels of {name} are misaligned: none of its {len(by_id)} documents is in the store")
    for document, value in by_id.items():
        if document in there:
            labels[ids == document] = value
    return labels


def _class(name: str, value: Any, classes: tuple[str, ...]) -> int:
    if isinstance(value, str):
        if value not in classes:
            raise DataError(f"{name} has no class {value!r}; it has {', '.join(classes)}")
        return classes.index(value)
    if not isinstance(value, int) or not UNDEFINED <= value < len(classes):
        raise DataError(f"a label of {name} must be -1 or in [0, {len(classes)}), got {value!r}")
    return value
