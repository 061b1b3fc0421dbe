"""Which documents are held out: a rule on the document's number alone, so that it depends on no order and no size."""

import numpy as np
from numpy.typing import NDArray

RULE = "splitmix64(document_id + splitmix64(seed)) / 2**64 < heldout"


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits so that neighbours look unrelated; a bijection, so that no two numbers meet.

    Source: the output function of Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = numbers + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around, as meant
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def is_heldout(document_ids: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Whether each document is held out; true for a `share` of all numbers, whichever documents there are.

    Args:
        document_ids: Numbers of documents, not negative.
        share: Fraction held out, in [0, 1).
        seed: Another seed holds out other documents.
    """
    salt = splitmix64(np.array([seed], dtype=np.uint64))
    mixed = splitmix64(document_ids.astype(np.uint64) + salt)
    # The upper 53 bits are exact in float64, so the comparison is the same on every machine.
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share


def on_heldout_side(document_id: int, share: float, seed: int) -> bool:
    """`is_heldout` of one document."""
    return bool(is_heldout(np.array([document_id], dtype=np.int64), share, seed)[0])


def mix_seed(*numbers: int) -> int:
    """One seed for a generator out of several non-negative numbers, e.g. (seed, epoch, chunk)."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = splitmix64(state ^ np.array([number], dtype=np.uint64))
    return int(state[0] >> np.uint64(1))
