"""The rules of each architecture where they are easy to get wrong: ties, thresholds, impossible settings."""

import math
from typing import Any

import pytest
import torch

from sparsight.dictionaries import JumpReLU, TopK
from sparsight.dictionaries.selection import top_k


def test_of_equal_positive_entries_the_first_are_taken() -> None:
    pre = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.5], [3.0, 3.0, 3.0, 3.0, 3.0], [5.0, 1.0, 4.0, 1.0, 1.0]])
    values, columns = top_k(pre, 2)
    assert [sorted(row) for row in columns.tolist()] == [[1, 2], [0, 1], [0, 2]]
    assert values.tolist() == [[2.0, 2.0], [3.0, 3.0], [5.0, 4.0]]


def test_top_k_equals_a_stable_sort_on_many_ties() -> None:
    pre = torch.randint(1, 6, (200, 50), generator=torch.Generator().manual_seed(0)).float()
    expected = pre.sort(dim=1, descending=True, stable=True)
    for k in (1, 7, 49, 50):
        values, columns = top_k(pre, k)
        assert torch.equal(values, expected.values[:, :k])
        assert torch.equal(columns.sort(dim=1).values, expected.indices[:, :k].sort(dim=1).values)


def test_topk_codes_at_most_k_latents_and_fewer_where_fewer_are_positive() -> None:
    dictionary = TopK(20, 6).build(4, torch.Generator().manual_seed(0)).requires_grad_(False)
    dictionary.b_enc.fill_(-0.5)
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    l0 = dictionary.encode(x).l0()
    positive = ((x @ dictionary.W_enc - 0.5) > 0).sum(dim=1)
    assert torch.equal(l0, positive.clamp_max(6))
    assert l0.min() < 6 == l0.max()


def test_a_pre_activation_at_the_threshold_is_silent() -> None:
    dictionary = JumpReLU(2, l0=0.0, threshold=1.0).build(2, torch.Generator().manual_seed(0)).requires_grad_(False)
    dictionary.W_enc.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 1.5], [0.5, -2.0]])
    assert dictionary.encode_dense(x).tolist() == [[0.0, 1.5], [0.0, 0.0]]


def test_jumprelu_starts_with_the_target_number_of_active_latents() -> None:
    """Random atoms and inputs of unit total variance: pre-activations are normal with variance 1 / d_in."""
    d, n_latents = 64, 2000
    x = torch.randn(500, d, generator=torch.Generator().manual_seed(0)) / math.sqrt(d)
    for target in (5.0, 20.0, 200.0):
        dictionary = JumpReLU(n_latents, target_l0=target).build(d, torch.Generator().manual_seed(1))
        l0 = dictionary.requires_grad_(False).encode(x).l0().float().mean()
        assert float(l0) == pytest.approx(target, rel=0.25)


@pytest.mark.parametrize(
    ("config", "wrong", "said"),
    [
        (TopK, {"n_latents": 512, "k": 0}, "k must be between 1 and n_latents=512, got k=0"),
        (TopK, {"n_latents": 512, "k": 600}, "k must be between 1 and n_latents=512, got k=600; lower k or widen"),
        (TopK, {"n_latents": 0, "k": 1}, "n_latents must be a positive number, got n_latents=0"),
        (TopK, {"n_latents": 8, "k": 1, "aux": -1.0}, "aux must be 0 .* got aux=-1"),
        (TopK, {"n_latents": 8, "k": 1, "aux": math.nan}, "aux must be"),
        (TopK, {"n_latents": 8, "k": 1, "k_aux": 0}, "k_aux must be at least 1, got k_aux=0"),
        (TopK, {"n_latents": 8, "k": 1, "dead_after": 0}, "dead_after"),
        (JumpReLU, {"n_latents": 8}, "exactly one of l0 .* and target_l0"),
        (JumpReLU, {"n_latents": 8, "l0": 0.1, "target_l0": 2.0}, "exactly one"),
        (JumpReLU, {"n_latents": 8, "l0": -0.1}, "l0 must be 0 or a positive number"),
        (JumpReLU, {"n_latents": 8, "target_l0": 9}, "target_l0 must be above 0 and at most n_latents=8"),
        (JumpReLU, {"n_latents": 8, "target_l0": 0}, "target_l0 must be above 0"),
        (JumpReLU, {"n_latents": 8, "l0": 0.1, "bandwidth": 0.0}, "bandwidth must be a positive number"),
        (JumpReLU, {"n_latents": 8, "l0": 0.1, "threshold": -0.1}, "threshold must be a positive number"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(config: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        config(**wrong)
    assert "\n" not in str(refusal.value)


def test_run_names_say_what_distinguishes_dictionaries() -> None:
    assert TopK(1024, 16).run_name == "topk-1024-k16"
    assert JumpReLU(1024, target_l0=16).run_name == "jumprelu-1024-target16"
    assert JumpReLU(1024, l0=0.001).run_name == "jumprelu-1024-l0_0.001"
