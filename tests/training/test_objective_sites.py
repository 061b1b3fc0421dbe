"""Losses of transcoders and crosscoders: against their formulae, finite differences, and each other."""

import math

import pytest
import torch
from reference.objectives_sites import crosscoder_loss, transcoder_loss
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, Crosscoder, ReLU, Transcoder
from sparsight.training.objectives import crosscoder_objective, relu_objective, transcoder_objective
from sparsight.training.sparse_map import sparse_map

M, N = 20, 40
WIDTHS = (6, 4, 3)


def shaken(dictionary: AbstractDictionary, seed: int = 1) -> AbstractDictionary:
    """The dictionary in float64 with every trained parameter moved off its start."""
    g = torch.Generator().manual_seed(seed)
    dictionary = dictionary.double()
    with torch.no_grad():
        for parameter in (p for p in dictionary.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary


def data(widths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(N, d, generator=g, dtype=torch.float64) / math.sqrt(d) for d in widths]


def some_dead(n_dead: int) -> Tensor:
    return torch.arange(M) < n_dead


def twin_of(dictionary: AbstractDictionary) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in dictionary.named_parameters() if p.requires_grad}


def assert_same_gradients(dictionary: AbstractDictionary, twin: dict[str, Tensor]) -> None:
    for name, expected in twin.items():
        found = dict(dictionary.named_parameters())[name].grad
        torch.testing.assert_close(found, expected.grad, rtol=1e-9, atol=1e-12, msg=name)


n_dead_of_interest = pytest.mark.parametrize("n_dead", [0, 2, 9])  # none; fewer than k_aux; more


@n_dead_of_interest
@pytest.mark.parametrize("skip", [False, True])
def test_transcoder_loss_and_gradients_equal_the_dense_formula(skip: bool, n_dead: int) -> None:
    config = Transcoder(M, 4, skip=skip, aux=0.3, k_aux=3)
    dictionary = shaken(config.build(WIDTHS[:2], torch.Generator().manual_seed(0)))
    x, y = data(WIDTHS[:2])
    objective = transcoder_objective(dictionary, torch.cat([x, y], dim=1), some_dead(n_dead))
    objective.loss.backward()
    twin = twin_of(dictionary)
    expected = transcoder_loss(twin, x, y, some_dead(n_dead), k=4, aux=0.3, k_aux=3)
    expected.backward()
    torch.testing.assert_close(objective.loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(dictionary, twin)
    assert set(objective.parts) == ({"reconstruction", "auxiliary"} if n_dead else {"reconstruction"})


@n_dead_of_interest
@pytest.mark.parametrize("sparsity", [{"k": 4}, {"l1": 0.05}], ids=["k", "l1"])
def test_crosscoder_loss_and_gradients_equal_the_formula_site_by_site(sparsity: dict[str, float], n_dead: int) -> None:
    config = Crosscoder(M, **sparsity, aux=0.3, k_aux=3)
    dictionary = shaken(config.build(WIDTHS, torch.Generator().manual_seed(0)))
    sites = data(WIDTHS)
    objective = crosscoder_objective(dictionary, torch.cat(sites, dim=1), some_dead(n_dead))
    objective.loss.backward()
    twin = twin_of(dictionary)
    expected = crosscoder_loss(twin, sites, some_dead(n_dead), k=config.k, l1=config.l1, aux=0.3, k_aux=3)
    expected.backward()
    torch.testing.assert_close(objective.loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(dictionary, twin)
    assert dictionary.selection.grad is None


def test_the_penalty_of_a_crosscoder_rises_with_its_warm_up() -> None:
    dictionary = shaken(Crosscoder(M, l1=0.05).build(WIDTHS))
    x = torch.cat(data(WIDTHS), dim=1)
    half, whole = (crosscoder_objective(dictionary, x, some_dead(0), s).parts["sparsity"] for s in (0.5, 1.0))
    torch.testing.assert_close(2 * half, whole)
    assert float(whole) > 0


@pytest.mark.parametrize("n_sites", [2, 3])
def test_a_crosscoder_of_copies_of_one_site_has_the_loss_of_a_dictionary_of_it(n_sites: int) -> None:
    """Mean FVU, mean penalty: with every block `atom / sqrt(S)`, values are `sqrt(S)` times those of one site."""
    [x] = data((6,))
    single = shaken(ReLU(M, 0.05).build(6, torch.Generator().manual_seed(0)))
    joint = Crosscoder(M, l1=0.05).build((6,) * n_sites).double()
    root = math.sqrt(n_sites)
    with torch.no_grad():
        joint.atoms.copy_(single.atoms.repeat(1, n_sites) / root)
        joint.W_enc.copy_(single.W_enc.repeat(n_sites, 1) / root)
        joint.b_enc.copy_(single.b_enc * root)
        joint.b_dec.copy_(single.b_dec.repeat(n_sites))
    one = relu_objective(single, x, some_dead(0), 1.0)
    several = crosscoder_objective(joint, x.repeat(1, n_sites), some_dead(0))
    torch.testing.assert_close(several.loss, one.loss, rtol=1e-12, atol=0)
    for part in ("reconstruction", "sparsity"):
        torch.testing.assert_close(several.parts[part], one.parts[part], rtol=1e-12, atol=0)
    assert torch.equal(several.l0, one.l0)


def test_sparse_map_has_true_gradients_and_equals_the_dense_product() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(5, 4), (4, 9), (9,), (9, 3)]
    x, W_enc, b_enc, atoms = (torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes)

    def mapped(*tensors: Tensor) -> Tensor:
        return sparse_map(*tensors, k=6)[0]

    assert torch.autograd.gradcheck(mapped, (x, W_enc, b_enc, atoms))
    pre = x @ W_enc + b_enc
    assert bool((pre.topk(6).values < 0).any())
    z = torch.zeros_like(pre).scatter(1, pre.topk(6).indices, pre.topk(6).values)
    torch.testing.assert_close(mapped(x, W_enc, b_enc, atoms), z.relu() @ atoms)


def test_revival_of_an_exact_transcoder_is_zero_not_nan() -> None:
    dictionary = Transcoder(M, 4, aux=1.0).build(WIDTHS[:2], torch.Generator().manual_seed(0)).double()
    objective = transcoder_objective(dictionary, torch.zeros(N, 10, dtype=torch.float64), some_dead(5))
    assert float(objective.loss.detach()) == 0


def test_dead_latents_of_a_transcoder_that_are_negative_everywhere_still_hear_from_the_loss() -> None:
    dictionary = Transcoder(M, 4, aux=1.0).build(WIDTHS[:2], torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        dictionary.b_enc[:5] = -10
    objective = transcoder_objective(dictionary, torch.cat(data(WIDTHS[:2]), dim=1), some_dead(5))
    objective.loss.backward()
    assert not objective.fired[:5].any()
    assert (dictionary.W_enc.grad[:, :5].norm(dim=0) > 1e-6).all()
    assert (dictionary.b_enc.grad[:5].abs() > 1e-6).all()
