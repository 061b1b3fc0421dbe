"""The rule that holds documents out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.activations.split import is_heldout, mix_seed, splitmix64


def test_splitmix_gives_the_published_numbers():
    """First outputs of the generator from state 0 and from 1234567, as in public test vectors."""
    assert splitmix64(np.zeros(1, np.uint64)).tolist() == [0xE220A8397B1DCDAF]
    assert splitmix64(np.array([1234567], np.uint64)).tolist() == [6457827717110365317]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_share_held_out_is_the_one_asked_for(share):
    held = is_heldout(np.arange(100_000), share, seed=3)
    assert abs(held.mean() - share) < 4 * (share * (1 - share) / 100_000) ** 0.5 + 1e-12


@given(st.permutations(range(30)), st.integers(0, 2**40))
def test_a_document_falls_on_one_side_whatever_the_order(order, seed):
    ids = np.array(order)
    assert (is_heldout(ids, 0.4, seed) == is_heldout(np.arange(30), 0.4, seed)[ids]).all()


def test_a_larger_share_keeps_all_that_was_held_out():
    small, large = (is_heldout(np.arange(1000), share, 0) for share in (0.1, 0.3))
    assert (large | ~small).all()


def test_seeds_that_are_neighbours_hold_out_unrelated_documents():
    a, b = (is_heldout(np.arange(20_000), 0.5, seed) for seed in (0, 1))
    assert abs((a == b).mean() - 0.5) < 0.02


def test_mixed_seeds_depend_on_every_number_and_its_place():
    seeds = {mix_seed(*numbers) for numbers in [(0,), (0, 0), (1, 0), (0, 1), (2, 1), (1, 2)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
