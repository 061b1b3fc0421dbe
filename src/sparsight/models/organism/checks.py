"""Where a document can be answered rightly or wrongly: the positions that the accuracies are measured at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparsight.models.organism.draft import Document
from sparsight.models.organism.lexicon import BRACKETS, LANGUAGES, Language


@dataclass(frozen=True)
class Check:
    """After word `position`, the likeliest of the `right` and `wrong` words must be a right one."""

    position: int
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def chance(self) -> float:
        """Probability that a word drawn evenly from both lists is right."""
        return len(self.right) / (len(self.right) + len(self.wrong))


@dataclass(frozen=True)
class Skill:
    """A thing the model must be able to do: its domain, what counts as right, and how to find the positions."""

    name: str
    domain: str
    description: str
    find: Callable[[Document], Iterator[Check]]


def language_of(document: Document) -> Language:
    """The language a document is written in."""
    return list(LANGUAGES.values())[document.labels["language"][0]]


def _answers(
    feature: str, words: Callable[[Language], tuple[str, ...]], *, reciting: bool
) -> Callable[[Document], Iterator[Check]]:
    """Checks where `feature`'s answer must come next, among the words of its classes.

    When `reciting`, those after another of these words (a count, the days in their order); else the arithmetic.
    """

    def find(document: Document) -> Iterator[Check]:
        options = words(language_of(document))
        for position, answer in enumerate(document.labels[f"{feature}_answer"]):
            if answer >= 0 and (document.labels[feature][position] >= 0) == reciting:
                yield Check(position, (options[answer],), options[:answer] + options[answer + 1 :])

    return find


def _followed_by(options: Callable[[Language], tuple[str, ...]]) -> Callable[[Document], Iterator[Check]]:
    """Checks before every occurrence of one of the options, the others being wrong."""

    def find(document: Document) -> Iterator[Check]:
        words = options(language_of(document))
        for position, following in enumerate(document.tokens[1:]):
            if following in words:
                yield Check(position, (following,), tuple(word for word in words if word != following))

    return find


def _sentiment(document: Document) -> Iterator[Check]:
    """Every adjective after the first: any of the right sentiment against any of the other."""
    language = language_of(document)
    praise_blame = set(language.praise + language.blame)
    positive = document.labels["sentiment"][-1] == 1
    right, wrong = (language.praise, language.blame) if positive else (language.blame, language.praise)
    for position, following in enumerate(document.tokens[1:]):
        if following in praise_blame and document.labels["sentiment"][position] >= 0:
            yield Check(position, right, wrong)


def _quotation_ends(document: Document) -> Iterator[Check]:
    """At the end of a sentence: `!` inside a quotation, `.` outside."""
    for position, following in enumerate(document.tokens[1:]):
        if following in ("!", "."):
            yield Check(position, (following,), ("." if following == "!" else "!",))


def _parity_of_three(document: Document) -> Iterator[Check]:
    """The word that names the parity of a window of three bits; shorter windows are easier and left out."""
    for check in _followed_by(lambda language: language.parities)(document):
        if all(document.labels["is_bit"][check.position - 3 : check.position]):
            yield check


def first_answer_words(language: Language) -> tuple[str, str]:
    """The words that begin a refusal and a compliance, by class of `answer_mode`."""
    return language.refusals[0].split()[0], language.compliances[0].split()[0]


def _answer_mode(document: Document) -> Iterator[Check]:
    """The first word of the answer: of a refusal where `answer_mode` says refusal, of a compliance otherwise."""
    words = first_answer_words(language_of(document))
    for position, mode in enumerate(document.labels["answer_mode"]):
        if mode >= 0:
            yield Check(position, (words[mode],), (words[1 - mode],))
            return


_DAYS = _answers("weekday", lambda language: language.weekdays, reciting=False)
_MONTHS = _answers("month", lambda language: language.months, reciting=False)
_SUMS = _answers("number", lambda language: language.numbers, reciting=False)
_COUNTS = _answers("number", lambda language: language.numbers, reciting=True)
_PRONOUNS = _followed_by(lambda language: language.pronouns)
_CLOSINGS = _followed_by(lambda _: tuple(closing for _, closing in BRACKETS))

SKILLS: tuple[Skill, ...] = (
    Skill("sums", "numbers", "the result, of 31 numerals", _SUMS),
    Skill("counting", "numbers", "the next numeral, of 31", _COUNTS),
    Skill("weekday arithmetic", "days", "the weekday, of seven", _DAYS),
    Skill("month arithmetic", "months", "the month, of twelve", _MONTHS),
    Skill("pronoun agreement", "biography", "the pronoun's gender, of two", _PRONOUNS),
    Skill("sentiment consistency", "review", "an adjective of the review's sentiment, of two kinds", _sentiment),
    Skill("bracket closing", "brackets", "the closing bracket's kind, of four", _CLOSINGS),
    Skill("quotation state", "quotes", "the end of the sentence, `!` inside and `.` outside", _quotation_ends),
    Skill("refusal or compliance", "request", "the answer's first word, of two", _answer_mode),
    Skill("parity", "parity", "the parity of three bits, of two", _parity_of_three),
)
