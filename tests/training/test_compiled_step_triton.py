"""The Triton kernels of the sparse step, in Triton's interpreter, against the dense step and numba's loops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, JumpReLU, Matryoshka, TopK
from sparsight.training import Training
from sparsight.training.adam import AdamRule
from sparsight.training.compiled.step import CompiledStep
from sparsight.training.member import Member

pytest.importorskip("triton")
pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels run on it: test_cuda_step.py")

CONFIGS = [
    TopK(40, 3),
    BatchTopK(40, 3),
    Matryoshka(40, 3, widths=(8, 20), weights=(0.5, 2.0)),
    JumpReLU(40, target_l0=2, threshold=0.7, bandwidth=0.2),
]


def member(config: DictionaryConfig, step: str, loops: str = "") -> Member:
    it = Member("it", config, 12, Training(n_tokens=1000, batch_size=8, step=step), torch.device("cpu"))
    assert isinstance(it.rule, AdamRule)
    # An encoder that is the atoms' transpose fits so well along an atom that only rounding is left to learn from.
    encoder: Any = it.dictionary.W_enc
    encoder.data += torch.randn(12, 40, generator=torch.Generator().manual_seed(9)) / 12**0.5
    if loops == "triton":
        from sparsight.training.compiled.cuda import CudaLoops

        it.rule.compiled = CompiledStep(it.dictionary, CudaLoops)
    if it.rule.compiled is not None:
        it.rule.compiled.written()
    return it


def batch(seed: int) -> Tensor:
    drawn: Tensor = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed))
    return drawn / 12**0.5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_gradients_are_those_of_the_dense_step(config: DictionaryConfig) -> None:
    ours, dense = member(config, "sparse", "triton"), member(config, "dense")
    dead, found = torch.arange(40) % 5 == 0, []
    for it in (ours, dense):
        rule: Any = it.rule
        rule.optimizer.clear_gradients()
        objective = rule._gradients(batch(0), dead, 1.0)
        grads = {name: p.grad for name, p in it.dictionary.named_parameters() if p.grad is not None}
        found.append((objective, grads if rule.compiled is None else rule.compiled.dense_gradients()))
    (one, mine), (other, true) = found
    torch.testing.assert_close(one.loss.detach(), other.loss.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(one.fired, other.fired)
    assert mine.keys() == true.keys()
    for name, gradient in true.items():
        assert torch.allclose(mine[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_steps_lead_where_those_of_the_cpu_lead(config: DictionaryConfig) -> None:
    """Adam on the sphere too: averages, atoms of norm 1, latents without a gradient."""
    ours, numba = member(config, "sparse", "triton"), member(config, "sparse")
    for step in range(2):
        for it in (ours, numba):
            it.step(batch(step), 1e-3, 1.0)
    theirs = numba.tensors()
    for name, tensor in ours.tensors().items():
        assert torch.allclose(tensor.double(), theirs[name].double(), rtol=1e-3, atol=2e-6), name
    torch.testing.assert_close(ours.dictionary.atoms.norm(dim=1), torch.ones(40))
