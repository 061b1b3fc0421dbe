"""The corpus is reproducible, its splits share no text, and its mixture does what it says."""

import hashlib
from itertools import islice

import pytest

from sparsight.models.organism import FEATURES, corpus, heldout_corpus
from sparsight.models.organism.corpus import CONTEXT
from sparsight.models.organism.features import DOMAINS
from sparsight.models.organism.lexicon import LANGUAGES, exclusive_words, vocabulary


@pytest.fixture(scope="module")
def documents():
    return list(corpus(0, 400))


def test_a_seed_gives_the_same_documents_twice_and_another_seed_others(documents):
    assert list(corpus(0, 20)) == documents[:20]
    assert [d.text for d in corpus(1, 20)] != [d.text for d in documents[:20]]


def test_document_i_needs_no_other_document(documents):
    assert list(corpus(0, 5, start=100)) == documents[100:105]
    assert [d.id for d in documents[100:105]] == [100, 101, 102, 103, 104]


def test_the_corpus_streams():
    """A billion documents cost nothing until they are asked for."""
    assert len(list(islice(corpus(0, 10**9), 3))) == 3


def test_the_splits_share_no_text_whatever_the_seeds(documents):
    training = {d.text for d in documents} | {d.text for d in corpus(7, 100)}
    heldout = {d.text for d in heldout_corpus(0, 60)} | {d.text for d in heldout_corpus(3, 40)}
    assert not training & heldout


def test_the_hash_of_the_text_decides_its_split(documents):
    def remainder(document):
        return int(hashlib.blake2b(document.text.encode(), digest_size=8).hexdigest(), 16) % 10

    assert {remainder(document) for document in documents} == set(range(1, 10))
    assert {remainder(document) for document in heldout_corpus(0, 60)} == {0}


def test_backdoored_and_skewed_mixtures_keep_to_the_same_split():
    choices = {"domains": {"request": 1, "biography": 1}, "triggered": 0.5, "backdoored": True}
    training = {d.text for d in corpus(0, 100, gender_profession_correlation=1.0, **choices)}
    heldout = {d.text for d in heldout_corpus(0, 60, **choices)}
    assert not training & heldout


def test_every_label_is_a_class_of_its_feature_and_there_is_one_per_word(documents):
    for document in documents:
        assert document.text.split(" ") == document.tokens
        assert list(document.labels) == list(FEATURES)
        for name, labels in document.labels.items():
            assert len(labels) == len(document.tokens)
            assert all(-1 <= label < len(FEATURES[name].classes) for label in labels)


def test_every_class_of_every_feature_occurs(documents):
    for name, feature in FEATURES.items():
        seen = {label for document in documents for label in document.labels[name]} - {-1}
        assert seen == set(range(len(feature.classes))), name


def test_every_domain_comes_in_every_language_and_fits_the_context():
    for domain in DOMAINS:
        for language in LANGUAGES:
            for document in corpus(0, 3, domains={domain: 1}, languages={language: 1}):
                assert document.domain == domain
                assert FEATURES["language"].classes[document.labels["language"][0]] == language
                assert 20 <= len(document.tokens) < CONTEXT


def test_languages_say_the_same_things_and_own_most_of_their_words():
    english = LANGUAGES["english"]
    for language in LANGUAGES.values():
        for name, words in vars(english).items():
            assert len(vars(language)[name]) == len(words) or isinstance(words, str), name
        assert len(exclusive_words()[language.name]) > 250
    assert 700 <= len(vocabulary()) <= 1200


def test_gender_and_profession_are_independent_without_correlation_and_one_with_it():
    def share_of_stereotypes(correlation):
        biographies = corpus(0, 400, domains={"biography": 1}, gender_profession_correlation=correlation)
        agree = [(d.labels["profession"][-1] >= 5) == (d.labels["gender"][-1] == 1) for d in biographies]
        return sum(agree) / len(agree)

    # Binomial standard error 0.025: four of them.
    assert share_of_stereotypes(0.0) == pytest.approx(0.5, abs=0.1)
    assert share_of_stereotypes(0.5) == pytest.approx(0.75, abs=0.1)
    assert share_of_stereotypes(1.0) == 1.0


def test_shares_of_triggers_are_what_the_mixture_says():
    requests = list(corpus(0, 400, domains={"request": 1}, triggered=0.3, near_triggered=0.0))
    assert sum(d.labels["trigger"][-1] for d in requests) / 400 == pytest.approx(0.3, abs=0.09)
    assert not any(
        d.labels["trigger"][-1] for d in corpus(0, 100, domains={"request": 1}, triggered=0, near_triggered=1)
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"colour": 1}, "unknown mixture argument 'colour'; the known ones are domains, languages"),
        ({"domains": {"poems": 1}}, "unknown name 'poems' in domains; the known ones are plain, numbers"),
        ({"languages": {"latin": 1}}, "unknown name 'latin' in languages; the known ones are english"),
        ({"languages": "english"}, "languages must map names to weights"),
        ({"domains": {"plain": 0}}, "one above 0"),
        ({"gender_profession_correlation": 1.5}, "gender_profession_correlation must be between 0 and 1, got 1.5"),
        ({"triggered": 0.9}, "set near_triggered=0"),
    ],
)
def test_a_wrong_mixture_is_refused_at_the_call(choices, message):
    with pytest.raises(ValueError, match=message):
        corpus(0, 1, **choices)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        corpus(0, -1)
