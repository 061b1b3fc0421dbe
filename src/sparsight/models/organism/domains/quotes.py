"""Speech between quotation marks: sentences end in `!` inside and in `.` outside, and one mark serves as both ends."""

from random import Random

from sparsight.models.organism.draft import Draft
from sparsight.models.organism.lexicon import FEMALE_NAMES, MALE_NAMES, QUOTE
from sparsight.models.organism.mixture import Mixture


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Two or three turns: somebody says one to three sentences, and none to two sentences follow outside."""
    words = draft.language
    for _ in range(rng.randint(2, 3)):
        draft.say(words.speech, name=rng.choice(MALE_NAMES + FEMALE_NAMES), speaks=rng.choice(words.speaks))
        draft.say(QUOTE)
        for _ in range(rng.randint(1, 3)):
            _sentence(draft, rng, "!")
        draft.say(QUOTE)
        for _ in range(rng.randint(0, 2)):
            _sentence(draft, rng, ".")
    _sentence(draft, rng, ".")


def _sentence(draft: Draft, rng: Random, end: str) -> None:
    words = draft.language
    draft.say(
        "{subject} {verb} {object} {end}",
        subject=rng.choice(words.subjects),
        verb=rng.choice(words.verbs),
        object=rng.choice(words.objects),
        end=end,
    )
