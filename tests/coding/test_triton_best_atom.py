"""The fused CUDA kernel against its plain twin, on a CPU by Triton's interpreter."""

import importlib

import pytest
import torch

from sparsight.coding.kernels import best_atom, search
from sparsight.coding.kernels.best_atom import plain_best_atom


@pytest.fixture
def fused():
    """The kernel, compiled for the interpreter (see `conftest.py`)."""
    pytest.importorskip("triton", reason="no Triton for this platform: THE CUDA KERNEL IS NOT CHECKED HERE")
    return importlib.import_module("sparsight.coding.kernels.triton_best_atom").fused_best_atom


def problem(b: int, n_latents: int, d: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(n_latents, d, generator=g), dim=1)
    return torch.randn(b, d, generator=g), atoms


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize(
    ("b", "n_latents", "d", "t"),
    [(3, 5, 7, 0), (70, 300, 40, 5), (1, 20, 8, 19), (65, 128, 32, 3)],
    ids=["one tile", "odd sizes", "one atom free", "whole tiles"],
)
def test_index_and_score_are_those_of_the_plain_search(fused, b, n_latents, d, t, nonnegative):
    """The atoms taken are the best ones, so that every winner must be given up `t` times."""
    residual, atoms = problem(b, n_latents, d)
    scores = residual @ atoms.T
    taken = (scores if nonnegative else scores.abs()).topk(t, dim=1).indices
    index, score = fused(residual, atoms, taken, nonnegative=nonnegative)
    expected, its_score = plain_best_atom(residual, atoms, taken, nonnegative=nonnegative)
    assert torch.equal(index, expected)
    torch.testing.assert_close(score, its_score, rtol=1e-5, atol=1e-6)


def test_of_equal_atoms_the_lowest_wins_within_and_across_tiles(fused):
    residual, atoms = problem(4, 300, 16)
    best = (residual @ atoms.T).argmax(dim=1)
    atoms = atoms.repeat(2, 1)  # its twin is 300 further, in another tile
    index, _ = fused(residual, atoms, best[:, None][:, :0], nonnegative=True)
    assert torch.equal(index, best)
    index, _ = fused(residual, atoms, best[:, None], nonnegative=True)
    assert torch.equal(index, best + 300)


def test_a_pursuit_with_the_kernel_gives_the_codes_of_the_plain_one(fused, monkeypatch):
    from sparsight.coding import gradient_pursuit, matching_pursuit

    x, atoms = problem(20, 150, 24)
    for coder in (gradient_pursuit, matching_pursuit):
        plain = coder(x, atoms, 5, search="dense").to_dense()
        with monkeypatch.context() as patch:
            patch.setattr(search, "best_atom", fused)
            torch.testing.assert_close(coder(x, atoms, 5, search="dense").to_dense(), plain, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_the_plain_search_is_used(monkeypatch):
    monkeypatch.setattr(best_atom, "triton_is_installed", lambda: pytest.fail("asked for Triton on a CPU"))
    residual, atoms = problem(4, 20, 8)
    best_atom.best_atom(residual, atoms, torch.zeros(4, 0, dtype=torch.int64), nonnegative=True)
