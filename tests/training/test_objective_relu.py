"""ReLU's loss and gradients against the formulae, norms through the chain rule, and the annealed penalty."""

import math
from itertools import pairwise

import pytest
import torch
from reference.objectives import revival
from reference.objectives_relu import free_loss, unit_loss_and_gradients
from torch import Tensor

from sparsight.dictionaries import ReLU, ReLUDictionary
from sparsight.training.objectives import relu_objective

D, M, N = 6, 20, 40
NONE = torch.zeros(M, dtype=torch.bool)


def shaken(config: ReLU, seed: int = 1) -> ReLUDictionary:
    """A dictionary in float64 with every trained parameter moved off its symmetric start."""
    g = torch.Generator().manual_seed(seed)
    dictionary = config.build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary


def data(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g, dtype=torch.float64) / math.sqrt(D)


def values(dictionary: ReLUDictionary) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in dictionary.named_parameters()}


def tangent(gradient: Tensor, atoms: Tensor) -> Tensor:
    return gradient - (gradient * atoms).sum(dim=1, keepdim=True) * atoms


@pytest.mark.parametrize(("stage", "p"), [(None, 1.0), (0, 1.0), (5, 0.6), (10, 0.2)])
def test_loss_and_every_gradient_equal_the_formula(stage: int | None, p: float) -> None:
    dictionary = shaken(ReLU(M, 0.3, p_end=None if stage is None else 0.2))
    if stage is not None:
        dictionary.anneal_stage.fill_(stage)
        dictionary.anneal_factor.fill_(0.7)
    objective = relu_objective(dictionary, data(), NONE, 0.5)
    objective.loss.backward()
    weight = 0.3 * 0.5 * (1.0 if stage is None else 0.7)
    loss, gradients = unit_loss_and_gradients(values(dictionary), data(), l1=weight, p=p)
    torch.testing.assert_close(objective.loss.detach(), loss, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        ours = dict(dictionary.named_parameters())[name].grad
        torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("stage", "p"), [(None, 1.0), (10, 0.3)])
def test_free_norms_equal_the_free_decoder_through_the_chain_rule(stage: int | None, p: float) -> None:
    """With `row = exp(s) a`: `dL/ds = <dL/drow, row>`, and along the sphere `dL/da = exp(s) dL/drow`."""
    dictionary = shaken(ReLU(M, 0.3, norms="free", p_end=None if stage is None else 0.3))
    if stage is not None:
        dictionary.anneal_stage.fill_(stage)
    objective = relu_objective(dictionary, data(), NONE)
    objective.loss.backward()
    held = values(dictionary)
    norm = held["log_norm"].exp().unsqueeze(1)
    W_dec = (norm * held["atoms"]).requires_grad_()
    W_enc, b_enc, b_dec = (held[name].clone().requires_grad_() for name in ("W_enc", "b_enc", "b_dec"))
    loss = free_loss(W_dec, W_enc, b_enc, b_dec, data(), l1=0.3, p=p)
    loss.backward()
    torch.testing.assert_close(objective.loss.detach(), loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        dictionary.log_norm.grad, (W_dec.grad * W_dec.detach()).sum(dim=1), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        tangent(dictionary.atoms.grad, held["atoms"]),
        tangent(norm * W_dec.grad, held["atoms"]),
        rtol=1e-9,
        atol=1e-12,
    )
    for ours, theirs in ((dictionary.W_enc, W_enc), (dictionary.b_enc, b_enc), (dictionary.b_dec, b_dec)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_no_norm_makes_the_weighted_penalty_cheaper() -> None:
    """Rows made c times longer with codes made c times shorter: the same loss, term by term."""
    dictionary = shaken(ReLU(M, 0.3, norms="free"))
    before = relu_objective(dictionary, data(), NONE).parts
    with torch.no_grad():
        dictionary.log_norm += math.log(3)
        dictionary.W_enc /= 3
        dictionary.b_enc /= 3
    after = relu_objective(dictionary, data(), NONE).parts
    for name, part in before.items():
        torch.testing.assert_close(after[name], part, rtol=1e-12, atol=0)


@pytest.mark.parametrize("config", [ReLU(M, 0.3), ReLU(M, 0.3, norms="free")], ids=["unit", "free"])
def test_gradients_equal_finite_differences(config: ReLU) -> None:
    dictionary = shaken(config)
    relu_objective(dictionary, data(), NONE).loss.backward()
    step = 1e-6
    for name, parameter in dictionary.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(0, len(flat), 7):
            held = float(flat[i])
            ends = []
            for moved in (held + step, held - step):
                flat[i] = moved
                ends.append(float(relu_objective(dictionary, data(), NONE).loss.detach()))
            flat[i] = held
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[i]), abs=1e-7), name


def test_dead_latents_are_revived_with_their_norms() -> None:
    dictionary = shaken(ReLU(M, 0.3, norms="free", aux=0.5, k_aux=3))
    dead = torch.arange(M) < 9
    x = data()
    found = relu_objective(dictionary, x, dead).parts["auxiliary"]
    held = values(dictionary)
    W_enc, b_enc = dictionary.scaled_encoder
    plain = {**held, "W_enc": W_enc.detach(), "b_enc": b_enc.detach()}
    expected = 0.5 * revival(plain, x, (x - dictionary(x)).detach(), dead, 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_penalty_goes_on_unbroken_when_the_power_falls() -> None:
    """On the same batch, before and after a fall, `factor * S_p` is one number; its slope is another."""
    dictionary = shaken(ReLU(M, 0.3, p_end=0.2, anneal_start=0.0, anneal_end=1.0))
    parts = []
    for i in range(11):
        dictionary.schedule_(i / 10)
        parts.append(float(relu_objective(dictionary, data(), NONE).parts["sparsity"]))
    assert int(dictionary.anneal_stage) == 10
    assert dictionary.config.power(10) == pytest.approx(0.2)
    assert parts == pytest.approx([parts[0]] * 11, rel=1e-9)


def test_the_weight_is_matched_on_the_means_of_the_last_ten_batches() -> None:
    dictionary = shaken(ReLU(M, 0.3, p_end=0.2, anneal_start=0.5, anneal_end=1.0, n_powers=4))
    batches = [data(seed) * (1 + 0.2 * seed) for seed in range(13)]
    for x in batches:
        dictionary.schedule_(0.4)
        relu_objective(dictionary, x, NONE)
    assert int(dictionary.anneal_stage) == 0
    dictionary.schedule_(0.63)
    z = [dictionary.encode_dense(x).detach() for x in batches[3:]]
    now = sum(float(rows.sum()) / N for rows in z)
    following = sum(float((rows[rows > 0] ** 0.8).sum()) / N for rows in z)
    assert int(dictionary.anneal_stage) == 1
    assert float(dictionary.anneal_factor) == pytest.approx(now / following, rel=1e-9)


def test_annealing_falls_once_a_step_and_only_in_its_span() -> None:
    dictionary = ReLU(M, 0.3, p_end=0.5, anneal_start=0.2, anneal_end=0.6, n_powers=4).build(D)
    stages = []
    for i in range(21):
        dictionary.schedule_(i / 20)
        stages.append(int(dictionary.anneal_stage))
    assert stages[:5] == [0] * 5
    assert stages[12:] == [4] * 9
    assert all(0 <= b - a <= 1 for a, b in pairwise(stages))
    dictionary = ReLU(M, 0.3, p_end=0.5, anneal_start=0.2, anneal_end=0.6, n_powers=4).build(D)
    dictionary.schedule_(1.0)
    assert int(dictionary.anneal_stage) == 1
    assert float(dictionary.anneal_factor) == 1  # nothing was measured yet


def test_the_slope_of_a_power_stays_finite_at_the_smallest_values() -> None:
    dictionary = ReLU(M, 0.3, p_end=0.01).build(D, torch.Generator().manual_seed(0))
    dictionary.anneal_stage.fill_(10)
    with torch.no_grad():
        dictionary.b_enc.fill_(1e-40)
    objective = relu_objective(dictionary, torch.zeros(4, D), NONE)
    objective.loss.backward()
    assert bool(torch.isfinite(dictionary.b_enc.grad).all())
    assert float(objective.parts["sparsity"]) == 0
