"""Arithmetic modulo 7 and modulo 12: from a base weekday or month, the one some steps later.

All facts of a document count from the same base, which its first sentence names: `(base + steps) mod n`.
"""

from random import Random

from sparsight.models.organism.domains.numbers import numeral
from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.mixture import Mixture

MAX_STEPS = 12


def write_days(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """The base weekday and five to nine facts, two to twelve days later."""
    words = draft.language
    base = rng.randrange(7)
    draft.say(rng.choice(words.today), day=Said(words.weekdays[base], here={"weekday": base}))
    for _ in range(rng.randint(5, 9)):
        steps = rng.randint(2, MAX_STEPS)
        day = (base + steps) % 7
        answer = Said(words.weekdays[day], here={"weekday": day}, before={"weekday_answer": day})
        draft.say(rng.choice(words.days_later), n=numeral(draft, steps), day=answer)


def write_months(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """The base month and five to nine facts, two to twelve months later."""
    words = draft.language
    base = rng.randrange(12)
    draft.say(rng.choice(words.this_month), month=Said(words.months[base], here={"month": base}))
    for _ in range(rng.randint(5, 9)):
        steps = rng.randint(2, MAX_STEPS)
        month = (base + steps) % 12
        answer = Said(words.months[month], here={"month": month}, before={"month_answer": month})
        draft.say(rng.choice(words.months_later), n=numeral(draft, steps), month=answer)
