"""Oversight by cognition on a planted bed whose classifiers agree exactly, and on the organism."""

import pytest
import torch

from sparsight.circuits.oversight import (
    INTENDED,
    UNCLEAR,
    UNINTENDED,
    discriminate,
    head_effects,
    judge_latents,
    planted_bed,
    score_of,
)
from sparsight.dictionaries import TopK
from sparsight.errors import UndefinedMetric
from sparsight.training import Training, train


@pytest.fixture(scope="module")
def bed():
    return planted_bed(21, n_broad=8_000)


@pytest.fixture(scope="module")
def dictionaries(bed, tmp_path_factory):
    """One trained on the broad distribution, one on the texts at hand alone."""
    training = Training(n_tokens=60_000, batch_size=256, lr=5e-3, seed=4)
    made = {}
    for name, x in (("broad", bed.broad), ("at hand", bed.at_hand)):
        config = TopK(40, k=4, dead_after=2_000)
        made[name] = train(x, [config], training, out=tmp_path_factory.mktemp(name.replace(" ", "")))[0].dictionary
    return made


def gap(found, bed):
    """By how much heads that go by the intended property score higher, in the mean."""
    sides = [[s.value for s, good in zip(found.scores, bed.intended, strict=True) if good == side] for side in (1, 0)]
    return sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])


def test_all_heads_agree_where_both_properties_go_together(bed):
    logits = bed.at_hand @ bed.heads.T
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), atol=1e-4, rtol=0)
    apart = bed.deciding @ bed.heads.T
    assert float((apart[:, 0] - apart[:, 1]).abs().mean()) > 0.3


@pytest.mark.parametrize("how", ["hard", "relaxed"])
def test_a_general_dictionary_tells_heads_apart_that_agree(bed, dictionaries, how):
    dictionary = dictionaries["broad"]
    effects = head_effects(dictionary, bed.heads, bed.at_hand)
    found = discriminate(effects, judge_latents(dictionary, bed, how), bed.intended)
    assert found.auroc == 1.0
    assert gap(found, bed) > 0.2
    assert found.n_judged >= 2
    for score in found.scores:
        assert score.low <= score.value <= score.high


@pytest.mark.parametrize("how", ["hard", "relaxed"])
def test_a_dictionary_of_the_texts_at_hand_alone_cannot(bed, dictionaries, how):
    """The negative control: there one latent suffices for both properties, and nothing can be said of it."""
    dictionary = dictionaries["at hand"]
    effects = head_effects(dictionary, bed.heads, bed.at_hand)
    found = discriminate(effects, judge_latents(dictionary, bed, how), bed.intended)
    assert abs(gap(found, bed)) < 0.1
    assert found.p_value > 0.05


def test_a_score_is_the_intended_share_of_what_is_judged():
    effects = torch.tensor([3.0, 1.0, 4.0])
    found = score_of(effects, torch.tensor([INTENDED, UNINTENDED, UNCLEAR]))
    assert (found.value, found.low, found.high, found.unclear) == (0.75, 3 / 8, 7 / 8, 0.5)
    assert score_of(effects, torch.zeros(3, dtype=torch.int64)).value == 0.5
    with pytest.raises(ValueError, match="negative"):
        score_of(-effects, torch.zeros(3, dtype=torch.int64))


def test_verdicts_the_wrong_way_round_turn_the_order():
    effects = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    verdicts = torch.tensor([INTENDED, UNINTENDED])
    assert discriminate(effects, verdicts, [True, False]).auroc == 1.0
    assert discriminate(effects, -verdicts, [True, False]).auroc == 0.0


def test_what_cannot_be_compared_is_refused():
    effects = torch.ones(2, 3)
    verdicts = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UndefinedMetric, match="both sorts"):
        discriminate(effects, verdicts, [True, True])
    with pytest.raises(ValueError, match="a truth for each"):
        discriminate(effects, verdicts, [True])
