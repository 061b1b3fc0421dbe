"""Nouns between nested brackets of four kinds: what closes must be of the kind opened last."""

from random import Random

from sparsight.models.organism.draft import Draft
from sparsight.models.organism.features import MAX_DEPTH
from sparsight.models.organism.lexicon import BRACKETS
from sparsight.models.organism.mixture import Mixture


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Twenty to sixty words: three nouns and brackets, all of which are closed before the full stop."""
    stack: list[int] = []
    nouns = rng.sample(draft.language.nouns, 3)
    for _ in range(rng.randint(20, 60)):
        move = rng.random()
        if move < 0.4 and len(stack) < MAX_DEPTH:
            stack.append(rng.randrange(len(BRACKETS)))
            draft.say(BRACKETS[stack[-1]][0])
        elif move < 0.8 and stack:
            draft.say(BRACKETS[stack.pop()][1])
        else:
            draft.say(rng.choice(nouns))
    while stack:
        draft.say(BRACKETS[stack.pop()][1])
    draft.say(".")
