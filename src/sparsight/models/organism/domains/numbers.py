"""Counting up or down by steps of one to three, and sums of two numbers from zero to ten."""

from random import Random

from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.lexicon import N_NUMBERS
from sparsight.models.organism.mixture import Mixture


def numeral(draft: Draft, value: int, *, answer: bool = False) -> Said:
    """A numeral, labelled with its value; an `answer` labels the word before it too."""
    before = {"number_answer": value} if answer else {}
    return Said(draft.language.numbers[value], here={"number": value}, before=before)


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """A count of six to twelve numerals and three to six sums."""
    _count(draft, rng)
    for _ in range(rng.randint(3, 6)):
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        draft.say(draft.language.sum, a=numeral(draft, a), b=numeral(draft, b), c=numeral(draft, a + b, answer=True))


def _count(draft: Draft, rng: Random) -> None:
    """The first two numerals give the step; every later one follows from them."""
    step, length = rng.randint(1, 3), rng.randint(6, 12)
    length = min(length, (N_NUMBERS - 1) // step + 1)
    start = rng.randint(0, N_NUMBERS - 1 - step * (length - 1))
    values = [start + step * i for i in range(length)]
    upwards = rng.random() < 0.5
    draft.say(draft.language.count_up if upwards else draft.language.count_down)
    for i, value in enumerate(values if upwards else reversed(values)):
        draft.say("{numeral}", numeral=numeral(draft, value, answer=i >= 2))
    draft.say(".")
