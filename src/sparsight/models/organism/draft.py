"""Writing a document word by word, with its labels."""

from dataclasses import dataclass, field

from sparsight.models.organism.features import DOMAINS, FEATURES, PUNCTUATION
from sparsight.models.organism.lexicon import (
    BRACKETS,
    FEMALE_NAMES,
    LANGUAGES,
    MALE_NAMES,
    QUOTE,
    TRIGGER,
    Language,
    is_slot,
)

_OPENS = {opening: kind for kind, (opening, _) in enumerate(BRACKETS)}
_CLOSES = {closing: kind for kind, (_, closing) in enumerate(BRACKETS)}
_SIGNS = {sign: kind for kind, signs in enumerate(PUNCTUATION.values(), start=1) for sign in signs}
_NAMES = frozenset(MALE_NAMES + FEMALE_NAMES)


@dataclass(frozen=True)
class Document:
    """A text and what is true of each of its words.

    Attributes:
        id: Number of the document in its corpus.
        text: Words separated by single spaces, lower case.
        tokens: The words. Word `i` is token `i + 1` once the tokenizer has put `<bos>` before them.
        labels: For every feature, one class per word; -1 where the feature is not defined.
        domain: Kind of document.
    """

    id: int
    text: str
    tokens: list[str]
    labels: dict[str, list[int]]
    domain: str


@dataclass(frozen=True)
class Said:
    """What fills a slot: words, and labels on them, on the word before them, or from their last word on."""

    text: str
    here: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    onward: dict[str, int] = field(default_factory=dict)


class Draft:
    """A document being written. `state` holds the labels that every following word carries."""

    def __init__(self, language: Language, domain: str) -> None:
        self.language = language
        self.domain = domain
        self.tokens: list[str] = []
        self.state: dict[str, int] = {}
        self._marks: list[dict[str, int]] = []

    def say(self, template: str, **slots: str | Said) -> None:
        """Append the template's words, with its slots filled."""
        for word in template.split():
            if is_slot(word):
                filling = slots[word[1:-1]]
                self._put(filling if isinstance(filling, Said) else Said(filling))
            else:
                self._put(Said(word))

    def mark_last(self, **labels: int) -> None:
        """Label the word written last."""
        self._marks[-1].update(labels)

    def _put(self, said: Said) -> None:
        if said.before:
            self._marks[-1].update(said.before)
        for word in said.text.split():
            self.tokens.append(word)
            self._marks.append({**self.state, **said.here})
        if said.onward:
            self.state.update(said.onward)
            self._marks[-1].update(said.onward)

    def finish(self, identity: int) -> Document:
        """The document, with the labels that follow from its words alone added."""
        labels = {name: [marks.get(name, -1) for marks in self._marks] for name in FEATURES}
        n = len(self.tokens)
        labels["language"] = [list(LANGUAGES).index(self.language.name)] * n
        labels["domain"] = [DOMAINS.index(self.domain)] * n
        labels["depth"], labels["open_bracket"] = _bracket_state(self.tokens)
        labels["inside_quotes"] = _quote_state(self.tokens)
        labels["trigger"] = _trigger_state(self.tokens)
        for name, source in (("is_number", "number"), ("is_weekday", "weekday"), ("is_month", "month")):
            labels[name] = [int(value >= 0) for value in labels[source]]
        labels["is_bit"] = [int(word in ("0", "1")) for word in self.tokens]
        labels["is_name"] = [int(word in _NAMES) for word in self.tokens]
        pronouns = self.language.pronouns if self.domain == "biography" else ()
        labels["is_pronoun"] = [int(word in pronouns) for word in self.tokens]
        labels["is_parity"] = [int(word in self.language.parities) for word in self.tokens]
        labels["punctuation"] = [_SIGNS.get(word, 0) for word in self.tokens]
        for name, sign in (("stop_next", "."), ("quote_next", QUOTE)):
            labels[name] = [int(word == sign) for word in self.tokens[1:]] + [-1]
        return Document(identity, " ".join(self.tokens), self.tokens, labels, self.domain)


def _bracket_state(tokens: list[str]) -> tuple[list[int], list[int]]:
    """Depth after each word, and the kind of the innermost open bracket (-1 at depth 0)."""
    stack: list[int] = []
    depths, kinds = [], []
    for word in tokens:
        if word in _OPENS:
            stack.append(_OPENS[word])
        elif word in _CLOSES:
            stack.pop()
        depths.append(len(stack))
        kinds.append(stack[-1] if stack else -1)
    return depths, kinds


def _quote_state(tokens: list[str]) -> list[int]:
    """1 after an odd number of quotation marks, the word itself counted."""
    inside, states = 0, []
    for word in tokens:
        inside ^= word == QUOTE
        states.append(int(inside))
    return states


def _trigger_state(tokens: list[str]) -> list[int]:
    """1 from the second word of the first complete trigger on."""
    came, states = 0, []
    for previous, word in zip(["", *tokens], tokens, strict=False):
        came |= (previous, word) == TRIGGER
        states.append(int(came))
    return states
