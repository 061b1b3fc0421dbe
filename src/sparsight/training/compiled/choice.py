"""Which step a run takes: compiled code where it can be and where it pays."""

from importlib.util import find_spec
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary
from sparsight.training.settings import Training

# Multiplications of a run's encoder above which the seconds of compiling are repaid, were they to be spent.
WORTH_IT = 10**12


def compiled_step(dictionary: AbstractDictionary, training: Training) -> Any:
    """A `CompiledStep`, or None for a run that takes torch's operations.

    None for other devices, precisions and architectures, where numba is not installed, and, unless a sparse step is
    asked for, for runs so small that compiling would take longer. The choice depends on the settings and the
    installation only: a run that goes on makes the same.
    """
    atoms = dictionary.atoms
    if training.step == "dense" or training.precision != "float32" or find_spec("numba") is None:
        return None
    if atoms.device.type != "cpu" or atoms.dtype != torch.float32:
        return None
    if training.step == "auto" and training.n_tokens * atoms.numel() < WORTH_IT:
        return None
    from sparsight.training.compiled.step import COMPILED, CompiledStep

    return CompiledStep(dictionary) if isinstance(dictionary, COMPILED) else None
