"""Which step a run takes: compiled code where it can be and where it pays."""

from importlib.util import find_spec
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary
from sparsight.training.settings import Training

# Architectures that have a compiled step.
COMPILED = ("topk", "batchtopk", "matryoshka", "jumprelu")
# Multiplications of a run's encoder above which the seconds of compiling are repaid, were they to be spent.
WORTH_IT = 10**12


def takes_compiled_step(
    architecture: str, size: int, training: Training, device: torch.device, processes: int = 1
) -> bool:
    """Whether a dictionary in training goes through compiled code.

    Not in other precisions, for batches in parts or among processes, where numba (on CUDA Triton) is not installed,
    and, unless a sparse step is asked for, for runs so small that compiling would take longer; nor, unless asked for,
    on CUDA, where its speed has not been measured. The choice depends on the settings and the installation only: a run
    that goes on makes the same.

    Args:
        size: Entries of the encoder.
    """
    needed = {"cpu": "numba", "cuda": "triton"}.get(device.type)
    if architecture not in COMPILED or needed is None or find_spec(needed) is None:
        return False
    if training.precision != "float32" or training.accumulate > 1 or processes > 1:
        return False
    pays = device.type == "cpu" and training.n_tokens * size >= WORTH_IT
    return training.step == "sparse" or (training.step == "auto" and pays)


def compiled_step(dictionary: AbstractDictionary, training: Training, processes: int = 1) -> Any:
    """A `CompiledStep`, or None for a run that takes torch's operations."""
    atoms, architecture = dictionary.atoms, dictionary.config.architecture
    if atoms.dtype != torch.float32:
        return None
    if not takes_compiled_step(architecture, atoms.numel(), training, atoms.device, processes):
        return None
    from sparsight.training.compiled.step import CompiledStep

    if atoms.device.type == "cpu":
        from sparsight.training.compiled.cpu import CpuLoops

        return CompiledStep(dictionary, CpuLoops)
    from sparsight.training.compiled.cuda import CudaLoops

    return CompiledStep(dictionary, CudaLoops)
