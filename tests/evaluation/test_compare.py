"""`compare_coders`: equal L0 where it is claimed, the order that theory gives, and pairing over documents."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, contexts, store_of_model, tiny_gpt2, topk_dictionary

from sparsight.codes import SparseCode
from sparsight.coding import (
    GramTable,
    fit_scale,
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
    refit,
)
from sparsight.dictionaries import Crosscoder, JumpReLU, Transcoder
from sparsight.errors import UndefinedMetric
from sparsight.evaluation import Comparison, compare_coders, metrics
from sparsight.evaluation.comparison.overlap import jaccard


@pytest.fixture(scope="module")
def store():
    return MemoryStore(*activations())


@pytest.fixture(scope="module")
def dictionary():
    return topk_dictionary(site=SITE, model="tiny")


@pytest.fixture(scope="module")
def jump():
    """An encoder whose L0 differs from token to token."""
    made = JumpReLU(24, target_l0=4, threshold=1.5).build(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.b_dec += 1.5
    return made


def by_arm(comparison, k):
    return {arm.arm: arm for arm in comparison.arms if arm.k == k}


def test_every_arm_is_the_coder_it_is_named_after(store, dictionary):
    x = store.split("heldout").x
    found = by_arm(compare_coders(dictionary, store, [2], n_tokens=None, batch_size=41), 2)
    with torch.no_grad():
        y = x - dictionary.b_dec
        pre = y @ dictionary.W_enc + dictionary.b_enc
        top = SparseCode.from_dense(pre.relu(), k=2)
        expected = {
            "encoder": top,
            "topk": top,
            "refit": refit(y, dictionary.atoms, top.support()),
            "pursuit": gradient_pursuit(y, dictionary.atoms, 2),
        }
        for name, code in expected.items():
            assert found[name].fvu.value == pytest.approx(metrics.fvu(x, dictionary.decode(code)), rel=1e-5)
            assert found[name].l0 == pytest.approx(metrics.l0(code), abs=1e-9)
            overlap = jaccard(code, expected["encoder"]).mean().item()
            assert found[name].jaccard.value == pytest.approx(overlap, abs=1e-9)


def test_at_its_own_k_the_encoder_is_as_trained(store, dictionary):
    found = compare_coders(dictionary, store, [4, 2], ["encoder"], n_tokens=None)
    x = store.split("heldout").x
    with torch.no_grad():
        own = dictionary.encode(x)
        expected = metrics.fvu(x, dictionary.decode(own))
    assert by_arm(found, 4)["encoder"].own_l0
    assert by_arm(found, 4)["encoder"].fvu.value == pytest.approx(expected, rel=1e-6)
    assert not by_arm(found, 2)["encoder"].own_l0
    assert found.own_l0 == metrics.l0(own)


def test_refitting_never_hurts_and_the_differences_say_so(store, dictionary):
    found = compare_coders(dictionary, store, [2, 4, 6], n_tokens=None)
    for k in (2, 4, 6):
        arms = by_arm(found, k)
        assert arms["refit"].fvu.value < arms["encoder"].fvu.value
        assert arms["pursuit"].fvu.value < arms["refit"].fvu.value
    assert len(found.differences) == 9
    for difference in found.differences:
        arms = by_arm(found, difference.k)
        expected = arms[difference.first].fvu.value - arms[difference.second].fvu.value
        assert difference.fvu.value == pytest.approx(expected, abs=1e-12)
        assert difference.fvu.low < difference.fvu.value < difference.fvu.high < 0


def test_the_remaining_arms_are_the_coders_they_are_named_after(store, dictionary):
    x, train = store.split("heldout").x, store.split("train").x
    names = ["scaled", "joint_scaled", "matching_pursuit", "polished", "omp", "thresholded", "lasso"]
    found = by_arm(compare_coders(dictionary, store, [2], names, n_tokens=None), 2)
    with torch.no_grad():
        y, fit = x - dictionary.b_dec, train - dictionary.b_dec
        top, top_fit = (SparseCode.from_dense((z @ dictionary.W_enc).relu(), k=2) for z in (y, fit))
        one = fit_scale(fit, top_fit, dictionary.atoms, per_latent=False)
        each = fit_scale(fit, top_fit, dictionary.atoms)
        expected = {
            "scaled": SparseCode(top.indices, top.values * one, 24),
            "joint_scaled": SparseCode(top.indices, top.values * each[top.indices], 24),
            "matching_pursuit": matching_pursuit(y, dictionary.atoms, 2),
            "polished": gradient_pursuit(y, dictionary.atoms, 2, polish=True),
            "orthogonal_matching_pursuit": orthogonal_matching_pursuit(y, dictionary.atoms, 2),
        }
        for name, code in expected.items():
            assert found[name].fvu.value == pytest.approx(metrics.fvu(x, dictionary.decode(code)), rel=1e-4)
    assert found["scaled"].fvu.value > found["joint_scaled"].fvu.value
    assert found["matching_pursuit"].fvu.value > found["orthogonal_matching_pursuit"].fvu.value
    # Matched in the mean, on training tokens: near k on the others, but not the same in every token.
    for name in ("thresholded", "lasso"):
        assert found[name].l0 == pytest.approx(2, abs=0.35)


def test_what_is_fitted_is_fitted_on_training_documents_only(store, dictionary):
    """Held-out activations of another scale must not reach the fitted factor."""
    x, ids = activations()
    x[ids % 3 == 0] = dictionary.b_dec.detach() + 10 * (x[ids % 3 == 0] - dictionary.b_dec.detach())
    scaled, plain = (
        by_arm(compare_coders(dictionary, s, [2], ["scaled", "encoder"], n_tokens=None), 2)
        for s in (MemoryStore(x, ids), store)
    )
    # Everything is linear: ten times the activations, by the same factor, have the same share unexplained about b_dec.
    centred = {name: [r[name].fvu.value for r in (scaled, plain)] for name in ("scaled", "encoder")}
    ratio = centred["encoder"][0] / centred["encoder"][1]
    assert centred["scaled"][0] / centred["scaled"][1] == pytest.approx(ratio, rel=1e-4)


def test_an_encoder_of_varying_l0_is_compared_token_by_token(jump):
    store = MemoryStore(*activations(n=150))
    x = store.split("heldout").x
    with torch.no_grad():
        own = jump.encode(x)
        assert own.l0().unique().numel() > 3
        y = x - jump.b_dec
        rows = [gradient_pursuit(y[i : i + 1], jump.atoms, int(k)) for i, k in enumerate(own.l0())]
        expected = {
            "encoder": own,
            "refit": refit(y, jump.atoms, own.support()),
            "pursuit": SparseCode.cat(rows),
        }
        found = by_arm(compare_coders(jump, store, ["own"], n_tokens=None, batch_size=30), "own")
        for name, code in expected.items():
            assert found[name].fvu.value == pytest.approx(metrics.fvu(x, jump.decode(code)), rel=1e-5)
            assert found[name].l0 == pytest.approx(metrics.l0(code), abs=1e-9)
    assert found["topk"].l0 == pytest.approx(found["encoder"].l0)
    k = round(metrics.l0(own))
    assert by_arm(compare_coders(jump, store, [k], n_tokens=None), k)["encoder"].own_l0


def test_unequal_l0_is_noted(store):
    """Few pre-activations are positive: the encoder cannot use 6 latents everywhere, pursuit can."""
    shy = topk_dictionary()
    with torch.no_grad():
        shy.b_enc -= 2.5
    found = compare_coders(shy, store, [6], n_tokens=None)
    arms = by_arm(found, 6)
    assert arms["encoder"].l0 < 5 < 5.9 < arms["pursuit"].l0
    least = min(arm.l0 for arm in arms.values())
    assert [note.split(" (")[0] for note in found.notes] == [f"at k=6, mean L0 runs from {least:.4g}"]


def test_overlap_of_supports_is_that_of_sets():
    a = SparseCode(
        torch.tensor([[0, 1, 2], [3, 4, 0], [0, 0, 0]]), torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]]), 9
    )
    b = SparseCode(torch.tensor([[2, 1], [5, 0], [1, 1]]), torch.tensor([[1.0, 1], [1, 0], [0, 0]]), 9)
    assert jaccard(a, b).tolist() == [2 / 3, 0, 1]


def test_loss_added_is_measured_for_every_arm():
    lm = tiny_gpt2()
    store = store_of_model(lm, contexts(lm=lm))
    found = compare_coders(topk_dictionary().double(), store, [2, 4], ["encoder", "pursuit"], model=lm)
    assert all(arm.loss_added is not None and arm.loss_added.low is not None for arm in found.arms)
    assert len({arm.loss_added.value for arm in found.arms}) == 4
    assert found.no_loss_because is None


def test_the_record_survives_json_and_shows_itself(store, dictionary):
    found = compare_coders(dictionary, store, [2, "own"])
    assert Comparison.model_validate_json(found.to_json()) == found
    table = found.to_table()
    assert "pursuit" in table
    assert "no loss added: no model was given" in table
    assert all(len(line) <= 110 for line in table.splitlines())
    figure = found.to_figure()
    assert {line.name for line in figure.data} == {"encoder", "topk", "refit", "pursuit"}
    pursuit = next(line for line in figure.data if line.name == "pursuit")
    assert list(pursuit.x) == sorted(arm.l0 for arm in found.arms if arm.arm == "pursuit")


def test_what_cannot_be_compared_is_refused(store, dictionary):
    with pytest.raises(ValueError, match="between 1 and n_latents=24, got k=0"):
        compare_coders(dictionary, store, [0])
    with pytest.raises(ValueError, match="between 1 and n_latents=24, got k=99"):
        compare_coders(dictionary, store, [99])
    with pytest.raises(ValueError, match="at least one number of latents"):
        compare_coders(dictionary, store, [])
    with pytest.raises(ValueError, match="unknown coder 'magic'; choose from encoder"):
        compare_coders(dictionary, store, [2], ["magic"])
    x, ids = activations()
    with pytest.raises(UndefinedMetric, match="all equal"):
        compare_coders(dictionary, MemoryStore(torch.full_like(x, 0.1), ids), [2])


def test_one_document_has_no_interval_and_says_so(dictionary):
    x, ids = activations(documents=1)
    found = compare_coders(dictionary, MemoryStore(x, ids), [2])
    assert all(arm.fvu.low is None for arm in found.arms)
    assert all(difference.fvu.low is None for difference in found.differences)
    assert "one document only: no interval is possible" in found.notes


def test_a_shared_table_of_inner_products_changes_no_code(monkeypatch):
    """The table is made once for all arms and batches, and the arms code as they do without it."""
    x, ids = activations(600)
    store, dictionary = MemoryStore(x, ids), topk_dictionary(site=SITE, model="tiny")
    arms = ["matching_pursuit", "pursuit", "orthogonal_matching_pursuit"]
    plain = compare_coders(dictionary, store, [2, 4], arms, batch_size=64)
    made = []

    def table(atoms, n_rows, k):
        made.append((n_rows, k))
        return GramTable(atoms)

    monkeypatch.setattr("sparsight.evaluation.comparison.compare.kept_search", table)
    kept = compare_coders(dictionary, store, [2, 4], arms, batch_size=64)
    assert made == [(len(store.split("heldout")), 6)]
    for one, other in zip(plain.arms, kept.arms, strict=True):
        assert one.fvu.value == pytest.approx(other.fvu.value, rel=1e-5)


@pytest.mark.parametrize("config", [Transcoder(24, 3), Crosscoder(24, 3)])
def test_a_dictionary_of_several_sites_is_refused(store, config):
    several = config.build(store.x.shape[1], torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="is of several sites"):
        compare_coders(several, store, [2])
