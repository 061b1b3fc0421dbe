"""Ingredients of every benchmark out of labelled stores and the organism's texts."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.examples import Examples, Labels, draw_tokens, labels_of, pool_documents
from sparsight.evaluation.benchmarks.interchange import Prompts
from sparsight.evaluation.benchmarks.sparse_probing import Task
from sparsight.evaluation.benchmarks.unlearning import Exam
from sparsight.evaluation.reading import StoredActivations
from sparsight.models import Site, Tokens
from sparsight.models.organism import FEATURES, Document, corpus, heldout_corpus
from sparsight.models.organism.lexicon import LANGUAGES

Encode = Callable[[Tensor], SparseCode]

PROBED = (
    "language",
    "domain",
    "sentiment",
    "harmful",
    "gender",
    "depth",
    "inside_quotes",
    "is_number",
    "is_weekday",
    "is_month",
    "is_name",
    "is_pronoun",
)
PARENTS = ("is_number", "is_weekday", "is_month", "is_name", "is_bit", "punctuation")
LEAST = 8  # examples of a class on each side
WANTED, REMOVED = "profession", "gender"
TARGETED = "profession"
ANSWERS = {"weekday_answer": "weekdays", "month_answer": "months", "number_answer": "numbers"}
FORGOTTEN, KEPT = "weekday_answer", ("month_answer", "number_answer")


def tasks(
    store: StoredActivations, site: Site, encode: Encode, features: Sequence[str], per_class: int, seed: int
) -> tuple[list[Task], list[str]]:
    """Each class of each labelled feature against the others, as many examples of both; and what had too few.

    A feature of the classes 0 and 1 is one task, not two.
    """
    found, left_out = [], []
    held = [feature for feature in features if feature in store.label_names]
    sides = {name: (store.split(name), labels_of(store.split(name), held)) for name in ("train", "heldout")}
    for feature in features:
        if feature not in store.label_names:
            left_out.append(f"{feature}: the store has no such label")
            continue
        names = FEATURES[feature].classes if feature in FEATURES else None
        n = _classes(store, feature)
        for value in range(n) if n > 2 else (1,):
            label = f"{feature} = {value if names is None else names[value]}"
            try:
                found.append(task(sides, site, encode, feature, value, label, per_class, seed))
            except UndefinedMetric as error:
                left_out.append(f"{label}: {error}")
    return found, left_out


def task(
    sides: Mapping[str, tuple[StoredActivations, Labels]],
    site: Site,
    encode: Encode,
    feature: str,
    value: int,
    label: str,
    per_class: int,
    seed: int = 0,
) -> Task:
    """One class of a labelled feature against its other classes: training documents, and half as many held-out ones.

    Raises:
        UndefinedMetric: a class has fewer than 8 examples on one side.
    """

    column = sides["train"][1].features.index(feature)

    def group(y: Int64[Tensor, "n f"]) -> Int64[Tensor, " n"]:
        return torch.where(y[:, column] < 0, -1, (y[:, column] == value).long())

    train = draw_tokens(sides["train"][0], site, encode, sides["train"][1], group, per_class, seed)
    test = draw_tokens(sides["heldout"][0], site, encode, sides["heldout"][1], group, max(1, per_class // 2), seed)
    y, test_y = (train.y[:, column] == value).long(), (test.y[:, column] == value).long()
    few = min(int(part.sum()) for part in (y, 1 - y, test_y, 1 - test_y))
    if few < LEAST:
        raise UndefinedMetric(f"{few} examples of one class on one side, at least {LEAST} are needed")
    return Task(label, train, test, y, test_y)


def _classes(store: StoredActivations, feature: str) -> int:
    if feature in FEATURES:
        return len(FEATURES[feature].classes)
    return 1 + max(int(store.labels(block)[feature].max()) for block in _blocks(len(store)))


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + 65_536, n)) for start in range(0, n, 65_536)]


def two_concepts(
    store: StoredActivations, site: Site, encode: Encode, n_latents: int, wanted: str, removed: str
) -> tuple[Examples, Examples]:
    """Documents labelled with two concepts, each cut into two classes: the lower and the upper half of its values.

    For the organism that is the profession, of the kinds that its texts pair with men and with women, and the gender.
    """
    sides = []
    for name in ("train", "heldout"):
        side = pool_documents(store.split(name), site, encode, [wanted, removed], n_latents)
        halves = torch.tensor([_classes(store, feature) / 2 for feature in (wanted, removed)])
        cut = Examples(side.x, side.z, (side.y >= halves).long(), side.documents, side.tokens)
        sides.append(cut)
    return sides[0], sides[1]


def prompts(model: Any, n_documents: int, feature: str, seed: int) -> tuple[Prompts, Int64[Tensor, " k"]]:
    """Prompts that end before an answer in one of three languages, and those of them that a mask may be learnt from.

    Values whose words are the same in two languages are left out: their answers would tell no language.
    """
    table = _answer_table(model, ANSWERS[feature])
    flat = torch.tensor(table)
    counts = {int(token): int((flat == token).sum()) for token in torch.unique(flat)}
    usable = [v for v in range(len(table)) if all(counts[token] == 1 for token in table[v])]
    place = {value: i for i, value in enumerate(usable)}
    domain = {"weekdays": "days", "months": "months", "numbers": "numbers"}[ANSWERS[feature]]
    texts: list[Document] = []
    sides: list[int] = []
    for side, drawn in enumerate((corpus, heldout_corpus)):
        n = n_documents if side == 0 else n_documents // 2
        texts += list(islice(drawn(seed + 101, n, domains={domain: 1.0}), n))
        sides += [side] * n
    tokens = model.tokenize([document.text for document in texts], context=model.max_context)
    found: list[tuple[int, int, int, int]] = []
    for i, document in enumerate(texts):
        language = document.labels["language"][0]
        # One prompt a document, the first of it: short, and prompts of one document share their words.
        places = [
            p
            for p, value in enumerate(document.labels[feature])
            if value in place and p + 2 < tokens.ids.shape[1] and document.labels[ANSWERED[feature]][p] < 0
        ]
        if places:
            found.append((i, places[0] + 1, place[document.labels[feature][places[0]]], language))
    if not found:
        raise UndefinedMetric(f"no document asks for {feature}")
    rows = torch.tensor(found)
    last = rows[:, 1]
    keep = torch.arange(tokens.ids.shape[1])[None] <= last[:, None]
    at = rows[:, 0]
    cut = Tokens(torch.where(keep, tokens.ids[at], 0), tokens.mask[at] & keep, tokens.special[at] & keep)
    answers = torch.tensor([table[value] for value in usable])
    train = (torch.tensor(sides)[at] == 0).nonzero()[:, 0]
    return Prompts(cut, last, rows[:, 2:], answers, at, (feature, "language")), train


ANSWERED = {"weekday_answer": "weekday", "month_answer": "month", "number_answer": "number"}


def _answer_table(model: Any, words: str) -> list[list[int]]:
    """Token of each value in each language."""
    languages = [getattr(language, words) for language in LANGUAGES.values()]
    return [
        [model.tokenizer.convert_tokens_to_ids(language[v]) for language in languages] for v in range(len(languages[0]))
    ]


def exams(model: Any, features: Sequence[str], n_documents: int, seed: int) -> tuple[Exam, Exam]:
    """Questions of some skills, out of training texts and out of held-out ones."""
    domains = {"weekday_answer": "days", "month_answer": "months", "number_answer": "numbers"}
    found = []
    for drawn in (corpus, heldout_corpus):
        mixture: Mapping[str, float] = {domains[feature]: 1.0 for feature in features}
        texts = list(islice(drawn(seed + 202, n_documents, domains=dict(mixture)), n_documents))
        tokens = model.tokenize([document.text for document in texts], context=model.max_context)
        found.append(Exam(tokens, _asked(texts, tokens, features), torch.arange(len(texts))))
    return found[0], found[1]


def _asked(texts: Sequence[Document], tokens: Tokens, features: Sequence[str]) -> Bool[Tensor, "n t"]:
    """Where the next token is an answer. Word `p` is token `p + 1`, after the BOS."""
    asked = torch.zeros(tokens.ids.shape[0], tokens.ids.shape[1] - 1, dtype=torch.bool)
    for i, document in enumerate(texts):
        for feature in features:
            for p, value in enumerate(document.labels[feature]):
                if value >= 0 and p + 1 < asked.shape[1]:
                    asked[i, p + 1] = True
    return asked & tokens.mask[:, 1:].cpu()
