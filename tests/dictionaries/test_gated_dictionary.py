"""Gated dictionaries: the two paths of the encoder, and settings that contradict each other."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import Gated, GatedDictionary

VARIANTS: list[dict[str, Any]] = [
    {},
    {"untied": True},
    {"fixed_r_mag": True},
    {"shared_bias": True},
    {"fixed_r_mag": True, "shared_bias": True},
    {"heaviside": False},
]


def hand_set(**options: Any) -> GatedDictionary:
    """Two latents that read the two coordinates; magnitudes are twice the gate's weights, plus 1."""
    dictionary = Gated(2, 0.1, **options).build(2, torch.Generator().manual_seed(0)).requires_grad_(False)
    dictionary.W_enc.copy_(torch.eye(2))
    dictionary.b_gate.copy_(torch.tensor([-1.0, -1.0]))
    dictionary.r_mag.fill_(torch.tensor(2.0).log())
    dictionary.b_mag.fill_(1.0)
    return dictionary


def data(n: int = 50, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_gate_decides_whether_and_the_magnitude_how_much() -> None:
    x = torch.tensor([[1.5, 0.5], [1.0, -3.0], [2.0, 4.0]])  # a pre-activation of 0 leaves the gate shut
    assert hand_set().encode_dense(x).tolist() == [[4.0, 0.0], [0.0, 0.0], [5.0, 9.0]]
    assert hand_set(heaviside=False).encode_dense(x).tolist() == [[4.0, 2.0], [3.0, 0.0], [5.0, 9.0]]


def test_an_open_gate_with_a_negative_magnitude_is_silent_and_takes_no_slot() -> None:
    dictionary = hand_set()
    dictionary.b_mag.fill_(-4.0)
    code = dictionary.encode(torch.tensor([[1.5, 3.0]]))
    assert code.to_dense().tolist() == [[0.0, 2.0]]
    assert code.indices.shape == (1, 1)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_codes_activations_of_any_scale_alike(options: dict[str, Any]) -> None:
    dictionary = Gated(12, 0.1, **options).build(5, torch.Generator().manual_seed(0)).double()
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    dictionary.normalize_atoms_()
    z = dictionary.encode_dense(data())
    assert 0 < float((z > 0).double().mean()) < 1
    dictionary.rescale_(37.0)
    torch.testing.assert_close(dictionary.encode_dense(37 * data()), 37 * z, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of l1 .* and target_l0 .* got l1=None and target_l0=None"),
        ({"l1": 0.1, "target_l0": 3.0}, "exactly one"),
        ({"l1": -0.1}, "l1 must be 0 or a positive number"),
        ({"target_l0": 21.0}, "target_l0 must be above 0 and at most n_latents=20"),
        ({"l1": 0.1, "gate_aux": -1.0}, "gate_aux must be 0 .* got gate_aux=-1"),
        ({"l1": 0.1, "untied": True, "fixed_r_mag": True}, "give one of untied and fixed_r_mag"),
        ({"l1": 0.1, "aux": -1.0}, "aux must be 0"),
        ({"l1": 0.1, "dead_after": 0}, "dead_after"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Gated(20, **options)


def test_run_names_say_which_variant_it_is() -> None:
    assert Gated(64, 0.1).run_name == "gated-64-l1_0.1"
    assert Gated(64, target_l0=8.0, gate_aux=0.0).run_name == "gated-64-target8-aux0"
    assert Gated(64, 0.1, untied=True, freeze_aux_decoder=False).run_name == "gated-64-l1_0.1-unfrozen-untied"
    names = {Gated(64, 0.1, **options).run_name for options in VARIANTS}
    assert len(names) == len(VARIANTS)
