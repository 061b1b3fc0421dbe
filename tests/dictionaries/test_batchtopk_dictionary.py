"""Selecting over a batch, and the one threshold that replaces it: exact, unbiased, independent of the batch."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, BatchTopKDictionary, Matryoshka, Normalization, TopK, selection
from sparsight.dictionaries.export import batchtopk_to_jumprelu
from sparsight.dictionaries.selection import batch_top_k_latents
from sparsight.formats import load_dictionary

D, M, K = 16, 48, 3


def trained_like(seed: int = 0) -> BatchTopKDictionary:
    """Atoms, an encoder that is not their transpose, and offsets that make most latents silent in a token."""
    g = torch.Generator().manual_seed(seed)
    dictionary = BatchTopK(M, K).build(D, g).requires_grad_(False)
    dictionary.W_enc += 0.1 * torch.randn(D, M, generator=g)
    dictionary.b_enc.uniform_(-0.3, 0.0, generator=g)
    return dictionary


def planted(n: int, seed: int) -> Tensor:
    """Sparse sums of the dictionary's own atoms: tokens differ much in how many latents they need."""
    g = torch.Generator().manual_seed(seed)
    active = torch.rand(n, M, generator=g) < 0.1 * (0.5 + torch.rand(n, 1, generator=g))
    return (active * (0.5 + torch.rand(n, M, generator=g))) @ trained_like().atoms


def largest(pre: Tensor, n_kept: int) -> Tensor:
    """Which entries a stable sort of the whole batch keeps."""
    order = pre.flatten().sort(descending=True, stable=True).indices[:n_kept]
    kept = torch.zeros(pre.numel(), dtype=torch.bool)
    kept[order] = True
    return kept.view_as(pre) & (pre > 0)


def as_mask(centred: Tensor, W_enc: Tensor, b_enc: Tensor, n_kept: int) -> Tensor:
    slots = batch_top_k_latents(centred, W_enc, b_enc, n_kept)
    assert bool((slots.tokens.diff() >= 0).all())
    mask = torch.zeros(len(centred), W_enc.shape[1], dtype=torch.bool)
    mask[slots.tokens, slots.latents] = True
    assert int(mask.sum()) == len(slots.values)
    torch.testing.assert_close(slots.values, (centred @ W_enc + b_enc)[mask])
    return mask


BATCHES = {
    "normal": torch.randn(300, D, generator=torch.Generator().manual_seed(0)),
    "duplicate rows": torch.randn(10, D, generator=torch.Generator().manual_seed(0)).repeat(30, 1),
    "equal rows": torch.ones(200, D),
    "zero rows": torch.zeros(100, D),
    "one token": torch.ones(1, D),
    # The guess is made from the first rows: far too high for the others, then far too low.
    "loud first": torch.randn(300, D, generator=torch.Generator().manual_seed(0))
    * torch.linspace(5, 0.1, 300)[:, None],
    "loud last": torch.randn(300, D, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 5, 300)[:, None],
}


@pytest.mark.parametrize("rows_in_a_block", [7, 1000])
@pytest.mark.parametrize("x", BATCHES.values(), ids=BATCHES)
def test_the_selection_over_a_batch_equals_a_stable_sort_of_it(
    x: Tensor, rows_in_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "CPU_BLOCK", rows_in_a_block * M)
    # Integers, so that sums are exact and ties abound.
    g = torch.Generator().manual_seed(1)
    W_enc, b_enc = torch.randint(-2, 3, (D, M), generator=g).float(), torch.randint(-3, 3, (M,), generator=g).float()
    x = (2 * x).round()
    for k in (1, 4, 20, M):
        assert torch.equal(as_mask(x, W_enc, b_enc, k * len(x)), largest(x @ W_enc + b_enc, k * len(x)))


def test_nothing_positive_gives_no_slots() -> None:
    slots = batch_top_k_latents(torch.zeros(5, D), torch.zeros(D, M), torch.full((M,), -1.0), 10)
    assert (len(slots.values), slots.n_tokens) == (0, 5)


def test_the_threshold_meets_k_on_its_own_tokens_and_within_one_percent_on_fresh_ones() -> None:
    dictionary = trained_like()
    dictionary.calibrate_(planted(40_000, 1).split(1024))
    assert float(dictionary.encode(planted(40_000, 1)).l0().double().mean()) == pytest.approx(K, rel=2e-4)
    assert float(dictionary.encode(planted(40_000, 2)).l0().double().mean()) == pytest.approx(K, rel=0.01)


def test_the_mean_of_the_smallest_active_values_is_biased_in_small_batches_and_the_quantile_is_not() -> None:
    """A quantile of a batch is not the quantile of all tokens: with one token in a batch 7 % too many are active."""
    dictionary, fresh = trained_like(), planted(40_000, 2)
    batches = planted(2000, 1).split(1)
    codes = [batch_top_k_latents(x - dictionary.b_dec, dictionary.W_enc, dictionary.b_enc, K) for x in batches]
    smallest = torch.stack([code.values.amin() for code in codes if len(code.values)])
    dictionary.log_theta.fill_(math.log(float(smallest.mean())))
    assert float(dictionary.encode(fresh).l0().double().mean()) > 1.05 * K
    dictionary.calibrate_(planted(40_000, 1).split(1000))
    assert float(dictionary.encode(fresh).l0().double().mean()) == pytest.approx(K, rel=0.01)


def test_the_threshold_does_not_depend_on_the_order_or_the_split_of_the_tokens() -> None:
    x = planted(5000, 1)
    thresholds = set()
    for batches in ([x], x.split(7), x[torch.randperm(5000, generator=torch.Generator().manual_seed(0))].split(999)):
        dictionary = trained_like()
        dictionary.calibrate_(batches)
        thresholds.add(round(float(dictionary.theta), 4))
    assert len(thresholds) == 1


def test_where_fewer_than_k_are_positive_all_positive_ones_are_active() -> None:
    for k, b_enc in ((M, 0.0), (K, -1.3), (K, -100.0)):
        dictionary = trained_like()
        dictionary.config = replace(dictionary.config, k=k)
        dictionary.b_enc.fill_(b_enc)
        x = planted(2000, 1)
        dictionary.calibrate_([x])
        pre = x @ dictionary.W_enc + b_enc
        assert float((pre > 0).sum(dim=1).float().mean()) < k
        torch.testing.assert_close(dictionary.encode_dense(x), pre.relu())


def test_a_dictionary_before_training_has_about_k_active_latents() -> None:
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)) / 8
    for config in (BatchTopK(1000, 10), Matryoshka(1000, 10, (100,))):
        dictionary = config.build(64, torch.Generator().manual_seed(1)).requires_grad_(False)
        assert float(dictionary.encode(x).l0().float().mean()) == pytest.approx(10, rel=0.25)


@pytest.mark.parametrize("config", [BatchTopK(M, K), Matryoshka(M, K, (8, 20))])
def test_export_to_jumprelu_gives_the_same_code_to_the_last_bit_folded_or_not(
    config: BatchTopK | Matryoshka, tmp_path: Path
) -> None:
    dictionary = config.build(D, torch.Generator().manual_seed(0)).requires_grad_(False)
    x = planted(2000, 1)
    dictionary.calibrate_([x])
    for scale in (None, 0.37):
        if scale is not None:
            dictionary.fold_(Normalization(torch.linspace(-1, 1, D), scale))
        exported = batchtopk_to_jumprelu(dictionary)
        assert torch.equal(exported.encode_dense(x), dictionary.encode_dense(x))
        assert torch.equal(exported(x), dictionary(x))
        assert exported.config.target_l0 == K
    exported.save(tmp_path)
    loaded = load_dictionary(tmp_path)
    assert torch.equal(loaded.encode_dense(x), dictionary.encode_dense(x))
    assert loaded.provenance["exported_from"] == config.architecture
    assert loaded.normalization is not None


def test_calibration_without_activations_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one activation, got none"):
        trained_like().calibrate_([])


@pytest.mark.parametrize(
    ("config", "wrong", "said"),
    [
        (BatchTopK, {"k": 0}, "k must be between 1 and n_latents=64, got k=0"),
        (BatchTopK, {"k": 65}, "k must be between 1 and n_latents=64, got k=65; lower k"),
        (BatchTopK, {"k": 4, "k_start": 65}, "k_start must be between 1 and n_latents=64"),
        (TopK, {"k": 4, "k_start": 8, "k_anneal": 0.0}, "k_anneal is a fraction .* got k_anneal=0"),
        (TopK, {"k": 4, "k_start": 8, "k_anneal": 1.5}, "k_anneal is a fraction"),
        (BatchTopK, {"k": 4, "aux": -1.0}, "aux must be"),
        (Matryoshka, {"k": 4}, "exactly one of widths .* and sampled"),
        (Matryoshka, {"k": 4, "widths": (8,), "sampled": 3}, "exactly one"),
        (Matryoshka, {"k": 4, "widths": (8, 8)}, "widths must ascend"),
        (Matryoshka, {"k": 4, "widths": (0, 8)}, "widths must ascend and lie between 1 and n_latents=64"),
        (Matryoshka, {"k": 4, "widths": (8, 65)}, "widths must ascend and lie"),
        (Matryoshka, {"k": 4, "sampled": 1}, "sampled must be between 2"),
        (Matryoshka, {"k": 4, "widths": (8, 64), "weights": (1.0, 1.0)}, "one for each of the 1 inner prefixes"),
        (Matryoshka, {"k": 4, "widths": (8,), "weights": (-1.0,)}, "weights must be 0 or positive"),
        (Matryoshka, {"k": 4, "sampled": 3, "weights": (1.0,)}, "one for each of the 2 inner prefixes"),
    ],
)
def test_impossible_settings_are_refused_with_their_values(config: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        config(64, **wrong)
    assert "\n" not in str(refusal.value)


def test_run_names_say_what_distinguishes_dictionaries() -> None:
    assert BatchTopK(1024, 16).run_name == "batchtopk-1024-k16"
    assert Matryoshka(1024, 16, (64, 1024)).run_name == "matryoshka-1024-k16-2prefixes"
    assert Matryoshka(1024, 16, sampled=10).run_name == "matryoshka-1024-k16-sampled10"
