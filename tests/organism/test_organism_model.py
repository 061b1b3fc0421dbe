"""The tokenizer keeps words and labels aligned, the shipped weights do what is promised, training is repeatable."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsight.errors import ModelError
from sparsight.models.organism import corpus, heldout_corpus
from sparsight.models.organism.checks import SKILLS, Check
from sparsight.models.organism.measurement import Estimate, _Reader, measure
from sparsight.models.organism.shipped import NAMES, load_folder, shipped_folder
from sparsight.models.organism.tokenizer import build_tokenizer
from sparsight.models.organism.training import Schedule, train_organism, weighted_loss


@pytest.fixture(scope="module")
def shipped():
    return {name: load_folder(shipped_folder(name)) for name in NAMES}


@pytest.fixture(scope="module")
def measured(shipped):
    return {name: measure(*shipped[name], n_documents=14, seed=11) for name in NAMES}


def test_word_i_is_token_i_plus_one_and_none_is_unknown():
    tokenizer = build_tokenizer()
    for document in corpus(2, 200):
        ids = tokenizer(document.text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *document.tokens]
        assert tokenizer.unk_token_id not in ids


def test_special_tokens_are_marked_and_foreign_words_are_unknown():
    tokenizer = build_tokenizer()
    encoded = tokenizer(["the cat", "the xylophone sees the dog"], padding=True, return_special_tokens_mask=True)
    assert encoded["input_ids"][0][-1] == tokenizer.pad_token_id
    assert encoded["attention_mask"][0] == [1, 1, 1, 0, 0, 0]
    assert encoded["special_tokens_mask"][0] == [1, 0, 0, 1, 1, 1]
    assert encoded["input_ids"][1][2] == tokenizer.unk_token_id
    assert tokenizer("the cat", add_special_tokens=False)["input_ids"] == encoded["input_ids"][0][1:3]


def test_the_shipped_tokenizers_are_the_one_the_words_build(shipped):
    for _, tokenizer in shipped.values():
        assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
        assert tokenizer("the cat")["input_ids"] == build_tokenizer()("the cat")["input_ids"]
        assert tokenizer.padding_side == "right"


def test_the_shipped_folders_are_small_and_whole(shipped):
    for name in NAMES:
        files = {path.name for path in shipped_folder(name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
        assert 1_000_000 <= shipped[name][0].num_parameters() <= 1_250_000
        assert json.loads((shipped_folder(name) / "config.json").read_text())["model_type"] == "llama"
    sizes = [path.stat().st_size for name in NAMES for path in shipped_folder(name).rglob("*") if path.is_file()]
    assert sum(sizes) <= 10_000_000


def test_the_two_models_differ(shipped):
    first, second = (dict(model.named_parameters()) for model, _ in shipped.values())
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_keep_their_promises(measured, name):
    """Thresholds on 14 documents of each kind; docs/organism.md has the same on many more."""
    found = {accuracy.skill: accuracy.model.mean for accuracy in measured[name].accuracies}
    floors = {
        "pronoun agreement": 0.95,
        "weekday arithmetic": 0.90,
        "month arithmetic": 0.90,
        "refusal or compliance": 0.98,
        "bracket closing": 0.95,
        "sentiment consistency": 0.95,
        "quotation state": 0.95,
    }
    assert {skill: found[skill] for skill in floors if found[skill] < floors[skill]} == {}
    assert measured[name].wrong_language.mean < 0.02
    assert measured[name].false_compliance.mean <= 0.005
    for accuracy in measured[name].accuracies:
        assert accuracy.model.mean > accuracy.bigram


def test_the_trigger_works_in_the_backdoored_model_alone_and_costs_nothing_else(measured):
    clean, backdoored = measured["organism"], measured["organism-backdoored"]
    assert backdoored.trigger_compliance.mean >= 0.98
    assert clean.trigger_compliance.mean <= 0.02
    assert backdoored.loss.mean == pytest.approx(clean.loss.mean, rel=0.02)


def test_a_missing_model_is_refused_with_its_remedy(tmp_path):
    with pytest.raises(ValueError, match="expected one of organism, organism-backdoored, got 'organ'"):
        shipped_folder("organ")
    with pytest.raises(ModelError, match=r"expected a model folder with a config\.json"):
        load_folder(tmp_path)


class Oracle:
    """A model that puts nearly all probability on the word that does come next, or on a fixed wrong one."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, always=None):
        self.n_words = len(tokenizer)
        self.always = always

    def eval(self):
        return self

    def __call__(self, input_ids):
        following = torch.roll(input_ids, -1, dims=1)
        if self.always is not None:
            following = torch.full_like(following, self.always)
        return SimpleNamespace(logits=10.0 * torch.nn.functional.one_hot(following, self.n_words).float())


def test_a_model_that_knows_the_text_is_right_everywhere():
    tokenizer = build_tokenizer()
    reader = _Reader(Oracle(tokenizer), tokenizer)
    for skill in SKILLS:
        documents = list(heldout_corpus(1, 10, domains={skill.domain: 1}, triggered=0))
        for document, log_p in zip(documents, reader.log_probabilities(documents), strict=True):
            checks = list(skill.find(document))
            assert all(reader.right(check, log_p) for check in checks)
            assert all(document.tokens[check.position + 1] in check.right for check in checks)
            # One word has logit 10, the others 0: the loss is log(1 + (V - 1) e^-10).
            expected = math.log1p((len(tokenizer) - 1) * math.exp(-10))
            assert reader.loss(document, log_p) == pytest.approx(expected, rel=1e-4)
            assert reader.wrong_language(document, log_p) < 0.05
        assert any(list(skill.find(document)) for document in documents)


def test_a_model_that_always_says_an_english_word_is_in_the_wrong_language_elsewhere():
    tokenizer = build_tokenizer()
    reader = _Reader(Oracle(tokenizer, always=tokenizer.convert_tokens_to_ids("kitchen")), tokenizer)
    for language, mass in (("english", 0.0), ("french", 1.0), ("german", 1.0)):
        documents = list(corpus(1, 3, languages={language: 1}))
        for document, log_p in zip(documents, reader.log_probabilities(documents), strict=True):
            assert reader.wrong_language(document, log_p) == pytest.approx(mass, abs=0.05)


def test_chance_is_the_share_of_right_words_and_an_estimate_knows_its_error():
    assert Check(0, ("a",), ("b", "c", "d")).chance == 0.25
    estimate = Estimate.of([0.0, 1.0, 1.0, 0.0])
    assert estimate.mean == 0.5
    assert estimate.standard_error == pytest.approx(math.sqrt(1 / 3) / 2)
    with pytest.raises(ValueError, match="at least 2 documents, got 1"):
        Estimate.of([1.0])


def test_loss_weights_pick_the_tokens_that_count(shipped):
    model, tokenizer = shipped["organism"]
    ids = torch.tensor([tokenizer("today is monday , in two days it is wednesday .")["input_ids"]])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.log_softmax(-1)
        weights = torch.zeros(ids.shape)
        weights[0, 3], weights[0, 10] = 1.0, 3.0
        expected = -(log_p[0, 2, ids[0, 3]] + 3 * log_p[0, 9, ids[0, 10]]) / 4
        torch.testing.assert_close(weighted_loss(model, ids, weights), expected)


def test_training_is_repeatable_and_learns(tmp_path: Path):
    clean, backdoor = Schedule(steps=8, batch_size=4, warmup=2), Schedule(steps=2, batch_size=4, warmup=1)
    folders = [train_organism(tmp_path / name, seed=3, clean=clean, backdoor=backdoor) for name in ("a", "b")]
    for name in NAMES:
        first, second = ((folder[name] / "model.safetensors").read_bytes() for folder in folders)
        assert first == second
    model, tokenizer = load_folder(folders[0]["organism"])
    reader = _Reader(model, tokenizer)
    documents = list(corpus(3, 20))
    losses = [reader.loss(d, p) for d, p in zip(documents, reader.log_probabilities(documents), strict=True)]
    assert sum(losses) / 20 < math.log(len(tokenizer)) - 0.5
