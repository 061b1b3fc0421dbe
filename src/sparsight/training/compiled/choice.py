"""Which step a run takes: compiled code where it can be and where it pays."""

from importlib.util import find_spec
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary
from sparsight.training.settings import Training

# Multiplications of a run's encoder above which the seconds of compiling are repaid, were they to be spent.
WORTH_IT = 10**12


def has_compiled_step(config: Any) -> bool:
    """Whether there is compiled code for an architecture and its variant."""
    if config.architecture == "relu":
        return bool(config.norms == "unit")
    if config.architecture == "gated":
        plain = config.heaviside and config.freeze_aux_decoder and not config.untied
        return bool(plain and not config.shared_bias and not config.detach_aux_input)
    return config.architecture in ("topk", "batchtopk", "matryoshka", "jumprelu")


def takes_compiled_step(config: Any, size: int, training: Training, device: torch.device, processes: int = 1) -> bool:
    """Whether a dictionary in training goes through compiled code.

    Not in other precisions, for batches in parts or among processes, where numba (on CUDA Triton) is not installed,
    and, unless a sparse step is asked for, for runs so small that compiling would take longer; nor, unless asked for,
    on CUDA, where its speed has not been measured. The choice depends on the settings and the installation only: a run
    that goes on makes the same.

    Args:
        size: Entries of the encoder.
    """
    needed = {"cpu": "numba", "cuda": "triton"}.get(device.type)
    if not has_compiled_step(config) or needed is None or find_spec(needed) is None:
        return False
    if training.precision != "float32" or training.accumulate > 1 or processes > 1:
        return False
    pays = device.type == "cpu" and training.n_tokens * size >= WORTH_IT
    return training.step == "sparse" or (training.step == "auto" and pays)


def compiled_step(dictionary: AbstractDictionary, training: Training, processes: int = 1) -> Any:
    """A `CompiledStep`, or None for a run that takes torch's operations."""
    atoms = dictionary.atoms
    if atoms.dtype != torch.float32:
        return None
    if not takes_compiled_step(dictionary.config, atoms.numel(), training, atoms.device, processes):
        return None
    from sparsight.training.compiled.step import CompiledStep

    if atoms.device.type == "cpu":
        from sparsight.training.compiled.cpu import CpuLoops

        return CompiledStep(dictionary, CpuLoops)
    from sparsight.training.compiled.cuda import CudaLoops

    return CompiledStep(dictionary, CudaLoops)
