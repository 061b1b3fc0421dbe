"""Where training starts: a fresh dictionary of a configuration, or one that exists."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.dictionaries.files import dictionary_tensors
from sparsight.formats import load_dictionary
from sparsight.training.batches import AnyNormalization


@dataclass(frozen=True)
class FineTune:
    """Training that goes on from a dictionary: its weights and architecture, with a fresh optimiser.

    Attributes:
        dictionary: One that takes raw activations, or the folder of one.
    """

    dictionary: AbstractDictionary | str | Path


@dataclass(frozen=True)
class StartingPoint:
    """What one member of a run begins as.

    Attributes:
        config: What to build.
        fingerprint: SHA-256 of the weights to begin with; empty for a fresh dictionary.
        dictionary: The dictionary that has them.
    """

    config: DictionaryConfig
    fingerprint: str = ""
    dictionary: AbstractDictionary | None = field(default=None, compare=False)

    @property
    def run_name(self) -> str:
        return f"finetune-{self.config.run_name}" if self.fingerprint else self.config.run_name

    def record(self) -> dict[str, Any]:
        """What a resumed run must find unchanged, as JSON."""
        described = {"architecture": self.config.architecture, **asdict(self.config)}
        return described | ({"starts_from": self.fingerprint} if self.fingerprint else {})

    def normalized(self, normalization: AnyNormalization) -> AbstractDictionary | None:
        """The dictionary to start from, as one of activations normalised in this run's way; None for a fresh one.

        Whatever was folded into it before stays in it: what is undone is this run's own folding at the end.
        """
        if self.dictionary is None:
            return None
        started = copy.deepcopy(self.dictionary)
        started.normalization = None
        with torch.no_grad():
            started.absorb_(normalization.inverse())
        return started


def starting_points(
    entries: Sequence[DictionaryConfig | FineTune | AbstractDictionary],
) -> list[StartingPoint]:
    """One for each thing to train.

    Raises:
        FormatError: a folder holds no dictionary.
    """
    points = []
    for entry in entries:
        if isinstance(entry, DictionaryConfig):
            points.append(StartingPoint(entry))
            continue
        given = entry.dictionary if isinstance(entry, FineTune) else entry
        dictionary = given if isinstance(given, AbstractDictionary) else load_dictionary(given)
        points.append(StartingPoint(dictionary.config, fingerprint_of(dictionary), dictionary))
    return points


def fingerprint_of(dictionary: AbstractDictionary) -> str:
    """SHA-256 of all weights, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dictionary_tensors(dictionary).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
