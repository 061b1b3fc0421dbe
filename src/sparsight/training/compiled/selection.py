"""Which latents are active, from screened pre-activations: the same as from full ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries.selection import SAMPLE_ROWS, SLACK, Slots
from sparsight.training.compiled.screen import Found, Screen, ScreenedBlock
from sparsight.training.compiled.threads import all_for_torch


def screened_top_k(screen: Screen, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], k: int) -> Slots:
    """The `k` largest pre-activations of each row, rectified; `k` slots for every token, those of value 0 silent."""
    values, latents = screen.top_k(centred, offset, k)
    tokens = torch.arange(len(centred), device=centred.device).repeat_interleave(k)
    return Slots(tokens, latents.flatten(), values.flatten(), len(centred))


def screened_batch_top_k(
    screen: Screen, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], n_kept: int
) -> Slots:
    """The `n_kept` largest positive pre-activations of the whole batch, or all if fewer; of equal ones the first.

    A threshold is guessed from a few rows, low enough that somewhat too many exceed it. If enough do, the largest are
    among them; if not, a lower guess follows, in the end 0.
    """
    for slack in (SLACK, 4 * SLACK, None):
        limit = 0.0 if slack is None else _guess(screen, centred, offset, slack * n_kept / max(1, len(centred)))
        slots = _above(screen, centred, offset, torch.full_like(offset, limit), limit)
        if len(slots.values) >= n_kept or slack is None:
            break
    kept = _largest(slots.values, n_kept)
    return Slots(slots.tokens[kept], slots.latents[kept], slots.values[kept], slots.n_tokens)


def _guess(screen: Screen, centred: Tensor, offset: Tensor, per_row: float) -> float:
    """A number that about `per_row` entries of a row exceed, never below 0; from a few rows."""
    pre = _sampled(screen, centred, offset)
    if not len(pre):
        return 0.0
    rank = min(int(per_row * len(pre)) + 1, pre.numel())
    return max(0.0, float(pre.flatten().topk(rank, sorted=False).values.amin()))


def _sampled(screen: Screen, centred: Tensor, offset: Tensor) -> Tensor:
    """Pre-activations of a few rows, in bfloat16's precision."""
    sample = centred[:: max(1, len(centred) // SAMPLE_ROWS)].bfloat16()
    with all_for_torch():
        return torch.addmm(offset.bfloat16(), sample, screen.rounded.T).float()


def _above(screen: Screen, centred: Tensor, offset: Tensor, lower: Tensor, limit: float) -> Slots:
    """All pre-activations above a limit that is the same for all."""
    found = screen.over_blocks(centred, offset, lambda block: collect(screen, block, centred, offset, lower, limit))
    return _joined([part for part in found if part is not None], centred)


def screened_above(
    screen: Screen, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], lower: Float[Tensor, " m"], most: int
) -> Slots | None:
    """All pre-activations above their latent's limit; None where some token has more than `most` of them.

    A few rows tell beforehand where it is many more. Screened is by how far each exceeds its limit, moved up by what
    screening may be off: of positive numbers in bfloat16 the order is that of their bits.
    """

    above = offset - lower

    def work(block: ScreenedBlock) -> Found | None:
        return collect(screen, block, centred, offset, lower, block.lift, most)

    if len(centred) and float((_sampled(screen, centred, above) > 0).sum(dim=1).float().mean()) > 2 * most:
        return None
    found = screen.over_blocks(centred, above, work, lifted=True)
    parts = [part for part in found if part is not None]
    return _joined(parts, centred) if len(parts) == len(found) else None


def _joined(parts: list[Found], centred: Tensor) -> Slots:
    if not parts:
        none = torch.empty(0, dtype=torch.int64, device=centred.device)
        return Slots(none, none, centred.new_empty(0), len(centred))
    tokens, latents, values = (torch.cat(each) for each in zip(*parts, strict=True))
    return Slots(tokens, latents, values, len(centred))


def collect(
    screen: Screen,
    block: ScreenedBlock,
    centred: Tensor,
    offset: Tensor,
    lower: Tensor,
    limit: float | Tensor,
    most: int | None = None,
) -> Found | None:
    """Tokens, latents and values of a block's pre-activations above the `lower` of their latent.

    Args:
        limit: What the block's screened numbers of such entries exceed but for their errors.
        most: Give up (None) where a token has more of them.
    """
    floors = block.floors(limit)
    if bool((floors <= 0).any()):
        return _all_above(screen, block, centred, offset, lower)
    return screen.above(block, floors, centred, offset, lower, most)


def _all_above(screen: Screen, block: ScreenedBlock, centred: Tensor, offset: Tensor, lower: Tensor) -> Found:
    """The same without screening, where the limit is too near 0 for it."""
    pre = torch.addmm(offset, centred[block.rows], screen.encoder.T)
    rows, latents = (pre > lower).nonzero(as_tuple=True)
    return rows + block.rows.start, latents, pre[rows, latents]


def _largest(values: Tensor, n: int) -> Tensor:
    """Positions of the `n` largest, ascending; of equal ones the first."""
    if len(values) <= n:
        return torch.arange(len(values), device=values.device)
    smallest = values.topk(n, sorted=False).values.amin()
    above, equal = values > smallest, values == smallest
    return (above | (equal & (equal.cumsum(dim=0) <= n - above.sum()))).nonzero()[:, 0]
