"""Gated's loss: the table of who learns from what, cell by cell, its symmetries, and each of its variants."""

import math
from dataclasses import replace

import pytest
import torch
from reference.objectives import revival
from reference.objectives_gated import TERMS, gated_gradients, gated_term
from torch import Tensor

from sparsight.dictionaries import Gated, GatedDictionary, JumpReLUDictionary
from sparsight.dictionaries.export import gated_to_jumprelu
from sparsight.training.objectives import gated_objective, jumprelu_objective

D, M, N = 6, 20, 40
NONE = torch.zeros(M, dtype=torch.bool)
# Which term reaches which parameter, as published for equation 8. `input`: only through the encoder's input.
TABLE = {
    "W_enc": {"reconstruction", "sparsity", "gate_reconstruction"},
    "b_gate": {"sparsity", "gate_reconstruction"},
    "r_mag": {"reconstruction"},
    "b_mag": {"reconstruction"},
    "atoms": {"reconstruction"},
    "b_dec": {"reconstruction", "sparsity", "gate_reconstruction"},
}


def shaken(config: Gated, seed: int = 1) -> GatedDictionary:
    """A dictionary in float64 with every parameter moved off its symmetric start."""
    g = torch.Generator().manual_seed(seed)
    dictionary = config.build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary


def data(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g, dtype=torch.float64) / math.sqrt(D)


def values(dictionary: GatedDictionary) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in dictionary.named_parameters()}


def gradients(dictionary: GatedDictionary, sparsity: float = 1.0) -> dict[str, Tensor]:
    dictionary.zero_grad()
    gated_objective(dictionary, data(), NONE, sparsity).loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in dictionary.named_parameters()
    }


def cells(dictionary: GatedDictionary) -> dict[str, dict[str, Tensor]]:
    """The gradient of each term alone: the loss is linear in the weights of its terms."""
    config = dictionary.config
    dictionary.config = replace(config, l1=1.0, gate_aux=0.0)
    plain, with_sparsity = gradients(dictionary, 0.0), gradients(dictionary, 1.0)
    dictionary.config = replace(config, l1=1.0, gate_aux=1.0)
    with_aux = gradients(dictionary, 0.0)
    dictionary.config = config
    return {
        "reconstruction": plain,
        "sparsity": {name: with_sparsity[name] - plain[name] for name in plain},
        "gate_reconstruction": {name: with_aux[name] - plain[name] for name in plain},
    }


@pytest.mark.parametrize("term", TERMS)
def test_every_cell_of_the_gradient_table(term: str) -> None:
    dictionary = shaken(Gated(M, 0.1))
    found, expected = cells(dictionary)[term], gated_gradients(term, values(dictionary), data())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=f"{name} from {term}")
        if term in TABLE[name]:
            assert float(gradient.norm()) > 1e-3, f"{name} from {term}"
        else:
            assert float(gradient.norm()) < 1e-12, f"{name} from {term}"


@pytest.mark.parametrize("term", TERMS)
def test_every_cell_equals_a_finite_difference_with_the_decoder_of_the_third_term_held(term: str) -> None:
    dictionary = shaken(Gated(M, 0.1))
    held, found, step = values(dictionary), cells(dictionary)[term], 1e-6
    for name, value in held.items():
        for i in range(0, value.numel(), 3):
            ends = []
            for sign in (1, -1):
                moved = {key: tensor.clone() for key, tensor in held.items()}
                moved[name].view(-1)[i] += sign * step
                ends.append(float(gated_term(term, moved, held, data())))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(found[name].view(-1)[i]) == pytest.approx(slope, abs=1e-7), f"{name} from {term}"


def test_the_penalty_only_ever_pushes_gates_shut() -> None:
    assert bool((cells(shaken(Gated(M, 0.1)))["sparsity"]["b_gate"] >= 0).all())


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    dictionary = shaken(Gated(M, 0.2, gate_aux=0.5))
    objective = gated_objective(dictionary, data(), NONE, 0.3)
    held = values(dictionary)
    terms = {name: gated_term(name, held, held, data()) for name in TERMS}
    torch.testing.assert_close(objective.parts["reconstruction"], terms["reconstruction"], rtol=1e-12, atol=0)
    torch.testing.assert_close(objective.parts["sparsity"], 0.3 * 0.2 * terms["sparsity"], rtol=1e-12, atol=0)
    torch.testing.assert_close(
        objective.parts["gate_reconstruction"], 0.5 * terms["gate_reconstruction"], rtol=1e-12, atol=0
    )
    torch.testing.assert_close(objective.loss.detach(), torch.stack(list(objective.parts.values())).sum())


@pytest.mark.parametrize("c", [0.01, 3.0])
def test_shrinking_the_gate_makes_sparsity_cheap_and_changes_no_code(c: float) -> None:
    """(W, b_gate) -> c (W, b_gate), r_mag -> r_mag - log c: without the third term sparsity would be free."""
    dictionary = shaken(Gated(M, 0.2))
    z = dictionary.encode_dense(data())
    before = gated_objective(dictionary, data(), NONE).parts
    with torch.no_grad():
        dictionary.W_enc *= c
        dictionary.b_gate *= c
        dictionary.r_mag -= math.log(c)
    after = gated_objective(dictionary, data(), NONE).parts
    torch.testing.assert_close(dictionary.encode_dense(data()), z, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(after["reconstruction"], before["reconstruction"], rtol=1e-12, atol=0)
    torch.testing.assert_close(after["sparsity"], c * before["sparsity"], rtol=1e-12, atol=0)
    assert abs(float(after["gate_reconstruction"] / before["gate_reconstruction"]) - 1) > 0.01


def test_the_loss_is_that_of_two_architectures_added_but_for_the_decoder() -> None:
    """Equation 8 against [code of the gate and magnitude] + [code of the gate alone], decoders all trained.

    Everything in the encoder has the same gradient; `atoms` and `b_dec` differ by the decoder's share of the third
    term, which is why it is held constant.
    """
    dictionary = shaken(Gated(M, 0.2))
    published = gradients(dictionary)
    dictionary.config = replace(dictionary.config, freeze_aux_decoder=False)
    added = gradients(dictionary)
    for name in ("W_enc", "b_gate", "r_mag", "b_mag"):
        torch.testing.assert_close(added[name], published[name], rtol=1e-12, atol=1e-14)
    held = values(dictionary)
    q = ((data() - held["b_dec"]) @ held["W_enc"] + held["b_gate"]).relu()
    g = 2 * (q @ held["atoms"] + held["b_dec"] - data()) / N
    torch.testing.assert_close(added["atoms"] - published["atoms"], q.T @ g, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(added["b_dec"] - published["b_dec"], g.sum(dim=0), rtol=1e-9, atol=1e-12)


def test_the_input_offset_of_the_third_term_can_be_held_too() -> None:
    dictionary = shaken(Gated(M, 0.2, detach_aux_input=True))
    found = cells(dictionary)["gate_reconstruction"]
    expected = gated_gradients("gate_reconstruction", values(dictionary), data())
    assert float(found["b_dec"].abs().max()) < 1e-12
    for name in ("W_enc", "b_gate"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_without_penalty_and_third_term_it_is_a_jumprelu_autoencoder_with_fixed_gates() -> None:
    dictionary = shaken(Gated(M, 0.0, gate_aux=0.0))
    twin = gated_to_jumprelu(dictionary).requires_grad_()
    assert isinstance(twin, JumpReLUDictionary)
    theirs = jumprelu_objective(twin, data(), NONE)
    theirs.loss.backward()
    found = gradients(dictionary)
    torch.testing.assert_close(
        gated_objective(dictionary, data(), NONE).loss.detach(), theirs.loss.detach(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(found["atoms"], twin.atoms.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found["b_mag"], twin.b_enc.grad, rtol=1e-9, atol=1e-12)
    assert float(found["b_gate"].abs().max()) == 0


def test_fixed_magnitudes_are_a_relu_dictionary_and_its_offset_hears_from_all() -> None:
    dictionary = shaken(Gated(M, 0.2, fixed_r_mag=True, shared_bias=True))
    assert sorted(values(dictionary)) == ["W_enc", "atoms", "b_dec", "b_gate"]
    held = values(dictionary)
    q = ((data() - held["b_dec"]) @ held["W_enc"] + held["b_gate"]).relu()
    torch.testing.assert_close(dictionary.encode_dense(data()), q)
    objective = gated_objective(dictionary, data(), NONE)
    torch.testing.assert_close(objective.parts["reconstruction"], objective.parts["gate_reconstruction"])
    assert float(cells(dictionary)["reconstruction"]["b_gate"].norm()) > 1e-3


def test_untied_magnitudes_leave_the_gate_to_the_other_two_terms() -> None:
    dictionary = shaken(Gated(M, 0.2, untied=True))
    found = cells(dictionary)
    assert float(found["reconstruction"]["W_enc"].norm()) < 1e-12
    assert float(found["reconstruction"]["W_mag"].norm()) > 1e-3
    assert float(found["sparsity"]["W_mag"].norm()) < 1e-12
    tied = shaken(Gated(M, 0.2))
    with torch.no_grad():
        for name, value in values(tied).items():
            if name != "r_mag":
                dict(dictionary.named_parameters())[name].copy_(value)
        dictionary.W_mag.copy_(tied.W_enc * tied.r_mag.exp())
    ours, theirs = (gated_objective(d, data(), NONE).parts for d in (dictionary, tied))
    for name in TERMS:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=0)


def test_without_the_step_function_the_gate_decides_nothing() -> None:
    dictionary = shaken(Gated(M, 0.2, heaviside=False))
    held = values(dictionary)
    with torch.no_grad():
        dictionary.b_gate -= 100
    z = (((data() - held["b_dec"]) @ held["W_enc"]) * held["r_mag"].exp() + held["b_mag"]).relu()
    torch.testing.assert_close(dictionary.encode_dense(data()), z)


def test_dead_latents_are_revived_through_their_gates() -> None:
    dictionary = shaken(Gated(M, 0.2, aux=0.5, k_aux=3))
    dead, x = torch.arange(M) < 9, data()
    objective = gated_objective(dictionary, x, dead)
    gates = {**values(dictionary), "b_enc": dictionary.b_gate.detach()}
    expected = 0.5 * revival(gates, x, (x - dictionary(x)).detach(), dead, 3)
    torch.testing.assert_close(objective.parts["auxiliary"], expected, rtol=1e-12, atol=0)
    objective.loss.backward()
    assert bool((dictionary.b_gate.grad[dead] != 0).all())
