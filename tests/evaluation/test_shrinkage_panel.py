"""The panel that says where shrinkage is and of which kind: planted kinds, places and scales come back."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, topk_dictionary

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation import Evaluation, PanelSums, evaluate, panel_of
from sparsight.evaluation.shrinkage_panel import position_group, ranges


def orthonormal(n: int = 3000, d: int = 16, k: int = 3) -> tuple[torch.Tensor, SparseCode]:
    """Orthonormal atoms, values Exp(1): what a penalty does to them is known."""
    g = torch.Generator().manual_seed(0)
    support = torch.rand(n, d, generator=g).argsort(dim=1)[:, :k]
    values = -torch.rand(n, k, generator=g, dtype=torch.float64).log()
    code = SparseCode(support, values, d)
    return code.decode(torch.eye(d, dtype=torch.float64)), code


EYE = torch.eye(16, dtype=torch.float64)


def test_soft_thresholding_shows_as_an_amount():
    x, code = orthonormal()
    panel = panel_of(x, SparseCode(code.indices, (code.values - 0.2).clamp_min(0), 16), EYE)
    assert panel.kind == "amount"
    assert (panel.slope, panel.intercept) == pytest.approx((1.0, 0.2), abs=1e-9)
    assert panel.explained_by_amount == pytest.approx(1, abs=1e-9)
    assert [b.difference for b in panel.by_value] == pytest.approx([-0.2] * 10, abs=1e-9)
    assert panel.by_value[0].ratio < 0.4 < 0.9 < panel.by_value[9].ratio
    assert sum(b.n_values for b in panel.by_value) == int((code.values > 0.2).sum())
    # r = 1 / (1 + t/2) up to sampling (codes Exp(1), threshold t).
    assert panel.family.r == pytest.approx(1 / 1.1, abs=0.01)


def test_one_factor_shows_as_a_factor_and_comes_back_latent_by_latent():
    x, code = orthonormal()
    panel = panel_of(x, SparseCode(code.indices, 0.8 * code.values, 16), EYE)
    assert panel.kind == "factor"
    assert (panel.slope, panel.intercept) == pytest.approx((1.25, 0.0), abs=1e-9)
    assert panel.family.r == pytest.approx(0.8, abs=1e-12)
    for spread in (panel.joint_scale, panel.refit_slope):
        assert (spread.median, spread.p5, spread.p95) == pytest.approx((1.25, 1.25, 1.25), abs=1e-9)
    assert panel.n_latents == 16
    assert panel.joint_scale_gain == pytest.approx(panel.scale_gain, abs=1e-12)
    assert panel.joint_scale_gain == pytest.approx(0.04, abs=1e-12)


def test_values_that_cannot_be_improved_have_no_kind():
    x, code = orthonormal()
    panel = panel_of(x, code, EYE)
    assert panel.kind is None
    assert panel.family.r == pytest.approx(1, abs=1e-12)
    assert panel.explained_by_factor is None


def test_shrinkage_of_late_tokens_and_of_long_ones_is_found_where_it_is():
    x, code = orthonormal()
    positions = torch.arange(len(x)) % 8
    late = torch.where(positions >= 4, 0.5, 1.0).double().unsqueeze(1)
    panel = panel_of(x, SparseCode(code.indices, late * code.values, 16), EYE, positions)
    assert [(g.low, g.high) for g in panel.by_position] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert [g.family.r for g in panel.by_position] == pytest.approx([1, 1, 1, 0.5], abs=1e-12)
    lengths = x.norm(dim=1, keepdim=True)
    long = torch.where(lengths >= lengths.sort(dim=0).values[2400], 0.5, 1.0)
    panel = panel_of(x, SparseCode(code.indices, long * code.values, 16), EYE)
    assert [g.family.r for g in panel.by_norm] == pytest.approx([1] * 8 + [0.5] * 2, abs=1e-12)
    assert panel.by_position == []
    assert [g.n_tokens for g in panel.by_norm] == [300] * 10


def test_batches_of_any_size_give_one_panel():
    x, code = orthonormal(500)
    small = SparseCode(code.indices, 0.8 * code.values, 16)
    positions = torch.arange(500) % 50
    sums = PanelSums(EYE, *ranges(x, small))
    for rows in (slice(0, 7), slice(7, 300), slice(300, None)):
        sums.add(x[rows], small[rows], positions[rows])
    one, many = panel_of(x, small, EYE, positions), sums.panel
    assert [g.n_tokens for g in many.by_position] == [g.n_tokens for g in one.by_position]
    assert [b.n_values for b in many.by_value] == [b.n_values for b in one.by_value]
    assert many.joint_scale.median == pytest.approx(one.joint_scale.median, abs=1e-9)
    assert many.family.r == pytest.approx(one.family.r, abs=1e-12)


def test_places_fall_into_ranges_that_double():
    assert position_group(torch.tensor([0, 1, 2, 3, 4, 7, 8, 127, 128])).tolist() == [0, 1, 2, 2, 3, 3, 4, 7, 8]


def test_silent_and_empty_codes_are_said_not_invented():
    x, code = orthonormal(50)
    panel = panel_of(x, SparseCode(code.indices, torch.zeros_like(code.values), 16), EYE)
    assert panel.family is None
    assert panel.scale_gain is None
    assert (panel.kind, panel.joint_scale, panel.slope, panel.n_latents) == (None, None, None, 0)
    assert all(g.family is None for g in panel.by_norm)
    with pytest.raises(UndefinedMetric, match="no activations"):
        panel_of(x[:0], code[slice(0, 0)], EYE)
    with pytest.raises(UndefinedMetric, match="no activations"):
        _ = PanelSums(EYE, *ranges(x, code)).panel


def test_evaluate_adds_the_panel_when_asked_and_it_agrees_with_the_family():
    store = MemoryStore(*activations())
    dictionary = topk_dictionary(site=SITE, model="tiny")
    plain = evaluate(dictionary, store)
    assert plain.shrinkage_panel is None
    result = evaluate(dictionary, store, shrinkage_tokens=10_000, batch_size=64)
    panel = result.shrinkage_panel
    assert panel.n_tokens == result.n_tokens
    assert panel.family.r == pytest.approx(result.shrinkage_centred.r, rel=1e-6)
    assert sum(g.n_tokens for g in panel.by_position) == result.n_tokens
    assert panel.joint_scale_gain >= panel.scale_gain
    assert Evaluation.model_validate_json(result.to_json()) == result
    table = result.to_table()
    assert "position 16 to 29" in table or "position 16 to 31" in table
    assert all(len(line) <= 110 for line in table.splitlines())
    few = evaluate(dictionary, store, shrinkage_tokens=64).shrinkage_panel
    assert few.n_tokens == 64


def test_a_dictionary_that_says_nothing_is_measured_and_noted():
    """Every latent silent: no shrinkage about b_dec, and the record says why."""
    store = MemoryStore(*activations())
    dictionary = topk_dictionary(site=SITE, model="tiny")
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
    result = evaluate(dictionary, store, shrinkage_tokens=1000)
    assert result.shrinkage_centred is None
    assert any(note.startswith("no shrinkage about b_dec") for note in result.notes)
    assert result.shrinkage_panel.family is None
    assert "undefined" in result.to_table()
