"""Oversight by cognition on a planted bed whose classifiers agree exactly, and on the organism."""

import pytest
import torch

from sparsight.circuits import DirectionNodes, NeuronNodes
from sparsight.circuits.oversight import (
    INTENDED,
    UNCLEAR,
    UNINTENDED,
    discriminate,
    effects_on,
    oversee,
    score_of,
    verdicts_of,
)
from sparsight.circuits.oversight_bed import head_effects, judge_latents, planted_bed, word_heads
from sparsight.circuits.shift import Classifier, LabelJudge, organism_biographies
from sparsight.circuits.shift.classifier import pooled_activations
from sparsight.circuits.shift.grammar import gendered_words, profession_words
from sparsight.circuits.shift.judges import Judgement, judged
from sparsight.dictionaries import TopK
from sparsight.errors import UndefinedMetric
from sparsight.models import Site, load_model
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


# ---- classifiers of the organism's biographies


EMBED = Site(None, "embed")


@pytest.fixture(scope="module")
def lm():
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def biased():
    return organism_biographies(40, seed=6, spurious=True, languages={"english": 1})


def heads_of(lm, texts, words):
    """Linear heads on mean embeddings: each reads whether some words of class 1 or of class 0 stand in the text."""
    rows = lm.model.get_input_embeddings().weight.detach()
    ids = {word: int(lm.tokenize(word).ids[0, 1]) for word in sorted({w for t in texts.texts for w in t.split()})}
    read = torch.linalg.pinv(rows[list(ids.values())])  # column i: 1 on word i, 0 on every other word of the texts
    target = texts.target_labels.tolist()
    side = {
        word: sum((2 * y - 1) * text.split().count(word) for text, y in zip(texts.texts, target, strict=True))
        for word in ids
        if word in words
    }
    weight = sum(read[:, list(ids).index(word)] * (1 if s > 0 else -1) for word, s in side.items() if s)
    return Classifier(lm, EMBED, weight, 0.0)


def test_effects_on_classifiers_are_those_of_each_node_by_hand(lm, biased):
    """At the site that is read the effect of a neuron is its mean over tokens times the weight, text by text."""
    g = torch.Generator().manual_seed(3)
    width = lm.width(EMBED)
    heads = [Classifier(lm, EMBED, torch.randn(width, generator=g), 0.3) for _ in range(2)]
    x = pooled_activations(lm, EMBED, biased.texts)
    by_hand = torch.stack([(x * head.weight).abs().mean(dim=0) for head in heads])
    found = effects_on(heads, {EMBED: NeuronNodes(EMBED, width)}, biased)
    assert found.shape == (2, width)
    torch.testing.assert_close(found.float(), by_hand, rtol=1e-4, atol=1e-7)


def test_verdicts_stand_where_the_effects_of_their_nodes_do(lm, biased):
    later = Site(0, "resid_post")
    nodes = {later: DirectionNodes(later, torch.eye(lm.width(later))[:5]), EMBED: NeuronNodes(EMBED, lm.width(EMBED))}
    width = lm.width(EMBED)
    said = [("embed", 3, "keep"), ("0.resid_post", 4, "remove"), ("0.resid_post", 0, "unclear")]
    judgements = [
        Judgement(site=site, latent=j, verdict=verdict, confidence=1.0, reason="", documents=0)
        for site, j, verdict in said
    ]
    verdicts = verdicts_of(judgements, nodes)
    assert verdicts.nonzero()[:, 0].tolist() == [3, width + 4]
    assert verdicts[[3, width + 4]].tolist() == [INTENDED, UNINTENDED]
    head = Classifier(lm, later, torch.eye(lm.width(later))[4], 0.0)
    effects = effects_on([head], nodes, biased)
    # Of the directions only the last is read, and the first coordinates of the effects are the embeddings'.
    assert effects.shape == (1, width + 5)
    assert effects[0, width:].nonzero()[:, 0].tolist() == [4]


def test_heads_by_profession_are_told_from_heads_by_gender_on_texts_where_all_answer_alike(lm, biased):
    """Neurons of the embeddings, turned so that each is a word: the words are known, and so is the answer."""
    heads = [heads_of(lm, biased, profession_words()), heads_of(lm, biased, gendered_words(biased))]
    words = sorted({w for t in biased.texts for w in t.split()})
    rows = lm.model.get_input_embeddings().weight.detach()[[int(lm.tokenize(w).ids[0, 1]) for w in words]]
    nodes = {EMBED: DirectionNodes(EMBED, rows)}
    found = oversee(heads, nodes, biased, LabelJudge(), [True, False], n_judged=len(words))
    assert found.auroc == 1.0
    assert found.scores[0].value > 0.95
    assert found.scores[1].value < 0.05
    few = oversee(heads, nodes, biased, LabelJudge(), [True, False], n_judged=8)
    assert few.n_judged <= 8
    assert few.auroc == 1.0  # the nodes with the largest effects are those that are judged


def test_word_heads_read_the_words_of_their_property_and_answer_alike(lm, biased):
    made = word_heads(lm, biased, n=3, ridge=1e-6, seed=2)
    assert made.intended == [True, False] * 3
    assert min(made.by_profession[::2]) > 0.95
    assert max(made.by_profession[1::2]) < 0.05
    x = pooled_activations(lm, EMBED, biased.texts)
    for head in made.heads:
        assert torch.equal((head.of_pooled(x) > 0).long(), biased.target_labels)
    weights = torch.stack([head.weight for head in made.heads[::2]])
    cosines = torch.nn.functional.cosine_similarity(weights[:, None], weights[None], dim=2)
    assert float(cosines[0, 1:].max()) < 0.9


@pytest.mark.slow
def test_heads_that_differ_within_each_sort_leave_little_to_shuffled_verdicts(lm, biased):
    """Word by word the verdicts are right; where all heads of a sort are one, a third of their shuffles do as well."""
    made, alike = (word_heads(lm, biased, n=12, spread=spread, ridge=1e-6, seed=2) for spread in (1.0, 0.0))
    words = sorted({w for t in biased.texts for w in t.split()})
    rows = lm.model.get_input_embeddings().weight.detach()[[int(lm.tokenize(w).ids[0, 1]) for w in words]]
    nodes = {EMBED: DirectionNodes(EMBED, rows)}
    found = oversee(made.heads, nodes, biased, LabelJudge(), made.intended, n_judged=len(words))
    equal = oversee(alike.heads, nodes, biased, LabelJudge(), alike.intended, n_judged=len(words))
    assert (found.auroc, equal.auroc) == (1.0, 1.0)
    assert found.p_value < 0.15
    assert equal.p_value > 0.3
    keeps = oversee(made.heads, nodes, biased, KeepsAll(), made.intended, n_judged=len(words))
    assert (keeps.auroc, keeps.p_value) == (0.5, 1.0)


class KeepsAll:
    name = "keeps all"

    def __call__(self, evidence, task, target_classes):
        return judged(evidence, "keep", 1.0, "always")


def test_a_judge_who_says_the_same_of_every_node_tells_nothing_apart(lm, biased):
    """The negative control."""
    heads = [heads_of(lm, biased, profession_words()), heads_of(lm, biased, gendered_words(biased))]

    nodes = {EMBED: NeuronNodes(EMBED, lm.width(EMBED))}
    found = oversee(heads, nodes, biased, KeepsAll(), [True, False], n_judged=8)
    assert (found.auroc, found.p_value) == (0.5, 1.0)


def test_heads_that_answer_differently_are_refused(lm, biased):
    head = heads_of(lm, biased, profession_words())
    other = Classifier(lm, EMBED, -head.weight, 0.0)
    with pytest.raises(ValueError, match="do not answer alike on 40 of 40"):
        oversee([head, other], {EMBED: NeuronNodes(EMBED, lm.width(EMBED))}, biased, LabelJudge(), [True, False])
