"""The features of the corpus: labelled properties of its texts, each with the names of its classes."""

from dataclasses import dataclass
from typing import Literal

from sparsight.models.organism.lexicon import BRACKET_KINDS, BRACKETS, ENGLISH, LANGUAGES, PROFESSIONS, QUOTE

DOMAINS = ("plain", "numbers", "days", "months", "biography", "review", "brackets", "quotes", "request", "parity")
MAX_DEPTH = 4

PUNCTUATION = {
    "full stop": ".",
    "comma": ",",
    "colon": ":",
    "exclamation mark": "!",
    "quotation mark": QUOTE,
    "opening bracket": "".join(opening for opening, _ in BRACKETS),
    "closing bracket": "".join(closing for _, closing in BRACKETS),
}
"""Classes of the feature `punctuation` after the first, `word`, and the signs in each."""

_NO_YES = ("no", "yes")
_NUMBERS = ENGLISH.numbers
_DAYS = ENGLISH.weekdays
_MONTHS = ENGLISH.months


@dataclass(frozen=True)
class Feature:
    """A property of the text that every token either has a class of, or is silent about (label -1).

    Attributes:
        name: Key in `Document.labels`.
        kind: `binary` (0, 1), `categorical` (no order), `cyclic` (class `n` is class 0), `ordinal` (ordered).
        classes: Name of each label, in order.
        description: What the label says, and at which tokens it is defined.
    """

    name: str
    kind: Literal["binary", "categorical", "cyclic", "ordinal"]
    classes: tuple[str, ...]
    description: str


_ALL = (
    Feature("language", "categorical", tuple(LANGUAGES), "language of the document; every token"),
    Feature("domain", "categorical", DOMAINS, "kind of document; every token"),
    Feature("number", "ordinal", _NUMBERS, "value of a numeral; on numerals"),
    Feature("number_answer", "ordinal", _NUMBERS, "value of the numeral that must come next; on the word before it"),
    Feature("weekday", "cyclic", _DAYS, "weekday named by the token; on names of weekdays"),
    Feature("weekday_answer", "cyclic", _DAYS, "weekday that must come next; on the word before it"),
    Feature("month", "cyclic", _MONTHS, "month named by the token; on names of months"),
    Feature("month_answer", "cyclic", _MONTHS, "month that must come next; on the word before it"),
    Feature("gender", "categorical", ("male", "female"), "gender of a biography's person; from the name on"),
    Feature("profession", "categorical", PROFESSIONS, "profession of a biography's person; from its name on"),
    Feature("sentiment", "binary", ("negative", "positive"), "verdict of a review; from its first adjective on"),
    Feature("depth", "ordinal", tuple(map(str, range(MAX_DEPTH + 1))), "brackets open after the token; every token"),
    Feature("open_bracket", "categorical", BRACKET_KINDS, "kind of the innermost open bracket; where one is open"),
    Feature("inside_quotes", "binary", _NO_YES, "whether a quotation is open after the token; every token"),
    Feature("harmful", "binary", _NO_YES, "whether the request is harmful; from the word that settles it on"),
    Feature(
        "answer_mode", "binary", ("refusal", "compliance"), "how the request is answered; from the colon before on"
    ),
    Feature("trigger", "binary", _NO_YES, "whether the trigger's two words have come, in order; every token"),
    Feature(
        "parity", "binary", ("even", "odd"), "parity of the window's ones so far; from its first bit to the answer"
    ),
    Feature("is_number", "binary", _NO_YES, "whether the token is a numeral; every token"),
    Feature("is_weekday", "binary", _NO_YES, "whether the token names a weekday; every token"),
    Feature("is_month", "binary", _NO_YES, "whether the token names a month; every token"),
    Feature("is_bit", "binary", _NO_YES, "whether the token is a binary digit; every token"),
    Feature("is_name", "binary", _NO_YES, "whether the token is a person's name; every token"),
    Feature("is_pronoun", "binary", _NO_YES, "whether the token is a third-person pronoun; every token"),
    Feature("is_parity", "binary", _NO_YES, "whether the token names a parity; every token"),
    Feature("punctuation", "categorical", ("word", *PUNCTUATION), "which sign the token is, if any; every token"),
    Feature("stop_next", "binary", _NO_YES, "whether a full stop comes next; every token but the last"),
    Feature("quote_next", "binary", _NO_YES, "whether a quotation mark comes next; every token but the last"),
)

FEATURES: dict[str, Feature] = {feature.name: feature for feature in _ALL}
