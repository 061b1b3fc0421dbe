"""Writing on from a prompt, with or without edits."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.models.forward_pass import NotFinite
from sparsight.models.tokens import Tokens

NextLogits = Callable[[Tokens], Tensor]
"""From all sequences so far to the logits `[b, vocabulary]` of the token after each."""


def generate(
    tokens: Tokens,
    next_logits: NextLogits,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    end_ids: list[int],
    pad_id: int,
) -> Tokens:
    """Each sequence, followed by tokens chosen one by one until the model ends it or `max_new_tokens` came.

    Args:
        tokens: Prompts of any lengths, padded on either side.
        next_logits: Called once per step with all sequences so far, padded on the right.
        max_new_tokens: Most tokens added to a sequence.
        temperature: 0 takes the likeliest token (the first of equals); otherwise logits are divided by it and a token
            is drawn.
        seed: Row `i` of a batch draws the same numbers whatever the other rows are.
        end_ids: Tokens after which a sequence is over; they are kept, as special tokens.
        pad_id: Written under padding.
    Returns:
        Prompts and what follows them, padded on the right.
    """
    lengths = tokens.mask.sum(dim=1)
    n, longest = len(tokens), int(lengths.max())
    # Every row is moved to the left end, so that its next token goes to the place `length`.
    order = (~tokens.mask).to(torch.int8).argsort(dim=1, stable=True)[:, :longest]
    mask = torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]
    ids = tokens.ids.gather(1, order).masked_fill(~mask, pad_id)
    so_far = Tokens(ids, mask, tokens.special.gather(1, order) & mask)
    # Row by row, so that a prompt alone and a prompt among others draw the same.
    drawn = torch.stack([_uniform(seed, row, max_new_tokens) for row in range(n)]).to(lengths.device)
    ends = torch.tensor(end_ids, dtype=torch.int64, device=lengths.device)
    live = torch.ones(n, dtype=torch.bool, device=lengths.device)
    for step in range(max_new_tokens):
        try:
            logits = next_logits(so_far)
        except NotFinite as error:
            raise NotFinite(f"{error} (at step {step} of the generation)") from error
        chosen = choose(logits, temperature, drawn[:, step])
        ended = torch.isin(chosen, ends)
        so_far = _append(so_far, chosen, live, special=ended, pad_id=pad_id)
        live = live & ~ended
        if not live.any():
            break
    return so_far


def _uniform(seed: int, row: int, n: int) -> Float64[Tensor, " n"]:
    # A seed of its own for each row; on the CPU, so that every device draws the same.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % (1 << 63))
    return torch.rand(n, generator=generator, dtype=torch.float64)


def choose(
    logits: Float[Tensor, "b vocabulary"], temperature: float, uniform: Float64[Tensor, " b"]
) -> Int64[Tensor, " b"]:
    """The likeliest token at temperature 0, else the token at which the cumulative probability passes `uniform`."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    # The last sum is 1 only to rounding: scale the draw, so that it always falls on a token.
    passed = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return passed.clamp_max(logits.shape[-1] - 1)


def _append(
    tokens: Tokens,
    chosen: Int64[Tensor, " b"],
    live: Bool[Tensor, " b"],
    *,
    special: Bool[Tensor, " b"],
    pad_id: int,
) -> Tokens:
    """One more token for every live row, just after its last one."""
    lengths = tokens.mask.sum(dim=1)
    width = max(tokens.ids.shape[1], int((lengths + live.long()).max()))
    more = width - tokens.ids.shape[1]
    pad = torch.nn.functional.pad
    ids, mask, added = (
        pad(tokens.ids, (0, more), value=pad_id),
        pad(tokens.mask, (0, more)),
        pad(tokens.special, (0, more)),
    )
    here = (torch.arange(width, device=lengths.device)[None, :] == lengths[:, None]) & live[:, None]
    return Tokens(torch.where(here, chosen[:, None], ids), mask | here, torch.where(here, special[:, None], added))


class Cached:
    """Next-token logits that read only what is new, and keep keys and values of what was read before.

    Sequences are turned to the right end, so that the tokens of a row stay next to one another, and sliding windows and
    rotations see true distances.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._cache: Any = None
        self._mask: Tensor | None = None
        self._lengths: Tensor | None = None

    def __call__(self, tokens: Tokens) -> Float[Tensor, "b vocabulary"]:
        lengths = tokens.mask.sum(dim=1)
        if self._mask is None or self._lengths is None:
            order = tokens.mask.to(torch.int8).argsort(dim=1, stable=True)
            ids, new = tokens.ids.gather(1, order), tokens.mask.gather(1, order)
            self._mask = new
        else:
            # A row that is over brings nothing: it is fed its last token as padding.
            ids = tokens.ids.gather(1, lengths[:, None] - 1)
            new = (lengths > self._lengths)[:, None]
            self._mask = torch.cat([self._mask, new], dim=1)
        self._lengths = lengths
        positions = (self._mask.long().cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = self._forward(
            input_ids=ids,
            attention_mask=self._mask.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        last: Tensor = output.logits[:, -1]
        return last
