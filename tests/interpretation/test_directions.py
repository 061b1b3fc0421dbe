"""Direct effects on logits and nearest atoms, where both are known by construction."""

import pytest
import torch

from sparsight.interpretation import direct_effects, nearest_latents


def test_an_atom_along_an_unembedding_row_promotes_that_token_and_its_opposite_lowers_it():
    unembedding = torch.eye(6)
    atoms = torch.stack([torch.eye(6)[2], -torch.eye(6)[4]])
    effects = direct_effects(atoms, unembedding, [0, 1], n=1)
    assert effects[0].promoted == [(2, pytest.approx(1 - 1 / 6))]  # centred over the six tokens
    assert effects[1].suppressed == [(4, pytest.approx(-1 + 1 / 6))]


def test_a_constant_added_to_all_logits_is_no_effect():
    unembedding = torch.ones(5, 3)
    effect = direct_effects(torch.eye(3)[:1], unembedding, [0], n=2)[0]
    assert all(amount == 0 for _, amount in effect.promoted + effect.suppressed)


def test_the_gain_of_the_final_norm_decides_between_tokens():
    atom = torch.tensor([[0.6, 0.8]])
    assert direct_effects(atom, torch.eye(2), [0], n=1)[0].promoted[0][0] == 1
    gain = torch.tensor([10.0, 0.1])
    assert direct_effects(atom, torch.eye(2), [0], gain=gain, n=1)[0].promoted[0][0] == 0


def test_atoms_of_another_width_are_refused_with_a_reason():
    with pytest.raises(ValueError, match="residual stream"):
        direct_effects(torch.eye(3), torch.eye(4), [0])


def test_nearest_latents_are_those_of_a_dense_gram_matrix_in_any_block_size():
    atoms = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    gram = atoms @ atoms.T
    gram.fill_diagonal_(-1)
    expected = gram.argmax(dim=1).tolist()
    for block in (1, 7, 256):
        found = nearest_latents(atoms, range(40), n=3, block=block)
        assert [found[i][0][0] for i in range(40)] == expected
        assert all(i not in dict(found[i]) for i in range(40))
        assert found[3][0][1] == pytest.approx(gram[3].max().item())


def test_a_dictionary_of_two_atoms_has_one_neighbour_each():
    assert [len(v) for v in nearest_latents(torch.eye(2), [0, 1], n=6).values()] == [1, 1]
