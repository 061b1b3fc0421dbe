"""Plain sentences: people and animals do small things in places. Their only feature is the language."""

from random import Random

from sparsight.models.organism.draft import Draft
from sparsight.models.organism.mixture import Mixture


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Four to eight sentences."""
    words = draft.language
    for _ in range(rng.randint(4, 8)):
        subject, other = rng.sample(words.subjects, 2)
        draft.say(
            rng.choice(words.plain),
            subject=subject,
            subject2=other,
            verb=rng.choice(words.verbs),
            object=rng.choice(words.objects),
            place=rng.choice(words.places),
            time=rng.choice(words.times),
            mood=rng.choice(words.moods),
        )
