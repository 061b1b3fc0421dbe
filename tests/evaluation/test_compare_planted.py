"""`compare_coders` on planted data: what the oracle, recall, precision and the diagnostics must come to."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, topk_dictionary
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import kkt_residual, refit, small_weight_mass, small_weight_precision, span_overlap
from sparsight.coding.diagnostics.overlap import mean_overlap
from sparsight.dictionaries import JumpReLU, TopK, TopKDictionary
from sparsight.evaluation import compare_coders
from sparsight.evaluation.comparison.diagnosis import FRACTIONS, SmallValues, by_size
from sparsight.evaluation.comparison.source import NO_PARTNER, planted_support
from sparsight.studies.planted import Planted, paired_atoms, random_atoms


def drawn(problem: Callable[..., Planted], *sizes: float, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, atoms and true supports."""
    planted = problem(*sizes, **options)
    return planted.x, planted.atoms, planted.support


def tied(atoms: Tensor, k: int) -> TopKDictionary:
    """A dictionary whose encoder is its atoms' transpose."""
    made = TopK(len(atoms), k).build(atoms.shape[1], torch.Generator().manual_seed(0)).to(atoms.dtype)
    with torch.no_grad():
        made.atoms.copy_(atoms)
        made.W_enc.copy_(atoms.T)
    return made


def code_of(support: Tensor, n_latents: int) -> SparseCode:
    return SparseCode(support, torch.ones(support.shape, dtype=torch.float64), n_latents)


def by_arm(comparison, k):
    return {arm.arm: arm for arm in comparison.arms if arm.k == k}


@pytest.fixture(scope="module")
def planted():
    """Noiseless signals of 6 of 256 atoms in 64 dimensions, and their comparison."""
    x, atoms, support = drawn(random_atoms, 0, 64, 256, 6, 0.0, 400)
    names = ["encoder", "scaled", "refit", "mp", "pursuit", "omp"]
    truth = code_of(support[:300], 256)
    found = compare_coders(tied(atoms, 6), x[:300], [6], names, truth=truth, train=x[300:], n_resamples=200)
    return by_arm(found, 6), found


def test_each_better_coder_loses_less_and_the_oracle_nothing(planted):
    arms, found = planted
    order = ["scaled", "refit", "matching_pursuit", "pursuit", "orthogonal_matching_pursuit", "oracle"]
    losses = [arms[name].fvu.value for name in order]
    assert losses == sorted(losses, reverse=True)
    assert arms["oracle"].fvu.value < 1e-20
    assert (found.split, found.site, found.model) == ("given", None, None)
    assert found.n_documents == found.n_tokens == 300


def test_the_oracle_finds_all_and_each_arm_its_share(planted):
    arms, _ = planted
    x, atoms, support = drawn(random_atoms, 0, 64, 256, 6, 0.0, 400)
    picked = SparseCode.from_dense((x[:300] @ atoms.T).clamp_min(0), 6)
    share = (picked.to_dense() != 0).double().gather(1, support[:300]).mean().item()
    assert arms["encoder"].recall.value == pytest.approx(share, abs=1e-12)
    assert arms["oracle"].recall.value == 1
    assert arms["oracle"].precision_large.value == 1
    assert arms["pursuit"].recall.value > 0.99
    assert arms["encoder"].recall.low < share < arms["encoder"].recall.high


def test_precision_of_small_values_is_that_of_the_code(planted):
    arms, _ = planted
    x, atoms, support = drawn(random_atoms, 0, 64, 256, 6, 0.0, 400)
    picked = SparseCode.from_dense((x[:300] @ atoms.T).clamp_min(0), 6)
    again = refit(x[:300], atoms, picked.support())
    expected = small_weight_precision(again, code_of(support[:300], 256))
    assert arms["refit"].precision_small.value == pytest.approx(expected.small, abs=1e-3)
    assert arms["refit"].precision_large.value == pytest.approx(expected.large, abs=1e-3)
    mass = small_weight_mass(again).tolist()
    assert [q.value for q in arms["refit"].diagnostics.small_weight_mass.values()] == pytest.approx(mass, abs=1e-3)


def test_only_least_squares_satisfies_its_conditions(planted):
    arms, _ = planted
    residuals = {name: arm.diagnostics.kkt_residual.value for name, arm in arms.items()}
    assert all(residuals[name] < 1e-12 for name in ("refit", "orthogonal_matching_pursuit", "oracle"))
    assert all(residuals[name] > 1e-3 for name in ("encoder", "scaled", "matching_pursuit", "pursuit"))


def test_diagnostics_are_those_of_the_codes(planted):
    arms, found = planted
    x, atoms, _ = drawn(random_atoms, 0, 64, 256, 6, 0.0, 400)
    y = x[:300]
    code = by_size(refit(y, atoms, SparseCode.from_dense((y @ atoms.T).clamp_min(0), 6).support()))
    d = arms["refit"].diagnostics
    assert d.n_tokens == found.n_tokens  # fewer than the sample wanted
    expected = mean_overlap(code, span_overlap(code, atoms))[0].mean().item()
    assert d.span_overlap.value == pytest.approx(expected, abs=1e-6)
    relative = kkt_residual(y, code, atoms) / y.norm(dim=1)
    assert d.kkt_residual.value == pytest.approx(relative.mean().item(), abs=1e-9)
    assert d.interference_floor.value == pytest.approx((code.values.norm(dim=1) / 8).mean().item(), rel=1e-6)
    off = (y @ atoms.T).masked_fill(code.to_dense() != 0, math.nan).flatten()
    off = off[~off.isnan()]
    assert d.off_support_std.value == pytest.approx(off.std(correction=0).item(), rel=1e-6)
    assert d.overlap_minus_random.value == pytest.approx(d.span_overlap.value - d.span_overlap_random.value)


def test_pursuit_keeps_away_from_near_duplicates_and_the_encoder_does_not():
    x, atoms, support = drawn(paired_atoms, 0, 0.9, both=True, n=200)
    found = by_arm(compare_coders(tied(atoms, 6), x, [6], ["encoder", "omp"], truth=code_of(support, 128)), 6)
    omp, encoder = (found[name].diagnostics for name in ("orthogonal_matching_pursuit", "encoder"))
    assert omp.overlap_minus_encoder.high < -0.1
    assert encoder.overlap_minus_random.low > 0.3
    assert encoder.overlap_minus_encoder.value == 0
    assert found["encoder"].recall.value > found["orthogonal_matching_pursuit"].recall.value


def test_the_lasso_is_near_its_optimum_and_only_it_has_a_gap():
    x, atoms, _ = drawn(random_atoms, 0, 16, 32, 3, 0.0, 90)
    found = by_arm(compare_coders(tied(atoms, 3), x[:60], [3], ["encoder", "lasso"], train=x[60:]), 3)
    assert 0 <= found["lasso"].diagnostics.duality_gap.value < 1e-3
    assert found["lasso"].diagnostics.kkt_residual.value < 1e-12
    assert found["encoder"].diagnostics.duality_gap is None


def test_true_latents_are_matched_by_cosine_and_one_without_a_partner_counts_as_missed():
    """True atoms 0, 1, 2; the dictionary holds 2 and 0, and a third direction that is none of them."""
    true_atoms = torch.eye(4, dtype=torch.float64)[:3]
    atoms = torch.eye(4, dtype=torch.float64)[[2, 0, 3]]
    truth = SparseCode(
        torch.tensor([[0, 1], [2, 0], [1, 0]]), torch.tensor([[1.0, 1], [1, 0], [3, 0]], dtype=torch.float64), 3
    )
    assert planted_support(truth, atoms, true_atoms).tolist() == [[1, NO_PARTNER], [0, -1], [NO_PARTNER, -1]]
    x = truth.decode(true_atoms)
    found = by_arm(compare_coders(tied(atoms, 1), x, [1], ["encoder"], truth=truth, true_atoms=true_atoms), 1)
    assert found["oracle"].recall.value == 0.5  # two of four
    assert found["oracle"].precision_large.value == 1
    lost = 1 + 9
    assert found["oracle"].fvu.value == pytest.approx(lost / (x - x.mean(0)).square().sum().item())


def test_small_values_are_counted_within_documents():
    latents = torch.zeros(4, 1, dtype=torch.int64)
    values = SmallValues()
    ids = torch.tensor([5, 5, 7, 7])
    values.add(SparseCode(latents, torch.tensor([[10.0], [0.4], [0.9], [0.0]]), 2), ids, latents == 1)
    sums = values.summed().sums
    assert sums.sums.tolist() == [[2, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0]]
    assert FRACTIONS == (0.05, 0.1, 0.2)


def test_thresholds_are_told_in_units_of_the_floor():
    """Read-outs of length 2 that must exceed 3, an offset of 1 off: (3 - 1) / 2, over a floor of `|z| / sqrt(d)`."""
    jump = JumpReLU(24, target_l0=4, threshold=3.0).build(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        jump.W_enc *= 2
        jump.b_enc += 1
    x, ids = activations(300)
    store = MemoryStore(5 * x, ids)
    d = by_arm(compare_coders(jump, store, ["own"], ["encoder"], n_tokens=None), "own")["encoder"].diagnostics
    assert d.threshold_over_floor == pytest.approx(1 / d.interference_floor.value, rel=1e-5)
    other = compare_coders(topk_dictionary(site=SITE, model="tiny"), store, [2], ["encoder"])
    assert other.arms[0].diagnostics.threshold_over_floor is None


def test_a_sample_is_spread_over_all_batches_and_can_be_left_out():
    dictionary, store = topk_dictionary(site=SITE, model="tiny"), MemoryStore(*activations(300))
    shown = compare_coders(dictionary, store, [2], ["encoder"], batch_size=7, diagnostic_tokens=20)
    assert shown.arms[0].diagnostics.n_tokens == 20
    assert compare_coders(dictionary, store, [2], ["encoder"], diagnostic_tokens=0).arms[0].diagnostics is None


def test_what_belongs_to_planted_data_is_refused_elsewhere():
    x, atoms, support = drawn(random_atoms, 0, 16, 32, 3, 0.0, 20)
    dictionary, truth = tied(atoms, 3), code_of(support, 32)
    with pytest.raises(ValueError, match="pass train="):
        compare_coders(dictionary, x, [3], ["scaled"])
    with pytest.raises(ValueError, match="the oracle needs the planted code"):
        compare_coders(dictionary, x, [3], ["oracle"])
    with pytest.raises(ValueError, match="truth must be of the same 20 rows"):
        compare_coders(dictionary, x, [3], truth=truth[:5])
    with pytest.raises(ValueError, match="over the 32 atoms it names, got one over 31"):
        compare_coders(dictionary, x, [3], truth=SparseCode(support.clamp_max(30), truth.values, 31))
    with pytest.raises(ValueError, match="width 16"):
        compare_coders(dictionary, x[:, :8], [3])
    with pytest.raises(ValueError, match="truth goes with a plain tensor"):
        compare_coders(topk_dictionary(), MemoryStore(*activations(60)), [2], truth=truth)


def test_a_comparison_is_saved_as_numbers_text_and_pictures(tmp_path, planted):
    _, found = planted
    found.save(tmp_path / "new")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["comparison.json", "comparison.png", "comparison.svg", "comparison.txt"]
    text = (tmp_path / "new" / "comparison.txt").read_text(encoding="utf8")
    assert all(word in text for word in ("oracle", "recall", "off/floor"))
    titles = [axes.get_title() for axes in found.to_plot().axes if axes.get_visible()]
    assert len(titles) == 4
    assert "Planted latents found" in titles
