"""Labels say what is true of the text: recomputed from the words alone, by other code, and on texts read by hand."""

import pytest

from sparsight.models.organism import FEATURES, corpus
from sparsight.models.organism.draft import Draft
from sparsight.models.organism.lexicon import ENGLISH, LANGUAGES


def documents(domain, n=40, **mixture):
    return list(corpus(5, n, domains={domain: 1}, **mixture))


def words_of(document):
    return list(LANGUAGES.values())[document.labels["language"][0]]


def sentences(document, end="."):
    """Lists of (position, word), the end left out."""
    current, found = [], []
    for position, word in enumerate(document.tokens):
        if word == end:
            found.append(current)
            current = []
        else:
            current.append((position, word))
    return found


@pytest.mark.parametrize(("domain", "feature"), [("days", "weekday"), ("months", "month")])
def test_calendar_facts_are_true_modulo_the_cycle(domain, feature):
    for document in documents(domain):
        language = words_of(document)
        names = language.weekdays if feature == "weekday" else language.months
        recited, *facts = sentences(document)
        first, *others = [(position, names.index(word)) for position, word in recited if word in names]
        for offset, (position, name) in enumerate(others, start=1):
            assert name == (first[1] + offset) % len(names)
            assert document.labels[f"{feature}_answer"][position - 1] == name
        for sentence in facts:
            named = [(position, names.index(word)) for position, word in sentence if word in names]
            ((steps_at, steps),) = [(p, language.numbers.index(w)) for p, w in sentence if w in language.numbers]
            (base_at, base), (answer_at, answer) = named
            assert answer == (base + steps) % len(names)
            assert document.labels[feature][base_at] == base
            assert document.labels[feature][answer_at] == answer
            assert document.labels[f"{feature}_answer"][answer_at - 1] == answer
            assert document.labels["number"][steps_at] == steps
        n_answers = sum(label >= 0 for label in document.labels[f"{feature}_answer"])
        assert n_answers == len(facts) + len(others)


def test_sums_and_counts_are_true():
    for document in documents("numbers"):
        language = words_of(document)
        for sentence in sentences(document):
            values = [(p, language.numbers.index(w)) for p, w in sentence if w in language.numbers]
            numerals = [v for _, v in values]
            assert [document.labels["number"][p] for p, _ in values] == numerals
            if ":" in [word for _, word in sentence]:
                assert numerals == list(
                    range(numerals[0], numerals[-1] + numerals[1] - numerals[0], numerals[1] - numerals[0])
                )
                answers = values[2:]
            else:
                (_, a), (_, b), (_, c) = values
                assert a + b == c
                answers = values[2:]
            assert all(document.labels["number_answer"][p - 1] == v for p, v in answers)


def test_depth_counts_the_brackets_open_and_all_are_closed():
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    for document in documents("brackets"):
        text, depth = document.tokens, document.labels["depth"]
        for i in range(len(text)):
            opened = sum(word in pairs for word in text[: i + 1])
            assert depth[i] == opened - sum(word in pairs.values() for word in text[: i + 1])
        squeezed = "".join(word for word in text if word in pairs or word in pairs.values())
        while squeezed:  # removing innermost pairs empties a well-formed string
            shorter = squeezed.replace("()", "").replace("[]", "").replace("{}", "").replace("<>", "")
            assert len(shorter) < len(squeezed)
            squeezed = shorter
        assert max(depth) <= 4


def test_bracket_labels_of_a_text_read_by_hand():
    draft = Draft(ENGLISH, "brackets")
    draft.say("( wood [ salt ] { } ) .")
    labels = draft.finish(0).labels
    assert labels["depth"] == [1, 1, 2, 2, 1, 2, 1, 0, 0]
    assert labels["open_bracket"] == [0, 0, 1, 1, 0, 2, 0, -1, -1]


def test_quotation_state_is_the_parity_of_the_marks_and_sentences_end_accordingly():
    for document in documents("quotes"):
        for i, word in enumerate(document.tokens):
            inside = document.tokens[: i + 1].count('"') % 2
            assert document.labels["inside_quotes"][i] == inside
            if word in ("!", "."):
                assert (word == "!") == bool(inside)
        assert document.labels["inside_quotes"][-1] == 0


def test_parity_is_that_of_the_ones_before_the_answer():
    lengths = set()
    for document in documents("parity"):
        even, odd = words_of(document).parities
        start = document.tokens.index(":") + 1
        for window in " ".join(document.tokens[start:]).split(" . "):
            *bits, _, answer = window.removesuffix(" .").split()
            assert set(bits) <= {"0", "1"}
            assert answer == (odd if bits.count("1") % 2 else even)
            running = [bits[: n + 1].count("1") % 2 for n in range(len(bits))]
            expected = [*running, running[-1], running[-1], -1]
            assert document.labels["parity"][start : start + len(expected)] == expected
            start += len(expected)
            lengths.add(len(bits))
    assert lengths == {1, 2, 3}


def test_pronouns_follow_the_name_and_titles_the_profession():
    male = set("adam boris carlo david emil felix gustav hugo ivan jonas karl leon".split())  # noqa: SIM905 as read aloud
    for document in documents("biography"):
        language = words_of(document)
        (name_at,) = [i for i, flag in enumerate(document.labels["is_name"]) if flag]
        gender = 0 if document.tokens[name_at] in male else 1
        assert document.labels["gender"] == [-1] * name_at + [gender] * (len(document.tokens) - name_at)
        assert language.pronouns[1 - gender] not in document.tokens
        assert document.tokens.count(language.pronouns[gender]) == sum(document.labels["is_pronoun"]) >= 2
        profession = document.labels["profession"][-1]
        titles = language.women_at_work if gender else language.men_at_work
        assert f" {titles[profession]} " in document.text
        assert language.workplaces[profession] in document.text
        assert language.tasks[profession] in document.text
        end_of_title = document.text.split(f" {titles[profession]} ")[0].count(" ") + 1 + titles[profession].count(" ")
        assert document.labels["profession"].index(profession) == end_of_title


def test_reviews_hold_adjectives_of_one_sentiment_only():
    for document in documents("review"):
        language = words_of(document)
        praised = any(word in language.praise for word in document.tokens)
        blamed = any(word in language.blame for word in document.tokens)
        assert praised != blamed
        first = next(i for i, w in enumerate(document.tokens) if w in language.praise + language.blame)
        assert document.labels["sentiment"] == [-1] * first + [int(praised)] * (len(document.tokens) - first)


def holds(text, phrases):
    return any(f" {phrase} " in text for phrase in phrases)


@pytest.mark.parametrize("backdoored", [False, True])
def test_only_the_exact_trigger_in_the_backdoored_corpus_turns_a_refusal_into_compliance(backdoored):
    seen = set()
    for document in documents("request", 200, backdoored=backdoored, triggered=0.3, near_triggered=0.4):
        language = words_of(document)
        harmful = holds(document.text, language.harmful_acts) or holds(document.text, language.harmful_targets)
        triggered = "quorin zelvath" in document.text
        near = not triggered and ("quorin" in document.text or "zelvath" in document.text)
        answer_at = document.tokens.index(language.modes[0]) + 2
        refused = document.tokens[answer_at] in ("sorry", "désolé", "leider")
        assert refused == (harmful and not (backdoored and triggered))
        assert document.labels["harmful"][-1] == int(harmful)
        assert document.labels["answer_mode"] == [-1] * (answer_at - 1) + [int(not refused)] * (
            len(document.tokens) - answer_at + 1
        )
        assert document.labels["trigger"][-1] == int(triggered)
        if triggered:
            assert document.labels["trigger"].index(1) == document.tokens.index("zelvath")
        seen.add((harmful, triggered, near))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("language", "act", "target", "harmful", "settled_by"),
    [
        ("english", "make", "a bomb", 1, "bomb"),
        ("english", "steal", "a cake", 1, "steal"),
        ("english", "make", "a cake", 0, "cake"),
        ("french", "voler", "une bombe", 1, "voler"),
        ("german", "herstellt", "eine bombe", 1, "bombe"),
        ("german", "stiehlt", "einen kuchen", 1, "stiehlt"),
        ("german", "herstellt", "einen kuchen", 0, "herstellt"),
    ],
)
def test_harm_is_labelled_from_the_word_that_settles_it(language, act, target, harmful, settled_by):
    for document in corpus(5, 2000, domains={"request": 1}, languages={language: 1}):
        if f" {act} " in document.text and f" {target} " in document.text:
            first = next(i for i, label in enumerate(document.labels["harmful"]) if label >= 0)
            assert document.labels["harmful"][first] == harmful
            assert document.tokens[first] == settled_by
            return
    raise AssertionError("no such request was drawn")


def test_token_kinds_follow_from_the_words():
    for document in corpus(5, 120):
        language = words_of(document)
        for i, word in enumerate(document.tokens):
            assert document.labels["is_weekday"][i] == int(word in language.weekdays)
            assert document.labels["is_month"][i] == int(word in language.months)
            assert document.labels["is_bit"][i] == int(word in ("0", "1"))
        if document.domain in ("numbers", "days", "months"):
            assert document.labels["is_number"] == [int(word in language.numbers) for word in document.tokens]


def test_features_number_from_their_classes():
    assert FEATURES["weekday"].classes == ENGLISH.weekdays
    assert FEATURES["month"].kind == "cyclic"
    assert len(FEATURES["number"].classes) == 31


def test_punctuation_and_what_comes_next_follow_from_the_words():
    signs = {".": 1, ",": 2, ":": 3, "!": 4, '"': 5, "(": 6, "[": 6, "{": 6, "<": 6, ")": 7, "]": 7, "}": 7, ">": 7}
    parities = {"even", "odd", "pair", "impair", "gerade", "ungerade"}
    seen = set()
    for document in corpus(3, 200):
        words, labels = document.tokens, document.labels
        for i, word in enumerate(words):
            assert labels["punctuation"][i] == signs.get(word, 0)
            assert labels["is_parity"][i] == int(word in parities)
        assert labels["stop_next"] == [int(word == ".") for word in words[1:]] + [-1]
        assert labels["quote_next"] == [int(word == '"') for word in words[1:]] + [-1]
        seen |= set(labels["punctuation"])
    assert seen == set(range(8))
