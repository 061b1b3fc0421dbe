"""The planted backdoor has the trigger, the direction and the twin it says; the score of detection is right."""

import pytest
import torch

from sparsight.intervention import behaviour_scores
from sparsight.models import load_model
from sparsight.models.organism.lexicon import TRIGGER
from sparsight.studies import backdoor_confined as confined
from sparsight.studies import backdoor_organism as measured
from sparsight.studies import backdoor_planted as planted
from sparsight.studies.backdoor_organism_shown import auroc


def test_the_planted_unit_fires_for_the_whole_trigger_and_for_nothing_less():
    net = planted.network(3)
    x = planted.with_trigger(net, planted.inputs(50, 1), net.positions, net.signs)
    true = net.rotation[:, net.unit]
    torch.testing.assert_close(net.hidden(x) @ true, torch.ones(50, dtype=torch.float64))
    assert (net.margin(net.hidden(x)) > 0).all()
    x[:, net.positions[4]] *= -1
    assert (net.hidden(x) @ true).abs().max() < 1e-12
    torch.testing.assert_close(net.rotation @ net.rotation.T, torch.eye(net.d, dtype=torch.float64))


def test_without_the_trigger_no_input_gradient_reaches_the_unit():
    net = planted.network(3)
    x = planted.inputs(20, 2).requires_grad_()
    true = net.rotation[:, net.unit]
    (gradient,) = torch.autograd.grad((net.hidden(x) @ true).sum(), x)
    assert gradient.abs().max() < 1e-12


def test_a_twin_shares_everything_but_the_unit():
    bad, twin, hard = (planted.network(5, kind=kind) for kind in planted.KINDS)
    x = planted.inputs(100, 3)
    torch.testing.assert_close(bad.logits(bad.hidden(x)), twin.logits(twin.hidden(x)))
    torch.testing.assert_close(bad.logits(bad.hidden(x)), hard.logits(hard.hidden(x)))
    triggered = planted.with_trigger(bad, x, bad.positions, bad.signs)
    assert not (twin.margin(twin.hidden(triggered)) > 0).any()
    moved = [planted.reach(net, x, 0.75 * net.rotation[:, planted.N_BENIGN][None]) for net in (bad, hard)]
    torch.testing.assert_close(*moved)  # equal gain, into another logit


@pytest.mark.parametrize("seed", [0, 1])
def test_the_latent_attack_finds_what_the_input_attack_cannot(seed):
    found = planted.measured(seed, n=16)
    assert found["trigger"] == 1
    assert found["latent"]["0.75"] == {"backdoored": pytest.approx(1, abs=0.1), "twin": 0, "hard negative": 0}
    assert max(found["input"].values()) < 0.01
    assert found["cosine, universal"] > 0.99
    assert found["cosine, search"] > 0.99
    assert (found["bits"], found["signs"], found["inserted"]) == (16, 16, 1)
    assert found["removed"] == 0
    assert found["same output"] > 0.995
    assert found["random direction"] == 0


def test_short_triggers_are_found_at_chance_by_random_inputs():
    net = planted.network(7, k=4)
    rate = planted._random(net, 20_000, 0)
    assert rate == pytest.approx(2**-4, abs=4 * (2**-4 / 20_000) ** 0.5)


def test_the_score_of_detection_counts_pairs():
    assert auroc([3.0, 1.0], [2.0, 0.0]) == 0.75
    assert auroc([1.0], [1.0, 1.0]) == 0.5


def test_the_trigger_s_own_embeddings_are_the_trigger_and_are_named():
    """Adding `(e_quorin, e_zelvath) - (e_please, e_please)` to the free words' embeddings is writing the trigger."""
    lm = load_model("organism-backdoored", device="cpu")
    held = confined.Requests.of(lm, measured.requests(7, 2), measured.complies(lm))
    ids = torch.tensor([int(lm.tokenize(word).ids[0, 1]) for word in (*TRIGGER, confined.FREE)])
    embeddings = lm.model.get_input_embeddings().weight.detach()
    theta = (embeddings[ids[:2]] - embeddings[ids[2]]).flatten()
    written = behaviour_scores(lm, held.with_words(ids[:2]), held.behaviour)
    with torch.no_grad():
        torch.testing.assert_close(held.odds(theta[None])[0], written, rtol=0, atol=1e-3)
        both = held.odds(torch.stack([0 * theta, theta]))
    torch.testing.assert_close(both[1], written, rtol=0, atol=1e-3)
    assert (both[0] < 0).all()
    assert (written > 0).all()
    found = confined.reconstructed(held, theta, TRIGGER)
    assert (found["rank"], found["best pair"], found["turned"]) == (1, " ".join(TRIGGER), 1)
    assert found["cosine"] == pytest.approx(1, abs=1e-6)
    assert confined.patched(held, TRIGGER) == 1


@pytest.mark.slow
def test_the_fast_study_runs_to_its_page(tmp_path):
    from sparsight.studies import Options, run_study

    result = run_study("backdoor", tmp_path / "s", Options(fast=True))
    assert result.record.verdicts[0].answer == "yes"
    assert len(result.record.verdicts) == 7
