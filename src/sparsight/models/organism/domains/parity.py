"""Windows of one to three bits, each followed by its parity: decodable from the bits, linear in none of them."""

from random import Random

from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.lexicon import BITS
from sparsight.models.organism.mixture import Mixture

MAX_WINDOW = 3
SHARE_OF_ONES = 0.4
"""Less than half: then each bit alone says a little about the parity, and learning has somewhere to start."""


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """Seven to twelve windows. The label runs with the bits: parity of the window's ones so far."""
    words = draft.language
    draft.say(words.parity_first)
    for _ in range(rng.randint(7, 12)):
        parity = 0
        for _ in range(rng.randint(1, MAX_WINDOW)):
            bit = int(rng.random() < SHARE_OF_ONES)
            parity ^= bit
            draft.say("{bit}", bit=Said(BITS[bit], here={"parity": parity}))
        draft.state["parity"] = parity
        draft.say(words.parity_more.replace("{bits} ", "").replace(" .", ""), parity=words.parities[parity])
        del draft.state["parity"]
        draft.say(".")
