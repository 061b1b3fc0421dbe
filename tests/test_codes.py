"""Sparse codes: what they hold, what they decode to, what they refuse."""

import pytest
import torch

from sparsight.codes import SparseCode


def example() -> SparseCode:
    """Three latents in two rows; the second row has an unused slot that names a latent another slot uses."""
    return SparseCode(torch.tensor([[4, 0], [2, 2]]), torch.tensor([[1.0, -3.0], [5.0, 0.0]]), 5)


def test_a_dense_code_holds_each_value_at_its_latent():
    assert example().to_dense().tolist() == [[-3, 0, 0, 0, 1], [0, 0, 5, 0, 0]]


def test_decoding_is_the_product_of_the_dense_code_with_the_atoms():
    atoms = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(example().decode(atoms), example().to_dense() @ atoms)


def test_decoding_is_differentiable_in_values_and_atoms():
    g = torch.Generator().manual_seed(0)
    atoms = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[4, 0], [2, 1]])
    assert torch.autograd.gradcheck(lambda v, a: SparseCode(indices, v, 5).decode(a), (values, atoms))


def test_l0_and_support_count_slots_that_are_used():
    assert example().l0().tolist() == [2, 1]
    assert example().support().tolist() == [[4, 0], [2, -1]]
    assert (len(example()), example().k) == (2, 2)


def test_from_dense_keeps_the_largest_magnitudes_and_breaks_ties_by_index():
    dense = torch.tensor([[1.0, -4.0, 2.0, 2.0]])
    assert SparseCode.from_dense(dense, 2).to_dense().tolist() == [[0, -4, 2, 0]]
    torch.testing.assert_close(SparseCode.from_dense(dense).to_dense(), dense)
    assert SparseCode.from_dense(torch.zeros(2, 4)).values.shape == (2, 0)
    assert SparseCode.from_dense(torch.zeros(0, 4)).values.shape == (0, 0)


def test_rows_and_concatenation_invert_each_other():
    code = example()
    narrow = SparseCode(torch.tensor([[3]]), torch.tensor([[7.0]]), 5)
    joined = SparseCode.cat([code[:1], narrow, code[1:]])
    assert joined.k == 2
    expected = torch.cat([code.to_dense()[:1], narrow.to_dense(), code.to_dense()[1:]])
    assert torch.equal(joined.to_dense(), expected)
    assert torch.equal(joined[torch.tensor([0, 2])].to_dense(), code.to_dense())
    assert torch.equal(code.to("cpu").values, code.values)


def test_a_code_without_slots_or_rows_decodes_to_zeros():
    atoms = torch.ones(5, 3)
    assert torch.equal(SparseCode(torch.zeros(2, 0).long(), torch.zeros(2, 0), 5).decode(atoms), torch.zeros(2, 3))
    assert SparseCode(torch.zeros(0, 2).long(), torch.zeros(0, 2), 5).decode(atoms).shape == (0, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: SparseCode(torch.zeros(1, 1).long(), torch.zeros(1, 1), 0), "n_latents must be at least 1"),
        (lambda: example().decode(torch.ones(4, 3)), "n_latents=5 but 4 atoms"),
        (lambda: SparseCode.from_dense(torch.zeros(1, 4), 5), "k must be between 0 and n_latents=4"),
        (lambda: SparseCode.cat([example(), SparseCode.from_dense(torch.ones(1, 4))]), "must share one n_latents"),
        (lambda: SparseCode.cat([]), "must share one n_latents"),
    ],
)
def test_codes_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
