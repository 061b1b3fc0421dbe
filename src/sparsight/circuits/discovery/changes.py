"""From where to where nodes go when they are ablated, and what that is worth along a gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.splice import NodeValues, take_apart
from sparsight.errors import UndefinedMetric
from sparsight.models import Edit, LanguageModel, Site, Tokens

Ablation = Literal["paired", "mean", "zero"]


@dataclass(frozen=True, eq=False)
class Means:
    """Mean nodes of a site, at each position or over all: what nodes are ablated to with `mean`.

    Attributes:
        values: `[positions, n_latents]`, one row when positions are not told apart.
        error: `[positions, d]`.
    """

    values: Float[Tensor, "p n_latents"]
    error: Float[Tensor, "p d"]

    def at(self, t: int) -> "Means":
        """One row for each of `t` positions.

        Raises:
            ValueError: they are means of another number of positions.
        """
        if len(self.values) == t:
            return self
        if len(self.values) > 1:
            raise ValueError(
                f"nodes are ablated to means at {len(self.values)} positions, got sequences of {t} tokens; measure "
                "templates of the length that the circuit was found on"
            )
        return Means(self.values[:1].expand(t, -1), self.error[:1].expand(t, -1))


@dataclass(frozen=True, eq=False)
class Standing:
    """What one pass had at a site.

    Attributes:
        nodes: Nodes that the activation is taken apart into.
        x: What they code: the activation at the site, or at the one that a transcoder reads.
        y: The activation at the site.
        offset: What the nodes are added to; 0 at tokens that are not coded.
    """

    nodes: NodeValues
    x: Float[Tensor, "b t d_in"]
    y: Float[Tensor, "b t d"]
    offset: Float[Tensor, "b t d"]


@dataclass(frozen=True, eq=False)
class Change:
    """What ablating every node of a site does to a batch: the activation goes from `start` to `start + way`.

    Attributes:
        nodes: Of the site.
        clean: What the unedited pass had there.
        where: Tokens whose nodes change.
        indices, values: One slot for each part of a latent's change; those of one latent add up.
        shift: A change of every latent at every changed token, by position; None without.
        error: Change of the error.
    """

    nodes: AbstractNodes
    clean: Standing
    where: Bool[Tensor, "b t"]
    indices: Int64[Tensor, "b t k"]
    values: Float[Tensor, "b t k"]
    shift: Float[Tensor, "t n_latents"] | None
    error: Float[Tensor, "b t d"]

    @property
    def start(self) -> Float[Tensor, "b t d"]:
        """What stands at the site."""
        return self.clean.y

    @property
    def way(self) -> Float[Tensor, "b t d"]:
        """By how much the activation changes."""
        atoms = self.nodes.atoms
        slots = torch.zeros(*self.indices.shape[:2], len(atoms), dtype=self.values.dtype, device=self.values.device)
        moved = slots.scatter_add(2, self.indices, self.values) @ atoms
        if self.shift is not None:
            moved = moved + (self.shift @ atoms) * self.where[..., None]
        return moved + self.error

    def along(self, gradient: Float[Tensor, "b t d"], *, by_position: bool) -> Float64[Tensor, "p n"]:
        """`gradient . change` of each latent, summed over the batch; the last column is the error's.

        Returns:
            One row for each position, or one for all together.
        """
        b, t, _ = self.start.shape
        atoms = self.nodes.atoms
        found = torch.zeros(t, len(atoms) + 1, dtype=torch.float64, device=gradient.device)
        for row in range(b):  # one sequence at a time: the atoms of all slots would be the largest array of all
            slots = torch.einsum("tkd,td->tk", atoms[self.indices[row]], gradient[row]) * self.values[row]
            found.scatter_add_(1, self.indices[row], slots.double())
        if self.shift is not None:
            pulled = (gradient * self.where[..., None]).sum(dim=0) @ atoms.T
            found[:, :-1] += (pulled * self.shift).double()
        found[:, -1] += (gradient * self.error).sum(dim=(0, 2)).double()
        return found if by_position else found.sum(dim=0, keepdim=True)


def nodes_at(
    lm: LanguageModel, nodes: Mapping[Site, AbstractNodes], tokens: Tokens, edits: Mapping[Site, Edit] | None = None
) -> dict[Site, Standing]:
    """Nodes and activations of every site in a pass; differentiable where gradients are on."""
    wanted = sorted({site for at in nodes.values() for site in (at.reads, at.writes)})
    found = lm.activations(tokens, wanted, edits=edits)
    counted = tokens.counted.to(lm.device)
    made = {}
    for site, at in nodes.items():
        x, y = found[at.reads], found[site]
        own, offset = take_apart(at, x, y, counted)
        made[site] = Standing(own, x, y, offset)
    return made


def changes(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    tokens: Tokens,
    patch: Tokens | None,
    means: Mapping[Site, Means],
    ablation: Ablation,
) -> dict[Site, Change]:
    """What ablation does to every site for a batch of sequences.

    Errors take up what the offset changes, so that all nodes together lead from one activation to the other.
    """
    with torch.no_grad():
        own = nodes_at(lm, nodes, tokens)
        other = None if patch is None or ablation != "paired" else nodes_at(lm, nodes, patch)
    where = tokens.counted.to(lm.device)
    found = {}
    for site, at in own.items():
        mine = at.nodes
        indices, values, shift = mine.indices, -mine.values, None
        if other is not None:
            theirs = other[site].nodes
            indices, values = torch.cat([indices, theirs.indices], dim=2), torch.cat([values, theirs.values], dim=2)
            error = theirs.error - mine.error + (other[site].offset - at.offset)
        elif ablation == "mean":
            mean = means[site].at(at.y.shape[1])
            shift = mean.values.to(at.y)
            error = (mean.error.to(at.y) - mine.error) * where[..., None]
        else:
            error = -mine.error * where[..., None]
        found[site] = Change(nodes[site], at, where, indices, values, shift, error)
    return found


def mean_nodes(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    examples: Examples,
    *,
    by_position: bool,
    batch_size: int,
) -> dict[Site, Means]:
    """Mean values and errors over the counted tokens of the paired sequences, or of the clean ones without pairs.

    Raises:
        UndefinedMetric: a position has no counted token to take a mean over.
    """
    tokens = examples.clean if examples.patch is None else examples.patch
    t = tokens.ids.shape[1]
    sums = {s: torch.zeros(t, n.n_latents, dtype=torch.float64) for s, n in nodes.items()}
    errors = {s: torch.zeros(t, n.d_out, dtype=torch.float64) for s, n in nodes.items()}
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        counted = batch.counted[..., None]
        with torch.no_grad():
            own = {site: at.nodes for site, at in nodes_at(lm, nodes, batch).items()}
        for site, at in own.items():
            sums[site] += at.to_dense(nodes[site].n_latents).cpu().double().sum(dim=0)
            errors[site] += (at.error.cpu().double() * counted).sum(dim=0)
    counts = tokens.counted.sum(dim=0).double()[:, None]
    if not by_position:
        counts = counts.sum(dim=0, keepdim=True)
        sums = {s: v.sum(dim=0, keepdim=True) for s, v in sums.items()}
        errors = {s: v.sum(dim=0, keepdim=True) for s, v in errors.items()}
    if not counts.any():
        raise UndefinedMetric("a mean needs at least one counted token, got none")
    counts = counts.clamp_min(1)  # special tokens are never changed
    return {s: Means((sums[s] / counts).float(), (errors[s] / counts).float()) for s in nodes}
