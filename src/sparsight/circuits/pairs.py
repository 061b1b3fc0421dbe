"""Examples for effects, from a file of JSON lines."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsight.circuits.metric import Metric, log_probability, logit_difference
from sparsight.errors import DataError
from sparsight.models import LanguageModel, Tokens

KEYS = {"clean", "corrupted", "right", "wrong"}


@dataclass(frozen=True)
class Pairs:
    """Sequences, what they are changed to, and the metric.

    Attributes:
        clean: The sequences.
        corrupted: The others, where there are any.
        metric: Logit of the right answer less that of the wrong one, or the right one's log-probability in nats.
    """

    clean: Tokens
    corrupted: Tokens | None
    metric: Metric


def read_pairs(path: str | Path, lm: LanguageModel) -> Pairs:
    """Read lines such as `{"clean": "the nurse said", "corrupted": "the pilot said", "right": "she", "wrong": "he"}`.

    `corrupted` and `wrong` may be left out, in all lines alike. Answers are one token each; of several the first is
    taken.

    Raises:
        DataError: the file is missing or damaged, or its lines do not have the same keys.
    """
    path = Path(path)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1)]
    if not rows:
        raise DataError(f"{path} holds no example; write one JSON object on each line")
    for number, row in enumerate(rows, start=1):
        if row.keys() != rows[0].keys():
            raise DataError(
                f"line {number} of {path} has {sorted(row)}, the first line {sorted(rows[0])}; use the same"
            )
    clean = lm.tokenize([row["clean"] for row in rows])
    corrupted = lm.tokenize([row["corrupted"] for row in rows]) if "corrupted" in rows[0] else None
    right = _answers(lm, [row["right"] for row in rows])
    if "wrong" not in rows[0]:
        return Pairs(clean, corrupted, log_probability(clean, right))
    return Pairs(clean, corrupted, logit_difference(clean, right, _answers(lm, [row["wrong"] for row in rows])))


def _row(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"line {number} of {path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not {"clean", "right"} <= found.keys() <= KEYS:
        got = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"line {number} of {path} must have clean, right and at most {sorted(KEYS)}, got {got}")
    if not all(isinstance(value, str) and value for value in found.values()):
        raise DataError(f"line {number} of {path} must hold texts that are not empty")
    return found


def _answers(lm: LanguageModel, texts: list[str]) -> torch.Tensor:
    """The first token of each text that the tokenizer did not add."""
    tokens = lm.tokenize(texts)
    first = tokens.counted.long().argmax(dim=1)
    return tokens.ids[torch.arange(len(texts)), first]
