"""What nodes are changed from and to: the two ends of every intervention."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.splice import NodeValues, put_together
from sparsight.codes import SparseCode

Ablation = Literal["paired", "zero", "mean"]


@dataclass(frozen=True)
class Contrast:
    """The nodes of one site that change, for a batch of sequences, and by how much.

    Attributes:
        indices: Node of each slot.
        change: Value it is changed to less the value it has; 0 in unused slots.
        error: Change of the error.
        silent: With mean ablation: the change of all latents that are silent, moved to their means together.
        start: What stands at the site before any change.
    """

    indices: Int64[Tensor, "b t k"]
    change: Float[Tensor, "b t k"]
    error: Float[Tensor, "b t d"]
    silent: Float[Tensor, "b t d"]
    start: Float[Tensor, "b t d"]

    def way(self, nodes: AbstractNodes) -> Float[Tensor, "b t d"]:
        """By how much the activation changes when all nodes do."""
        together = put_together(nodes, NodeValues(self.indices, self.change, self.error))
        return together + self.silent

    def along(
        self, nodes: AbstractNodes, gradient: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b t k"], Float[Tensor, "b t"], Float[Tensor, "b t"]]:
        """`gradient · change` of each latent, of the error and of the silent ones."""
        b, t, k = self.indices.shape
        effects = torch.zeros_like(self.change)
        for row in range(b):  # one sequence at a time: the atoms of all would be the largest array of all
            atoms = nodes.atoms[self.indices[row].flatten()].view(t, k, -1)
            effects[row] = torch.einsum("tkd,td->tk", atoms, gradient[row])
        return effects * self.change, (gradient * self.error).sum(dim=2), (gradient * self.silent).sum(dim=2)


@dataclass(frozen=True)
class MeanNodes:
    """Mean values of the nodes of a site.

    Attributes:
        values: Mean of each node.
        error: Mean error.
    """

    values: Float[Tensor, " n_latents"]
    error: Float[Tensor, " d"]


def paired(
    n_latents: int, clean: NodeValues, patch: NodeValues, offset: Float[Tensor, "b t d"], y: Float[Tensor, "b t d"]
) -> Contrast:
    """From the nodes of one run to those of another.

    Args:
        n_latents: How many there are.
        clean, patch: Nodes of the runs; what stands under padding does not matter if it is the same in both.
        offset: By how much the offset differs. It goes with the error, so that all changes together lead from one
            activation to the other.
        y: The activation of the first run.
    """
    indices, change = _merged(n_latents, clean, patch)
    return Contrast(indices, change, patch.error - clean.error + offset, torch.zeros_like(y), y)


def to_zero(clean: NodeValues, y: Tensor, where: Bool[Tensor, "b t"]) -> Contrast:
    """Every latent and every error to 0; tokens that are not coded stay."""
    error = -clean.error * where.unsqueeze(-1)
    return Contrast(clean.indices, -clean.values, error, torch.zeros_like(y), y)


def to_mean(
    nodes: AbstractNodes, mean: MeanNodes, clean: NodeValues, y: Tensor, where: Bool[Tensor, "b t"]
) -> Contrast:
    """Every latent and every error to its mean; tokens that are not coded stay."""
    active = clean.values != 0
    goals = mean.values[clean.indices] * active
    code = SparseCode(clean.indices.flatten(0, 1), goals.flatten(0, 1), nodes.n_latents)
    silent = (mean.values @ nodes.atoms - nodes.add_up(code).view_as(y)) * where.unsqueeze(-1)
    error = (mean.error - clean.error) * where.unsqueeze(-1)
    return Contrast(clean.indices, goals - clean.values, error, silent, y)


def _merged(n_latents: int, clean: NodeValues, patch: NodeValues) -> tuple[Tensor, Tensor]:
    """One slot for each latent that is active in either, with the difference of its values."""
    indices = torch.cat([clean.indices, patch.indices], dim=2)
    change = torch.cat([-clean.values, patch.values], dim=2)
    # Unused slots sort behind all others, as one latent more.
    indices, order = indices.masked_fill(change == 0, n_latents).sort(dim=2)
    change = change.gather(2, order)
    first = torch.ones_like(indices, dtype=torch.bool)
    first[..., 1:] = indices[..., 1:] != indices[..., :-1]
    slots = first.long().cumsum(dim=2) - 1
    summed = torch.zeros_like(change).scatter_add(2, slots, change)
    named = torch.zeros_like(indices).scatter(2, slots, indices)
    used = (named < n_latents) & (summed != 0)
    width = int((used * torch.arange(1, used.shape[2] + 1, device=used.device)).max()) if used.numel() else 0
    return (named * used)[..., :width], (summed * used)[..., :width]
