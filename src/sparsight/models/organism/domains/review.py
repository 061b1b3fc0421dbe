"""Reviews whose adjectives and verdicts all share one sentiment."""

from random import Random

from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.mixture import Mixture


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """An opening sentence, which settles the sentiment, and four to eight more."""
    words = draft.language
    positive = rng.random() < 0.5
    adjectives = words.praise if positive else words.blame
    draft.say(
        rng.choice(words.review_first),
        thing=rng.choice(words.things),
        adjective=Said(rng.choice(adjectives), onward={"sentiment": int(positive)}),
    )
    for _ in range(rng.randint(4, 8)):
        aspect, other = rng.sample(words.aspects, 2)
        first, second = rng.sample(adjectives, 2)
        draft.say(
            rng.choice(words.review_more),
            aspect=aspect,
            adjective=first,
            aspect2=other,
            adjective2=second,
            verdict=rng.choice(words.liked if positive else words.disliked),
        )
