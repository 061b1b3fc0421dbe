"""Questions asked within one language: which month comes next, in German?

A dictionary about as wide as the vocabulary gives words latents of their own, and a word belongs to one language. Asked
across languages, "a month comes next" then has no latent of its own; asked within one it may well have. Both are asked.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sparsight.models.organism import FEATURES, Document

WITHIN_LANGUAGES = ("is_number", "is_weekday", "is_month", "weekday_answer", "month_answer")


@dataclass(frozen=True)
class AskedText:
    """A document of the organism, with labels for the questions within its language as well."""

    id: int
    text: str
    labels: dict[str, list[int]]


def within_languages(documents: Iterable[Document]) -> Iterator[AskedText]:
    """Add, for each feature of `WITHIN_LANGUAGES` and each language, its labels in documents of that language.

    In other documents the added feature is not defined (-1), so the question is put to one language at a time.
    """
    languages = FEATURES["language"].classes
    for document in documents:
        spoken = languages[document.labels["language"][0]]
        labels = dict(document.labels)
        for feature in WITHIN_LANGUAGES:
            for language in languages:
                values = document.labels[feature]
                labels[_name(feature, language)] = values if language == spoken else [-1] * len(values)
        yield AskedText(document.id, document.text, labels)


def class_names() -> dict[str, tuple[str, ...]]:
    """Names of the classes of every label of `within_languages`."""
    names = {name: feature.classes for name, feature in FEATURES.items()}
    for feature in WITHIN_LANGUAGES:
        for language in FEATURES["language"].classes:
            names[_name(feature, language)] = FEATURES[feature].classes
    return names


def asked_of(name: str) -> str:
    """The feature that a label asks about: "month_answer in german" asks, within a language, about month_answer."""
    feature, _, language = name.rpartition(" in ")
    return feature if language in FEATURES["language"].classes else name


def _name(feature: str, language: str) -> str:
    return f"{feature} in {language}"
