"""JumpReLU's pseudo-derivatives: the density law in the objective itself, and float32 where bfloat16 would blur it."""

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import JumpReLU, JumpReLUDictionary
from sparsight.training.objectives import jumprelu_objective

D, M, N = 8, 24, 20_000
THETA, BANDWIDTH = 0.4, 0.05


def built(weight: float = 1.0) -> JumpReLUDictionary:
    config = JumpReLU(M, l0=weight, bandwidth=BANDWIDTH, threshold=THETA, aux=0.0)
    return config.build(D, torch.Generator().manual_seed(0))


def data() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) / D**0.5


def threshold_gradient(dictionary: JumpReLUDictionary, x: Tensor, *, bf16: bool) -> Tensor:
    """By the threshold itself: that of its logarithm over the threshold."""
    dictionary.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        objective = jumprelu_objective(dictionary, x, torch.zeros(M, dtype=torch.bool))
    objective.loss.backward()
    assert dictionary.log_threshold.grad.dtype == dictionary.log_threshold.dtype
    return dictionary.log_threshold.grad.double() / THETA


@pytest.mark.parametrize("bf16", [False, True])
def test_the_penalty_moves_every_threshold_by_the_density_of_its_pre_activation(bf16: bool) -> None:
    """Pre-activations are normal with variance 1 / d_in: `-(1/e) P(|z - theta| < e/2)`, latent by latent."""
    with_penalty = threshold_gradient(built(1.0), data(), bf16=bf16)
    found = with_penalty - threshold_gradient(built(0.0), data(), bf16=bf16)
    edges = torch.tensor([THETA - BANDWIDTH / 2, THETA + BANDWIDTH / 2], dtype=torch.float64) * D**0.5
    p = float(torch.special.ndtr(edges).diff())
    standard_error = (p * (1 - p) / N) ** 0.5 / BANDWIDTH
    assert float((found + p / BANDWIDTH).abs().max()) < 4 * standard_error
    # All 24 together: a twentieth of the law would show, the half that the wrong side of the jump gives all the more.
    assert float(found.mean()) == pytest.approx(-p / BANDWIDTH, rel=0.05)


def test_bfloat16_products_do_not_change_what_the_penalty_tells_a_threshold() -> None:
    """Pre-activations near a threshold are compared with it in float32, whatever the other products are done in."""
    found = [
        threshold_gradient(built(1.0), data(), bf16=bf16) - threshold_gradient(built(0.0), data(), bf16=bf16)
        for bf16 in (False, True)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_dictionary_held_in_bfloat16_still_has_thresholds_compared_in_float32() -> None:
    dictionary = built().bfloat16()
    x = data().bfloat16()
    objective = jumprelu_objective(dictionary, x, torch.zeros(M, dtype=torch.bool))
    pre = torch.addmm(dictionary.b_enc, x - dictionary.b_dec, dictionary.W_enc).float()
    expected = (pre > dictionary.threshold.float()).float().sum(dim=1).mean()
    assert objective.l0.dtype == torch.float32
    torch.testing.assert_close(objective.l0, expected.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_reconstruction_moves_a_threshold_from_both_sides_of_it(side: int) -> None:
    """One latent, one row just below or above: `dL/dtheta = -(theta / e) dL/dz`, with `dL/dz` of the code as it is."""
    dictionary = JumpReLU(1, l0=0.0, bandwidth=0.1, threshold=0.5, aux=0.0).build(1).double()
    with torch.no_grad():
        dictionary.atoms.fill_(1.0)
        dictionary.W_enc.fill_(0.8)
    z = 0.5 + side * 0.02
    x = torch.tensor([[z / 0.8]], dtype=torch.float64)
    jumprelu_objective(dictionary, x, torch.zeros(1, dtype=torch.bool)).loss.backward()
    to_code = 2 * ((z if side > 0 else 0.0) - z / 0.8)
    assert float(dictionary.log_threshold.grad) == pytest.approx(-0.5 * (0.5 / 0.1) * to_code, rel=1e-6)
