"""The auxiliary loss of dead latents in compiled code."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries.selection import top_k_latents
from sparsight.training.compiled.terms import Terms
from sparsight.training.compiled.threads import all_for_torch
from sparsight.training.objectives.terms import revived_at_once, unexplained_by_dead

if TYPE_CHECKING:
    from sparsight.training.compiled.cpu import CpuLoops
    from sparsight.training.compiled.cuda import CudaLoops


def revival_by_slots(
    loops: "CpuLoops | CudaLoops",
    centred: Float[Tensor, "b d"],
    encoder: Float[Tensor, "m d"],
    offset: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d"],
    residual: Float[Tensor, "b d"],
    weight: float,
    k_aux: int | None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "m d"], Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """`weight` times `unexplained_by_dead`, and its gradients: of atoms, encoder rows and offsets.

    Args:
        centred: What the encoder reads, less its offset.
        encoder, offset, atoms: Of the dead latents, copied: they become room for the gradients.
        residual: What the living leave.
    """
    m, k = len(atoms), revived_at_once(k_aux, len(atoms), residual.shape[1])
    with all_for_torch():
        if k == m:
            return _by_products(centred, encoder, offset, atoms, residual, weight, k)
        values, chosen = top_k_latents(centred, encoder.T, offset, k)
    slots, values = chosen.flatten(), values.relu().flatten()
    variance = (residual - residual.mean(dim=0)).square().sum()
    # An exact reconstruction leaves nothing to explain: 0 / tiny = 0.
    share = weight / variance.clamp_min(torch.finfo(residual.dtype).tiny)
    g, pull, squares = torch.empty_like(residual), torch.empty_like(values), residual.new_empty(len(residual), 1)
    bounds = torch.arange(0, len(slots) + 1, k, device=slots.device)
    no_offset = residual.new_zeros(residual.shape[1])
    loops.decode_and_pull(residual, bounds, slots, values, atoms, no_offset, 2 * share.view(1), g, pull, squares)
    starts = slots.new_zeros(m + 1)
    order = loops.sort_by_latent(slots, starts)
    tokens = torch.arange(len(residual), device=slots.device).repeat_interleave(k)
    extra = torch.full((m,), -1, dtype=torch.int32, device=slots.device)
    to_offset = torch.zeros_like(offset).index_add_(0, slots, pull)
    to_atoms = loops.slopes(Terms(starts, order, tokens, values, g, extra, atoms[:0]), atoms)
    to_encoder = loops.slopes(Terms(starts, order, tokens, pull, centred, extra, atoms[:0]), encoder)
    return share * squares.double().sum().to(share.dtype), to_atoms, to_encoder, to_offset


def _by_products(
    centred: Tensor, encoder: Tensor, offset: Tensor, atoms: Tensor, residual: Tensor, weight: float, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where all latents work on every token whole matrix products are fastest."""
    parts = (encoder.T.requires_grad_(), offset.requires_grad_(), atoms.requires_grad_())
    with torch.enable_grad():
        all_dead = torch.ones(len(atoms), dtype=torch.bool, device=atoms.device)
        loss = weight * unexplained_by_dead(centred, *parts, residual=residual, dead=all_dead, k_aux=k)
        to_encoder, to_offset, to_atoms = torch.autograd.grad(loss, parts)
    return loss.detach(), to_atoms, to_encoder.T.contiguous(), to_offset
