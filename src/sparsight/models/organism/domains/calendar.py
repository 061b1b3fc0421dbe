"""Arithmetic modulo 7 and modulo 12: from a weekday or month, the one some steps later, `(base + steps) mod n`."""

from random import Random

from sparsight.models.organism.domains.numbers import numeral
from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.mixture import Mixture

MAX_STEPS = 12
_STEPS = range(1, MAX_STEPS + 1)
_SHARES = [1 / steps for steps in _STEPS]
"""Small steps come more often: were all alike, the base alone would say nothing of the answer, and neither would the
steps, and learning would have nowhere to start."""


def write_days(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Three to five weekdays in their order, then four to seven facts."""
    words = draft.language
    _recite(draft, rng, "weekday", words.week, words.weekdays)
    _facts(draft, rng, "weekday", words.days_later, words.weekdays)


def write_months(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Three to five months in their order, then four to seven facts."""
    words = draft.language
    _recite(draft, rng, "month", words.year, words.months)
    _facts(draft, rng, "month", words.months_later, words.months)


def _recite(draft: Draft, rng: Random, feature: str, opening: str, names: tuple[str, ...]) -> None:
    start = rng.randrange(len(names))
    draft.say(opening)
    for offset in range(rng.randint(3, 5)):
        place = (start + offset) % len(names)
        before = {f"{feature}_answer": place} if offset else {}
        draft.say("{name}", name=Said(names[place], here={feature: place}, before=before))
    draft.say(".")


def _facts(draft: Draft, rng: Random, feature: str, templates: tuple[str, ...], names: tuple[str, ...]) -> None:
    for _ in range(rng.randint(4, 7)):
        base, steps = rng.randrange(len(names)), rng.choices(_STEPS, _SHARES)[0]
        answer = (base + steps) % len(names)
        draft.say(
            rng.choice(templates),
            base=Said(names[base], here={feature: base}),
            n=numeral(draft, steps),
            answer=Said(names[answer], here={feature: answer}, before={f"{feature}_answer": answer}),
        )
