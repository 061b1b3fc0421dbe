"""Pursuit dictionaries: each option's code, its derivative, and what is refused."""

import pytest
import torch
from torch import Tensor

from sparsight.coding import gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit, refit
from sparsight.dictionaries import Pursuit, PursuitDictionary

D = 8


def built(**options: object) -> PursuitDictionary:
    dictionary = Pursuit(20, 3, **options).build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        dictionary.b_dec += 0.1
    dictionary.normalize_atoms_()
    return dictionary.requires_grad_(False)


def data() -> Tensor:
    return torch.randn(30, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_each_coder_writes_the_code_of_its_function() -> None:
    y, atoms = data() - 0.1, built().atoms
    raw = gradient_pursuit(y, atoms, 3)
    expected = {
        ("gradient_pursuit", False): raw,
        ("gradient_pursuit", True): gradient_pursuit(y, atoms, 3, polish=True),
        ("matching_pursuit", False): matching_pursuit(y, atoms, 3),
        ("matching_pursuit", True): refit(y, atoms, matching_pursuit(y, atoms, 3).support()),
        ("orthogonal_matching_pursuit", False): orthogonal_matching_pursuit(y, atoms, 3),
    }
    for (coder, polish), code in expected.items():
        dictionary = built(coder=coder, polish=polish)
        torch.testing.assert_close(dictionary.encode_dense(data()), code.to_dense(), msg=f"{coder} {polish}")
        assert dictionary.fits_least_squares == (polish or coder == "orthogonal_matching_pursuit")


@pytest.mark.parametrize("options", [{}, {"coder": "orthogonal_matching_pursuit"}, {"coder": "matching_pursuit"}])
def test_values_have_the_derivative_of_least_squares_by_activations_and_atoms(options: dict[str, str]) -> None:
    dictionary = built(**options)
    x = data()[:5].requires_grad_()
    assert torch.autograd.gradcheck(dictionary.encode_dense, (x,))
    plain = built(**options).encode_dense(data())
    torch.testing.assert_close(dictionary.encode_dense(data().requires_grad_()).detach(), plain)
    dictionary.atoms.requires_grad_()
    (gradient,) = torch.autograd.grad(dictionary(x.detach()).square().sum(), dictionary.atoms)
    assert gradient.norm() > 0


def test_unpolished_codes_refuse_to_be_differentiated_rather_than_give_no_gradient() -> None:
    x = data().requires_grad_()
    reconstruction = built(polish=False)(x)
    with pytest.raises(ValueError, match="have no gradient; use polish=True"):
        reconstruction.sum().backward()
    with torch.no_grad():
        assert not built(polish=False)(x).requires_grad


def test_there_is_no_encoder() -> None:
    assert sorted(dict(built().named_parameters())) == ["atoms", "b_dec"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 21}, "k must be between 1 and n_latents=20, got k=21"),
        ({"k": 0}, "k must be between 1"),
        ({"n_latents": 0}, "n_latents must be a positive number"),
        ({"coder": "fista"}, "coder must be one of gradient_pursuit, .* got 'fista'"),
        ({"update": "sgd"}, "update must be one of mod, ksvd, online, gradient, got 'sgd'"),
        ({"forgetting": -1.0}, "forgetting must be 0 or a positive number"),
        ({"forgetting": float("nan")}, "forgetting must be 0 or a positive number"),
        ({"dead_after": 0}, "dead_after must be a positive number"),
    ],
)
def test_configurations_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pursuit(**{"n_latents": 20, "k": 3, **options})
