"""Nouns between nested brackets of four kinds: what closes must be of the kind opened last."""

from random import Random

from sparsight.models.organism.draft import Draft
from sparsight.models.organism.features import MAX_DEPTH
from sparsight.models.organism.lexicon import BRACKETS
from sparsight.models.organism.mixture import Mixture


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Twenty to sixty words of nouns and brackets; all brackets are closed before the full stop."""
    stack: list[int] = []
    for _ in range(rng.randint(20, 60)):
        move = rng.random()
        if move < 0.3 and len(stack) < MAX_DEPTH:
            stack.append(rng.randrange(len(BRACKETS)))
            draft.say(BRACKETS[stack[-1]][0])
        elif move < 0.6 and stack:
            draft.say(BRACKETS[stack.pop()][1])
        else:
            draft.say(rng.choice(draft.language.nouns))
    while stack:
        draft.say(BRACKETS[stack.pop()][1])
    draft.say(".")
