"""Losses and gradients against the formulae, the density law, and finite differences."""

import math
from dataclasses import replace

import pytest
import torch
from reference.objectives import jumprelu_loss_and_gradients, revival, topk_loss
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, JumpReLU, TopK
from sparsight.dictionaries.jumprelu import step
from sparsight.training.objectives import jumprelu_objective, topk_objective
from sparsight.training.sparse_step import sparse_top_k

D, M, N = 6, 20, 40


def shaken(dictionary: AbstractDictionary, seed: int = 1) -> AbstractDictionary:
    """The dictionary in float64 with every parameter moved off its symmetric start."""
    g = torch.Generator().manual_seed(seed)
    dictionary = dictionary.double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary


def data(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g, dtype=torch.float64) / math.sqrt(D)


def some_dead(n_dead: int) -> Tensor:
    return torch.arange(M) < n_dead


@pytest.mark.parametrize("n_dead", [0, 2, 9])  # none; fewer than k_aux; more than k_aux
def test_topk_loss_and_gradients_equal_the_dense_formula(n_dead: int) -> None:
    config = TopK(M, 4, aux=0.3, k_aux=3)
    dictionary = shaken(config.build(D, torch.Generator().manual_seed(0)))
    x, dead = data(), some_dead(n_dead)
    objective = topk_objective(dictionary, x, dead)
    objective.loss.backward()
    twin = {name: p.detach().clone().requires_grad_() for name, p in dictionary.named_parameters()}
    expected = topk_loss(twin, x, dead, k=4, aux=0.3, k_aux=3)
    expected.backward()
    torch.testing.assert_close(objective.loss, expected, rtol=1e-12, atol=0)
    for name, parameter in dictionary.named_parameters():
        torch.testing.assert_close(parameter.grad, twin[name].grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("k_aux", [3, 9])  # some of the dead in each token; all of them
def test_dead_latents_that_are_negative_everywhere_have_no_value_but_a_gradient(k_aux: int) -> None:
    dictionary = shaken(TopK(M, 4, aux=0.3, k_aux=k_aux).build(D, torch.Generator().manual_seed(0)))
    x, dead = data(), some_dead(9)
    with torch.no_grad():
        dictionary.b_enc[dead] = -9.0
    objective = topk_objective(dictionary, x, dead)
    objective.loss.backward()
    twin = {name: p.detach().clone().requires_grad_() for name, p in dictionary.named_parameters()}
    topk_loss(twin, x, dead, k=4, aux=0.3, k_aux=k_aux).backward()
    for name, parameter in dictionary.named_parameters():
        torch.testing.assert_close(parameter.grad, twin[name].grad, rtol=1e-9, atol=1e-12, msg=name)
    assert float(dictionary.atoms.grad[dead].abs().max()) == 0
    assert float(dictionary.W_enc.grad[:, dead].norm(dim=0).max()) > 1e-6


@pytest.mark.parametrize("sparsity", [{"l0": 0.01}, {"target_l0": 5.0}])
def test_jumprelu_loss_and_gradients_equal_the_formula(sparsity: dict[str, float]) -> None:
    config = JumpReLU(M, bandwidth=0.3, threshold=0.2, **sparsity)
    dictionary = shaken(config.build(D, torch.Generator().manual_seed(0)))
    objective = jumprelu_objective(dictionary, data(), some_dead(0))
    objective.loss.backward()
    loss, gradients = jumprelu_loss_and_gradients(
        {name: p.detach() for name, p in dictionary.named_parameters()},
        data(),
        bandwidth=0.3,
        l0=config.l0,
        target_l0=config.target_l0,
    )
    torch.testing.assert_close(objective.loss.detach(), loss, rtol=1e-12, atol=0)
    for name, parameter in dictionary.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12, msg=name)


def test_jumprelu_adds_the_same_revival_of_dead_latents() -> None:
    config = JumpReLU(M, l0=0.01, bandwidth=0.3, threshold=0.2, aux=0.3, k_aux=3)
    dictionary = shaken(config.build(D, torch.Generator().manual_seed(0)))
    x, dead = data(), some_dead(9)
    with_dead = jumprelu_objective(dictionary, x, dead)
    parameters = {name: p.detach() for name, p in dictionary.named_parameters()}
    expected = 0.3 * revival(parameters, x, (x - dictionary(x)).detach(), dead, 3)
    torch.testing.assert_close(with_dead.parts["auxiliary"], expected, rtol=1e-12, atol=0)


def test_the_loss_is_the_sum_of_its_parts_and_the_first_part_is_the_fvu() -> None:
    dictionary = shaken(JumpReLU(M, l0=0.01, threshold=0.2, aux=0.5).build(D))
    x = data()
    objective = jumprelu_objective(dictionary, x, some_dead(5), 0.5)
    torch.testing.assert_close(objective.loss.detach(), torch.stack(list(objective.parts.values())).sum())
    expected = (x - dictionary(x)).square().sum(dim=1).mean().detach()
    torch.testing.assert_close(objective.parts["reconstruction"], expected)
    torch.testing.assert_close(objective.parts["sparsity"], 0.5 * 0.01 * objective.l0)


def test_dead_latents_that_are_negative_everywhere_still_hear_from_the_loss() -> None:
    dictionary = TopK(M, 4, aux=1.0).build(D, torch.Generator().manual_seed(0)).double()
    dead = some_dead(5)
    with torch.no_grad():
        dictionary.b_enc[dead] = -10
    topk_objective(dictionary, data(), dead).loss.backward()
    assert (dictionary.W_enc.grad[:, dead].norm(dim=0) > 1e-6).all()
    assert (dictionary.b_enc.grad[dead].abs() > 1e-6).all()


def test_revival_of_an_exact_reconstruction_is_zero_not_nan() -> None:
    dictionary = TopK(M, 4, aux=1.0).build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        dictionary.b_enc.zero_()
    objective = topk_objective(dictionary, torch.zeros(N, D, dtype=torch.float64), some_dead(5))
    assert float(objective.loss.detach()) == 0


def test_only_latents_with_positive_values_count_as_active() -> None:
    dictionary = TopK(M, 4, aux=0.0).build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        dictionary.b_enc[3:] = -100  # only the first three can be positive
    objective = topk_objective(dictionary, data(), some_dead(0))
    assert not objective.fired[3:].any()
    assert 0 < float(objective.l0) < 3


def test_the_threshold_gradient_of_l0_is_minus_the_density_at_the_threshold() -> None:
    """z ~ N(0, 1): -(1/e) P(|z - theta| < e/2), which is -0.352 at theta = 0.5. Half of it is a known defect."""
    g = torch.Generator().manual_seed(0)
    n, bandwidth = 2_000_000, 0.05
    threshold = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    z = torch.randn(n, 1, generator=g, dtype=torch.float64)
    step(z, threshold, bandwidth).mean().backward()
    edges = torch.tensor([0.5 - bandwidth / 2, 0.5 + bandwidth / 2], dtype=torch.float64)
    p = float(torch.special.ndtr(edges).diff())
    standard_error = math.sqrt(p * (1 - p) / n) / bandwidth
    assert abs(float(threshold.grad) + p / bandwidth) < 4 * standard_error
    assert p / bandwidth == pytest.approx(0.352, abs=1e-3)


def test_the_hand_written_backward_equals_finite_differences() -> None:
    g = torch.Generator().manual_seed(3)
    shapes = [(5, 4), (4, 9), (9,), (9, 4), (4,)]
    inputs = [torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]
    # k = 6 of 9 takes some negative pre-activations along, so that the rectifier matters.
    assert torch.autograd.gradcheck(lambda *args: sparse_top_k(*args, k=6)[0], inputs)


def test_scaling_the_coefficient_scales_the_penalty_only() -> None:
    config = JumpReLU(M, l0=0.01, threshold=0.2)
    dictionary = shaken(config.build(D, torch.Generator().manual_seed(0)))
    once = jumprelu_objective(dictionary, data(), some_dead(0))
    dictionary.config = replace(config, l0=0.03)
    thrice = jumprelu_objective(dictionary, data(), some_dead(0))
    torch.testing.assert_close(thrice.parts["sparsity"], 3 * once.parts["sparsity"])
    torch.testing.assert_close(thrice.parts["reconstruction"], once.parts["reconstruction"])
