"""How features share dimensions: lengths, interference, how much of a dimension each has, who shares with whom."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def lengths(W: Float[Tensor, "*c m n"]) -> Float[Tensor, "*c n"]:
    """`||W_i||`: near 1 for a feature that is represented, near 0 for one that is not."""
    found: Tensor = W.norm(dim=-2)
    return found


def interference(W: Float[Tensor, "*c m n"]) -> Float[Tensor, "*c n"]:
    """`sum_{j != i} (u_i . W_j)^2` with `u_i = W_i / ||W_i||`: what others put on its direction; 0 without one."""
    shared = (_directions(W).mT @ W).square()
    return shared.sum(dim=-1) - shared.diagonal(dim1=-2, dim2=-1)


def dimensionality(W: Float[Tensor, "*c m n"]) -> Float[Tensor, "*c n"]:
    """`||W_i||^2 / sum_j (u_i . W_j)^2`: the share of a dimension that a feature has, in `[0, 1]`; 0 for a zero column.

    All together have at most the rank of `W`. In a regular arrangement of `n` directions in `m` dimensions each has
    `m / n`: a pair of opposites 1/2, a triangle 2/3, a tetrahedron 3/4, a pentagon 2/5, a square antiprism 3/8.

    Source:
        Elhage et al., "Toy models of superposition", 2022.
    """
    squares = W.square().sum(dim=-2)
    whole = squares + interference(W)
    return torch.where(whole > 0, squares / whole.clamp_min(torch.finfo(W.dtype).tiny), torch.zeros_like(whole))


@dataclass(frozen=True)
class Group:
    """Features that share dimensions with each other and with no other.

    Attributes:
        features: Which, ascending.
        dimensions: Rank of their directions.
    """

    features: tuple[int, ...]
    dimensions: int


def groups(W: Float[Tensor, "m n"], *, represented: float = 0.5, orthogonal: float = 0.15) -> list[Group]:
    """The represented features, cut where directions are orthogonal; largest groups first.

    Args:
        represented: Least length of a feature that counts.
        orthogonal: Largest cosine, as a magnitude, of directions that count as orthogonal; also the least singular
            value, relative to the largest, that counts as a dimension.
    """
    kept = (lengths(W) >= represented).nonzero()[:, 0].tolist()
    units = _directions(W)
    close = ((units.mT @ units).abs() > orthogonal).tolist()
    found, left = [], set(kept)
    while left:
        members, waiting = set(), [min(left)]
        while waiting:
            i = waiting.pop()
            members.add(i)
            waiting += [j for j in left - members if close[i][j] and j not in waiting]
        left -= members
        chosen = sorted(members)
        spectrum = torch.linalg.svdvals(units[:, chosen])
        found.append(Group(tuple(chosen), int((spectrum > orthogonal * spectrum[0]).sum())))
    return sorted(found, key=lambda group: (-len(group.features), group.features))


def _directions(W: Tensor) -> Tensor:
    """Columns of length 1; zero columns stay zero."""
    lengths: Tensor = W.norm(dim=-2, keepdim=True)
    return W / lengths.clamp_min(torch.finfo(W.dtype).tiny)
