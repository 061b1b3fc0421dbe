"""Which tokens an edit is for."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsight.models import Tokens

Where: TypeAlias = int | slice | Sequence[int] | Tensor | None
"""Positions, counted from the first real token of each row (BOS is one): a number, several, a slice such as
`slice(1, None)`, a mask `[b, t]` over positions, or None for all tokens."""


def checked_where(where: Where) -> Where:
    """The same positions, if they can be meant.

    Raises:
        ValueError: a position is negative, or a mask is not one.
    """
    if isinstance(where, Tensor):
        if where.dtype != torch.bool or where.dim() != 2:
            raise ValueError(f"a mask of positions must be bool [b, t], got {where.dtype} {list(where.shape)}")
        return where
    if isinstance(where, slice):
        if where.step not in (None, 1) or any(end is not None and end < 0 for end in (where.start, where.stop)):
            raise ValueError(f"a slice of positions must be plain and count from the first token, got {where}")
        return where
    if where is None:
        return None
    numbers = [where] if isinstance(where, int) else list(where)
    if not numbers or min(numbers) < 0:
        raise ValueError(
            f"positions count from the first token, from 0, got {numbers}; for the last one use last_tokens(tokens)"
        )
    return numbers


def chosen_tokens(where: Where, positions: Int64[Tensor, "b t"], name: str) -> Bool[Tensor, "b t"] | None:
    """Which tokens of a pass are meant; None for all.

    Raises:
        ValueError: a named position is beyond every row of a pass that reads rows from their beginning.
    """
    if where is None:
        return None
    if isinstance(where, slice):
        chosen = positions >= (where.start or 0)
        return chosen if where.stop is None else chosen & (positions < where.stop)
    last = int(positions.max())
    whole = bool((positions == 0).any())  # a pass behind a cache reads new tokens only, and cannot judge
    if isinstance(where, Tensor):
        if len(where) != len(positions):
            raise ValueError(f"{name}: the mask of positions is for {len(where)} rows, the batch has {len(positions)}")
        mask = where.to(positions.device)
        if whole and bool(mask[:, last + 1 :].any()):
            raise ValueError(f"{name}: the mask of positions reaches beyond the {last + 1} tokens of the batch")
        inside = positions < mask.shape[1]
        return mask.gather(1, positions.clamp_max(mask.shape[1] - 1)) & inside
    wanted = torch.tensor([where] if isinstance(where, int) else list(where), device=positions.device)
    if whole and int(wanted.max()) > last:
        raise ValueError(f"{name}: position {int(wanted.max())} is beyond the {last + 1} tokens of the batch")
    return torch.isin(positions, wanted)


def last_tokens(tokens: Tokens, back: int = 0) -> Bool[Tensor, "b t"]:
    """A mask over positions: the last real token of each row, or the one `back` before it.

    Raises:
        ValueError: a row is too short.
    """
    lengths = tokens.mask.sum(dim=1)
    if back < 0 or bool((lengths <= back).any()):
        raise ValueError(f"back must be from 0 to {int(lengths.min()) - 1}, the shortest row less one, got {back}")
    columns = torch.arange(tokens.ids.shape[1], device=lengths.device)
    return columns[None, :] == (lengths - 1 - back)[:, None]
