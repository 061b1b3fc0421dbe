"""The organism's texts: document `i` of seed `s` is the same whoever asks, and needs no other document."""

import hashlib
from collections.abc import Iterator, Mapping
from random import Random

from sparsight.models.organism.domains import WRITERS
from sparsight.models.organism.draft import Document, Draft
from sparsight.models.organism.lexicon import LANGUAGES
from sparsight.models.organism.mixture import Mixture

HELD_OUT_SHARE = 10
"""One text in this many belongs to the held-out split."""

CONTEXT = 128
"""Tokens that a model of this corpus reads at once; documents with their `<bos>` are shorter."""

_MOST_ATTEMPTS = 10_000


def corpus(seed: int, n_documents: int, *, start: int = 0, **mixture: object) -> Iterator[Document]:
    """Stream training documents `start` to `start + n_documents - 1` of a seed.

    Each document is drawn with a generator of its own, seeded by a hash of `(seed, index)`; texts that belong to the
    held-out split are drawn again.

    Args:
        seed: Names the corpus.
        n_documents: How many documents to yield.
        start: Index of the first one.
        mixture: Fields of `Mixture`: domains, languages, correlation, triggers.
    Returns:
        Documents, written as they are asked for.
    Raises:
        ValueError: a count is negative, or a mixture argument is unknown or out of range.
    """
    return _stream("train", seed, n_documents, start, mixture)


def heldout_corpus(seed: int, n_documents: int, *, start: int = 0, **mixture: object) -> Iterator[Document]:
    """Stream held-out documents: like `corpus`, and no text of one is a text of the other, whatever the seeds.

    A text belongs to the held-out split if its hash says so (one in ten does), so the splits are
    disjoint by definition.
    """
    return _stream("heldout", seed, n_documents, start, mixture)


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the held-out split: `hash(text) mod 10 = 0`."""
    return _hash(text) % HELD_OUT_SHARE == 0


def _stream(split: str, seed: int, n_documents: int, start: int, choices: dict[str, object]) -> Iterator[Document]:
    if n_documents < 0 or start < 0:
        raise ValueError(f"n_documents and start must be at least 0, got {n_documents} and {start}")
    mixture = Mixture.of(**choices)  # here, not in the generator below: a wrong argument is refused at the call
    return (_document(split, seed, index, mixture) for index in range(start, start + n_documents))


def _document(split: str, seed: int, index: int, mixture: Mixture) -> Document:
    rng = Random(_hash(f"{split} {seed} {index}"))
    for _ in range(_MOST_ATTEMPTS):
        language = _choose(rng, mixture.languages)
        domain = _choose(rng, mixture.domains)
        draft = Draft(LANGUAGES[language], domain)
        WRITERS[domain](draft, rng, mixture)
        if is_held_out(" ".join(draft.tokens)) == (split == "heldout"):
            return draft.finish(index)
    raise ValueError(f"no text of the {split} split in {_MOST_ATTEMPTS} attempts; widen the mixture")


def _choose(rng: Random, weights: Mapping[str, float | int]) -> str:
    # In the order of the names, so that equal mixtures give equal corpora however they were written.
    names, shares = zip(*sorted(weights.items()), strict=True)
    return str(rng.choices(names, shares)[0])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
