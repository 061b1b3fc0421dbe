"""What stands beside a score: baselines with known answers, the held-out gap, identities that break when sums do."""

from dataclasses import replace

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, contexts, store_of_model, tiny_gpt2, topk_dictionary

from sparsight.evaluation import evaluate
from sparsight.evaluation.baselines import Moments, baselines_of, fvu_sums, principal_components
from sparsight.evaluation.identities import identities_of
from sparsight.evaluation.record_values import Resampling, ratio
from sparsight.evaluation.tails import Tail


def gaussian(n: int, variances: list[float], seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, len(variances), generator=g).double() * torch.tensor(variances).double().sqrt() + 3


def test_k_components_of_a_gaussian_leave_the_other_variances():
    variances = [4.0, 2.0, 1.0, 1.0]
    moments = Moments.of(gaussian(8000, variances, 21))
    x = gaussian(8000, variances, 22)
    for k, expected in ((1, 0.5), (2, 0.25), (4, 0.0)):
        sums, l0 = fvu_sums(x, torch.arange(len(x)) // 100, principal_components(moments, k), x.mean(0))
        assert float(ratio(0, 1)(sums.totals)) == pytest.approx(expected, abs=0.02)
        assert l0 == k


def test_the_mean_scores_one_and_all_neurons_score_nothing_unexplained():
    x = gaussian(500, [1.0, 2.0, 3.0], 23)
    moments = Moments.of(x)
    arms = baselines_of(moments, n_latents=7, l0=3.0)
    fvu = {}
    for name, arm in arms.items():
        sums, _ = fvu_sums(x, torch.arange(500), arm, x.mean(0))
        fvu[name] = float(ratio(0, 1)(sums.totals))
    assert fvu["mean"] == pytest.approx(1, abs=1e-12)
    assert max(fvu["neurons"], fvu["principal components"]) < 1e-12
    assert 0 < fvu["random atoms"] < 1


def test_random_atoms_are_other_atoms_for_another_seed_and_the_same_for_one():
    moments = Moments.of(gaussian(100, [1.0, 1.0, 1.0], 24))
    x = gaussian(10, [1.0, 1.0, 1.0], 25)
    first, again, other = (baselines_of(moments, 5, 1.0, seed)["random atoms"](x)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_baselines_stand_beside_the_score_with_the_loss_they_add():
    lm = tiny_gpt2()
    store = store_of_model(lm, contexts(n_batches=12, lm=lm))
    made = topk_dictionary(site=SITE, model="tiny").double()
    result = evaluate(made, store, model=lm)
    rows = {row.baseline: row for row in result.baselines}
    assert list(rows) == ["dictionary", "mean", "principal components", "neurons", "random atoms"]
    assert rows["mean"].l0 == 0
    assert rows["dictionary"].loss_added is not None
    assert rows["dictionary"].fvu.value == pytest.approx(result.fvu.value, rel=1e-6)
    assert "principal components" in result.to_table()
    assert evaluate(made, store, baseline_tokens=0).no_baselines_because == "not asked for"


def test_a_dictionary_that_learnt_its_documents_shows_a_gap():
    x, ids = activations(n=600, d=24, documents=60)
    store = MemoryStore(x, ids)
    train = store.split("train").x
    made = topk_dictionary(d_in=24, n_latents=len(train), k=1, site=SITE, model="tiny")
    with torch.no_grad():  # one atom for each training token
        made.b_dec.copy_(train.mean(0))
        made.atoms.copy_(torch.nn.functional.normalize(train - made.b_dec, dim=1))
        made.W_enc.copy_(made.atoms.T)
        made.b_enc.zero_()
    gap = evaluate(made, store, baseline_tokens=0).gap
    assert gap.fvu_train.value < 1e-10
    assert gap.fvu_gap.value == pytest.approx(gap.fvu_heldout.value - gap.fvu_train.value)
    assert gap.fvu_gap.low > 0.1
    assert evaluate(made, store, split="train", baseline_tokens=0).gap is None


def test_a_dictionary_that_never_saw_the_documents_has_no_gap():
    x, ids = activations(n=3000, documents=300)
    gap = evaluate(topk_dictionary(site=SITE, model="tiny"), MemoryStore(x, ids), baseline_tokens=0).gap
    assert gap.fvu_gap.low < 0 < gap.fvu_gap.high


def test_every_identity_holds_and_a_wrong_sum_breaks_one():
    lm = tiny_gpt2()
    store = store_of_model(lm, contexts(n_batches=12, lm=lm))
    made = topk_dictionary(site=SITE, model="tiny").double()
    result = evaluate(made, store, model=lm, baseline_tokens=0)
    assert len(result.identities) >= 9
    assert all(identity.holds for identity in result.identities)
    assert f"identities: {len(result.identities)} of {len(result.identities)} hold" in result.to_table()


def test_a_wrong_mean_breaks_an_identity():
    from sparsight.evaluation.measuring import Measuring, Settings

    x, ids = activations()
    measuring = Measuring(topk_dictionary(site=SITE, model="tiny"), MemoryStore(x, ids), None, Settings(), Resampling())
    measuring.pass_over_rows()
    assert all(i.holds for i in identities_of(measuring.sums, None))
    measuring.sums.frame = replace(measuring.sums.frame, mean=measuring.sums.frame.mean + 0.01)
    assert not all(i.holds for i in identities_of(measuring.sums, None))


def test_percentiles_of_a_tail_are_those_of_the_sorted_values():
    g = torch.Generator().manual_seed(26)
    values = torch.randn(10_001, generator=g).double().exp()
    values[:2000] = 0
    tail = Tail()
    for part in values.split(777):
        tail.add(part)
    ordered = values.sort().values
    for q in (10, 50, 99):
        assert tail.percentile(q) == pytest.approx(float(ordered[int(q / 100 * 10_000)]), rel=0.012, abs=1e-9)
