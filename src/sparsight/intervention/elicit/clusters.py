"""Which completions are of one kind."""

from collections import Counter
from collections.abc import Sequence


def cluster_completions(completions: Sequence[Sequence[Sequence[int]]], *, least: float = 0.6) -> list[int]:
    """Number the kinds of completions: 0 is the largest, equals in the order in which they first come.

    Two sets of completions are alike if, averaged over prompts, the tokens of their completions overlap (as bags:
    shared tokens over all tokens) by at least `least`. Each set joins the first kind whose first member it is like.

    Args:
        completions: Token ids, for each vector and prompt.
        least: Overlap that makes two alike.
    """
    leaders: list[int] = []
    found: list[int] = []
    bags = [[Counter(row) for row in rows] for rows in completions]
    for mine in bags:
        alike = (i for i, leader in enumerate(leaders) if _overlap(mine, bags[leader]) >= least)
        kind = next(alike, len(leaders))
        if kind == len(leaders):
            leaders.append(len(found))
        found.append(kind)
    sizes = Counter(found)
    order = sorted(sizes, key=lambda kind: (-sizes[kind], kind))
    return [order.index(kind) for kind in found]


def _overlap(first: Sequence[Counter[int]], second: Sequence[Counter[int]]) -> float:
    shares = []
    for a, b in zip(first, second, strict=True):
        union = (a | b).total()
        shares.append((a & b).total() / union if union else 1.0)
    return sum(shares) / len(shares)
