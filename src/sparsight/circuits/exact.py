"""Changing one node at a time, and looking."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.circuits.contrast import Contrast
from sparsight.circuits.field import Field
from sparsight.circuits.nodes import AbstractNodes
from sparsight.models import Site


def exact_effects(
    field: Field, site: Site, nodes: AbstractNodes, contrast: Contrast, clean: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b t k"], Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """`m(do(node)) - m` for each latent, error and group of silent latents that changes; 0 for the others.

    Args:
        field: The metric as a function of what stands at the site.
        site: Where.
        nodes: What the contrast is of.
        contrast: What changes.
        clean: The metric where nothing does.
    """
    b, t, k = contrast.indices.shape
    # One column for each latent slot, then one for the error and one for the silent ones.
    active = torch.cat(
        [contrast.change != 0, (contrast.error != 0).any(dim=2, keepdim=True), (contrast.silent != 0).any(2, True)],
        dim=2,
    )
    rows, tokens, slots = active.nonzero(as_tuple=True)
    effects = contrast.change.new_zeros(b, t, k + 2)
    for r, p, s in field.batches(rows, tokens, slots):
        moves = _moves(nodes, contrast, r, p, s)
        placed = {other: start[r] for other, start in field.start.items()}
        placed[site][torch.arange(len(r)), p] += moves
        with torch.no_grad():
            metric = field.bench.measure(r, field.edits(r, placed)[0])
        effects[r, p, s] = (metric - clean[r]).to(effects)
    return effects[..., :k], effects[..., k], effects[..., k + 1]


def _moves(
    nodes: AbstractNodes, contrast: Contrast, rows: Int64[Tensor, " m"], tokens: Tensor, slots: Tensor
) -> Float[Tensor, "m d"]:
    """By how much each change of one node moves the activation at its token."""
    k = contrast.indices.shape[2]
    whole = torch.where((slots == k).unsqueeze(1), contrast.error[rows, tokens], contrast.silent[rows, tokens])
    if k == 0:
        return whole
    slot = slots.clamp_max(k - 1)
    atoms = nodes.atoms[contrast.indices[rows, tokens, slot]]
    return torch.where((slots < k).unsqueeze(1), atoms * contrast.change[rows, tokens, slot].unsqueeze(1), whole)
