"""ReLU dictionaries: norms that values carry, and settings that make no sense."""

import math
from typing import Any

import pytest
import torch

from sparsight.dictionaries import ReLU


def test_values_carry_the_norms_of_a_free_decoder() -> None:
    """`sum_j f_j row_j` of a decoder with rows of any norm, in the units of unit atoms."""
    dictionary = ReLU(8, 0.1, norms="free").build(5, torch.Generator().manual_seed(0)).double().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    dictionary.log_norm.copy_(torch.randn(8, generator=g, dtype=torch.float64))
    dictionary.normalize_atoms_()
    x = torch.randn(30, 5, generator=g, dtype=torch.float64)
    f = ((x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc).relu()
    rows = dictionary.log_norm.exp().unsqueeze(1) * dictionary.atoms
    torch.testing.assert_close(dictionary.encode_dense(x), f * rows.norm(dim=1))
    torch.testing.assert_close(dictionary(x), f @ rows + dictionary.b_dec)


@pytest.mark.parametrize("options", [{}, {"norms": "free"}, {"p_end": 0.5}], ids=str)
def test_activations_of_any_scale_are_coded_alike(options: dict[str, Any]) -> None:
    dictionary = ReLU(12, 0.1, **options).build(5, torch.Generator().manual_seed(0)).double().requires_grad_(False)
    g = torch.Generator().manual_seed(2)
    for name in ("W_enc", "b_enc", "b_dec", "log_norm"):
        if (parameter := dict(dictionary.named_parameters()).get(name)) is not None:
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    x = torch.randn(50, 5, generator=g, dtype=torch.float64)
    z, x_hat = dictionary.encode_dense(x), dictionary(x)
    assert 0 < float((z > 0).double().mean()) < 1
    dictionary.rescale_(37.0)
    torch.testing.assert_close(dictionary.encode_dense(37 * x), 37 * z, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dictionary(37 * x), 37 * x_hat, rtol=1e-10, atol=1e-12)


def test_only_what_the_configuration_needs_is_stored() -> None:
    plain = {"atoms", "b_dec", "W_enc", "b_enc"}
    annealing = {"anneal_stage", "anneal_factor", "anneal_recent"}
    for config, names in (
        (ReLU(8, 0.1), plain),
        (ReLU(8, 0.1, norms="free"), plain | {"log_norm"}),
        (ReLU(8, 0.1, p_end=0.5), plain | annealing),
    ):
        assert set(dict(config.build(5).named_parameters())) == names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of l1 .* and target_l0"),
        ({"l1": 0.1, "target_l0": 3.0}, "exactly one"),
        ({"l1": math.nan}, "l1 must be 0 or a positive number"),
        ({"target_l0": 0.0}, "target_l0 must be above 0 and at most n_latents=20"),
        ({"l1": 0.1, "norms": "any"}, "norms must be 'unit' or 'free', got 'any'"),
        ({"l1": 0.1, "p_end": 0.0}, "p_end must lie between 0 and 1"),
        ({"l1": 0.1, "p_end": 1.0}, "p_end must lie between 0 and 1"),
        ({"l1": 0.1, "anneal_start": 0.5, "anneal_end": 0.5}, "the first below the second"),
        ({"l1": 0.1, "n_powers": 0}, "n_powers must be a positive number"),
        ({"l1": 0.1, "aux": -1.0}, "aux must be 0"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReLU(20, **options)


def test_run_names_say_how_sparse_and_which_form() -> None:
    assert ReLU(64, 0.1).run_name == "relu-64-l1_0.1"
    assert ReLU(64, target_l0=8.0, norms="free").run_name == "relu-64-target8-free"
    assert ReLU(64, 0.05, p_end=0.2).run_name == "relu-64-l1_0.05-p0.2"
