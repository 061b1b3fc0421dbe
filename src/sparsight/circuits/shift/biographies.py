"""Texts with a feature to be told apart and a feature that goes with it: what SHIFT starts from."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsight.errors import DataError
from sparsight.models.organism import FEATURES, Document, corpus, heldout_corpus
from sparsight.models.organism.lexicon import PROFESSIONS

# The numbers of professions in the data set "Bias in Bios" as it is published on the hub, in their order.
_PROFESSIONS = (
    "accountant architect attorney chiropractor comedian composer dentist dietitian dj filmmaker interior_designer "
    "journalist model nurse painter paralegal pastor personal_trainer photographer physician poet professor "
    "psychologist rapper software_engineer surgeon teacher yoga_teacher"
)
BIOS_PROFESSIONS = tuple(_PROFESSIONS.split())
BIOS_COLUMNS = ("hard_text", "profession", "gender")


@dataclass(frozen=True)
class LabelledText:
    """A text of two features.

    Attributes:
        id: Number of the text in its source.
        text: What the model reads.
        target: Class of the feature that a classifier is to tell, 0 or 1.
        spurious: Class of the feature that it is not to go by, 0 or 1.
        labels: Labels of each word, by feature, where the source has them; -1 where a feature is not defined.
    """

    id: int
    text: str
    target: int
    spurious: int
    labels: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of two features, of two classes each.

    Attributes:
        items: The texts.
        target: What a classifier is to tell, in words.
        spurious: What it is not to go by, in words.
        target_classes, spurious_classes: Names of the classes 0 and 1.
    """

    items: tuple[LabelledText, ...]
    target: str
    spurious: str
    target_classes: tuple[str, str]
    spurious_classes: tuple[str, str]

    def __post_init__(self) -> None:
        wrong = [item for item in self.items if {item.target, item.spurious} - {0, 1}]
        if wrong:
            raise ValueError(f"classes are 0 and 1, got target {wrong[0].target} and spurious {wrong[0].spurious}")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def texts(self) -> list[str]:
        return [item.text for item in self.items]

    @property
    def target_labels(self) -> Int64[Tensor, " n"]:
        return torch.tensor([item.target for item in self.items], dtype=torch.int64)

    @property
    def spurious_labels(self) -> Int64[Tensor, " n"]:
        return torch.tensor([item.spurious for item in self.items], dtype=torch.int64)

    @property
    def cells(self) -> dict[tuple[int, int], int]:
        """Texts of each (target, spurious); cells without a text are left out."""
        return dict(sorted(Counter((item.target, item.spurious) for item in self.items).items()))

    @property
    def is_fully_spurious(self) -> bool:
        """Whether one feature follows from the other, so that these texts cannot say which one a classifier reads."""
        return set(self.cells) in ({(0, 0), (1, 1)}, {(0, 1), (1, 0)})

    def with_texts(self, texts: Sequence[str]) -> "LabelledTexts":
        """The same features with other texts, labels of words left out: those that belong to the old words."""
        items = tuple(
            LabelledText(item.id, text, item.target, item.spurious)
            for item, text in zip(self.items, texts, strict=True)
        )
        return LabelledTexts(items, self.target, self.spurious, self.target_classes, self.spurious_classes)


def organism_biographies(
    n: int, *, seed: int, spurious: bool, heldout: bool = False, languages: Mapping[str, float | int] | None = None
) -> LabelledTexts:
    """Biographies of the organism: is the profession of the second five? The gender goes with it, or does not.

    Args:
        n: Texts; a multiple of four.
        seed: Of the corpus.
        spurious: Men of the first five professions and women of the last five, half and half; else all four
            combinations, a quarter each.
        heldout: Whether to take the corpus's held-out split.
        languages: Weight of each language; all three alike when not given.
    Raises:
        ValueError: `n` is not a positive multiple of four.
    """
    if n < 4 or n % 4:
        raise ValueError(f"n must be a positive multiple of 4, so that classes and groups are even, got n={n}")
    stream = heldout_corpus if heldout else corpus
    choices: dict[str, Any] = {"domains": {"biography": 1}, "gender_profession_correlation": float(spurious)}
    if languages is not None:
        choices["languages"] = languages
    cells = [(0, 0), (1, 1)] if spurious else [(0, 0), (0, 1), (1, 0), (1, 1)]
    items = _filled(map(_of_document, stream(seed, 100 * n, **choices)), cells, n // len(cells))
    half = len(PROFESSIONS) // 2
    return LabelledTexts(
        tuple(items),
        "profession",
        "gender",
        ("/".join(PROFESSIONS[:half]), "/".join(PROFESSIONS[half:])),
        (FEATURES["gender"].classes[0], FEATURES["gender"].classes[1]),
    )


def _of_document(document: Document) -> LabelledText:
    profession, gender = (max(document.labels[name]) for name in ("profession", "gender"))
    target = int(profession >= len(PROFESSIONS) // 2)
    return LabelledText(document.id, document.text, target, gender, document.labels)


def bias_in_bios(
    source: str | Path,
    n: int,
    *,
    seed: int,
    spurious: bool,
    professions: tuple[str, str] = ("professor", "nurse"),
    split: str = "train",
) -> LabelledTexts:
    """Biographies from the web (De-Arteaga et al., 2019): which of two professions? Gender goes with it, or does not.

    Args:
        source: A data set on the hub such as `LabHC/bias_in_bios`, or a local `.jsonl` or `.parquet` file with its
            columns `hard_text`, `profession` (number) and `gender` (0 male, 1 female).
        n: Texts; a multiple of four.
        seed: Of the order in which they are drawn.
        spurious: Men of the first profession and women of the second alone, half and half; else a quarter of each
            combination.
        professions: Two of `BIOS_PROFESSIONS`.
        split: Of a data set on the hub.
    Raises:
        ValueError: a profession is unknown, or `n` is not a positive multiple of four.
        DataError: the source cannot be opened, lacks a column, or holds too few texts of a combination.
    """
    unknown = [name for name in professions if name not in BIOS_PROFESSIONS]
    if unknown or professions[0] == professions[1]:
        raise ValueError(f"professions must be two of {', '.join(BIOS_PROFESSIONS)}, got {professions}")
    if n < 4 or n % 4:
        raise ValueError(f"n must be a positive multiple of 4, so that classes and groups are even, got n={n}")
    rows = _bios_rows(source, split)
    if missing := [name for name in BIOS_COLUMNS if name not in (rows.column_names or BIOS_COLUMNS)]:
        raise DataError(f"{source} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
    numbers = {BIOS_PROFESSIONS.index(name): i for i, name in enumerate(professions)}
    found = [
        LabelledText(row, entry["hard_text"], numbers[entry["profession"]], entry["gender"])
        for row, entry in enumerate(rows)
        if entry["profession"] in numbers
    ]
    Random(seed).shuffle(found)
    cells = [(0, 0), (1, 1)] if spurious else [(0, 0), (0, 1), (1, 0), (1, 1)]
    items = _filled(iter(found), cells, n // len(cells))
    return LabelledTexts(tuple(items), "profession", "gender", professions, ("male", "female"))


def _bios_rows(source: str | Path, split: str) -> Any:
    import datasets

    path = Path(source)
    readers: dict[str, Callable[[str], Any]] = {
        ".jsonl": datasets.Dataset.from_json,
        ".parquet": datasets.Dataset.from_parquet,
    }
    try:
        if path.is_file():
            if path.suffix not in readers:
                raise DataError(f"{source} ends in {path.suffix!r}; expected .jsonl or .parquet")
            return readers[path.suffix](str(path))
        return datasets.load_dataset(str(source), split=split)
    except (datasets.exceptions.DatasetNotFoundError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"biographies cannot be read from {source!s} (split {split!r}): {reason}") from None


def _filled(stream: Iterable[LabelledText], cells: Sequence[tuple[int, int]], quota: int) -> Iterator[LabelledText]:
    """The first `quota` texts of each cell, in the order of the stream."""
    left = dict.fromkeys(cells, quota)
    for item in stream:
        if left.get((item.target, item.spurious), 0):
            left[item.target, item.spurious] -= 1
            yield item
        if not any(left.values()):
            return
    short = {cell: quota - missing for cell, missing in left.items() if missing}
    raise DataError(f"too few texts: expected {quota} of each (target, spurious), got {short}; ask for fewer")
