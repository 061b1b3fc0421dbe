"""Splicing nodes into a model: at any sites, values and errors are read, held or changed while the model runs.

At a site the activation is `x = values atoms + offset + error`. What is written back is

    base + (values' - values) atoms + (error' - error)

where primes are the nodes after changes, so that a splice which changes nothing writes back `x` to the last bit,
whatever the precision. How gradients pass is chosen apart from how values do:

* `encoded`: values and error are functions of `x`, so that gradients run through the encoder and the error alike. With
  both kept they add up to the identity. `detached` errors leave the way through the encoder alone.
* `leaves`: values and error are leaves, cut off from `x`: nothing upstream gets a gradient.
* `passed`: leaves as well, and `x` gets the gradient of what was written, as if nothing stood there. Upstream nodes
  then see the gradient of the model itself at no cost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.codes import SparseCode
from sparsight.models import Edit, Site

ErrorMode = Literal["kept", "dropped", "detached"]
"""Whether the error is added back; `detached`: added back, and no gradient passes through it."""
GradientMode = Literal["encoded", "leaves", "passed"]

Option = TypeVar("Option")


@dataclass(frozen=True)
class NodeValues:
    """The nodes of one site for a batch of sequences.

    Attributes:
        indices: Node of each slot.
        values: Value of each slot; 0 in unused ones.
        error: What the nodes leave of the activation; at tokens that are not coded, the whole activation.
    """

    indices: Int64[Tensor, "b t k"]
    values: Float[Tensor, "b t k"]
    error: Float[Tensor, "b t d"]

    def to_dense(self, n_latents: int) -> Float[Tensor, "b t n_latents"]:
        """One column per node; differentiable in the values."""
        dense = self.values.new_zeros(*self.values.shape[:2], n_latents)
        return dense.scatter_add(2, self.indices, self.values)

    def detach(self) -> "NodeValues":
        return NodeValues(self.indices, self.values.detach(), self.error.detach())

    def __getitem__(self, rows: slice | Tensor) -> "NodeValues":
        return NodeValues(self.indices[rows], self.values[rows], self.error[rows])


Change = Callable[[NodeValues], NodeValues]
"""From the nodes that were found to those that stand in their place, of the same batch."""


class Splice:
    """Nodes standing at sites of a model during its passes.

    `edits()` goes into `LanguageModel.logits`, `loss`, `generate` or `activations`. After a pass `found` and `placed`
    hold the nodes of each site, before and after changes, in the autograd graph of that pass: differentiate a metric by
    `placed[site].values` and `placed[site].error`. The gradient by node `j` of a site is the gradient by the error
    times `atoms[j]`, also for nodes that are 0.

    Attributes:
        found: Nodes as coded in the last pass.
        placed: Nodes as written in the last pass.
        read: What was coded in the last pass.
        offset: What the nodes were added to in the last pass; 0 at tokens that are not coded.
        written: What stands at each site after the last pass.
    """

    def __init__(
        self,
        nodes: Mapping[Site, AbstractNodes],
        *,
        where: Bool[Tensor, "b t"] | None = None,
        error: ErrorMode | Mapping[Site, ErrorMode] = "kept",
        gradient: GradientMode | Mapping[Site, GradientMode] = "encoded",
        change: Mapping[Site, Change] | None = None,
    ) -> None:
        """Nothing is computed until a pass runs.

        Args:
            nodes: By the site they write at (`nodes_of`).
            where: Tokens that are coded; elsewhere the activation passes as it is, all of it error, and `dropped` does
                not touch it. Every token when None. Positions beyond its width, as in generation, are coded.
            error: For all sites, or for each.
            gradient: For all sites, or for each.
            change: What to do with the nodes of some sites.
        Raises:
            ValueError: an option is unknown, or names a site without nodes.
        """
        self.nodes = dict(nodes)
        self._where = where
        self._error = _for_each(self.nodes, error, get_args(ErrorMode), "error")
        self._gradient = _for_each(self.nodes, gradient, get_args(GradientMode), "gradient")
        self._change = dict(change or {})
        if missing := sorted(set(self._change) - set(self.nodes)):
            raise ValueError(f"nothing stands at {missing[0]} to be changed; give its dictionary, or drop the change")
        self.found: dict[Site, NodeValues] = {}
        self.placed: dict[Site, NodeValues] = {}
        self.read: dict[Site, Tensor] = {}
        self.offset: dict[Site, Tensor] = {}
        self.written: dict[Site, Tensor] = {}
        self._held: dict[Site, Tensor] = {}

    def edits(self, others: Mapping[Site, Edit] | None = None) -> dict[Site, Edit]:
        """What a pass is edited with. At one site `others` come before the splice."""
        steps: dict[Site, list[Edit]] = {site: [edit] for site, edit in (others or {}).items()}
        for site, nodes in self.nodes.items():
            if nodes.reads == site:
                steps.setdefault(site, []).append(partial(self._write, site, None))
            else:
                steps.setdefault(site, []).append(partial(self._write_elsewhere, site))
        for site, nodes in self.nodes.items():
            if nodes.reads != site:  # after the nodes of the site that it reads
                steps.setdefault(nodes.reads, []).append(partial(self._hold, site))
        return {site: edits[0] if len(edits) == 1 else partial(_one_by_one, edits) for site, edits in steps.items()}

    def _hold(self, site: Site, x: Tensor) -> Tensor:
        self._held[site] = x
        return x

    def _write_elsewhere(self, site: Site, y: Tensor) -> Tensor:
        return self._write(site, self._held.pop(site), y)

    def _write(self, site: Site, read: Tensor | None, y: Tensor) -> Tensor:
        """What stands at `site` in place of `y`; `read` is what is coded, `y` itself when None."""
        nodes, how = self.nodes[site], self._gradient[site]
        target = y.to(nodes.atoms.dtype)
        x = target if read is None else read.to(nodes.atoms.dtype)
        where = self._coded(y)
        self.read[site] = x
        with torch.set_grad_enabled(torch.is_grad_enabled() and how == "encoded"):
            own, offset = take_apart(nodes, x, target, where)
        if how != "encoded":
            own = _leaves(own)
        elif self._error[site] == "detached":
            own = NodeValues(own.indices, own.values, own.error.detach())
        self.found[site], self.offset[site] = own, offset
        placed = self._changed(site, own)
        if self._error[site] == "dropped":
            placed = NodeValues(placed.indices, placed.values, placed.error.masked_fill(where.unsqueeze(-1), 0))
        self.placed[site] = placed
        if placed is own and not torch.is_grad_enabled():
            self.written[site] = y
            return y
        change = _difference(nodes, placed, own.detach())
        if how == "encoded":
            change = change + (offset - offset.detach())
        written = (y if how == "passed" else y.detach()) + change.to(y.dtype)
        self.written[site] = written
        return written

    def _changed(self, site: Site, own: NodeValues) -> NodeValues:
        if site not in self._change:
            return own
        changed = self._change[site](own)
        if changed.error.shape != own.error.shape or changed.values.shape[:2] != own.values.shape[:2]:
            raise ValueError(
                f"the change at {site} must keep the batch: expected error {list(own.error.shape)} and values "
                f"{[*own.values.shape[:2], 'k']}, got {list(changed.error.shape)} and {list(changed.values.shape)}"
            )
        return changed

    def _coded(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        if self._where is None:
            return torch.ones(b, t, dtype=torch.bool, device=x.device)
        where = self._where.to(x.device)
        if where.shape[0] != b or where.shape[1] > t:
            raise ValueError(f"where must be of the batch that runs, {[b, t]}, got {list(where.shape)}")
        return torch.nn.functional.pad(where, (0, t - where.shape[1]), value=True)


def take_apart(
    nodes: AbstractNodes, x: Float[Tensor, "b t d_in"], y: Float[Tensor, "b t d"], where: Bool[Tensor, "b t"]
) -> tuple[NodeValues, Float[Tensor, "b t d"]]:
    """Nodes and offset of activations, `y = values atoms + offset + error`; differentiable.

    Args:
        nodes: Which.
        x: What is coded.
        y: What the nodes add up to; `x` itself for all but transcoders.
        where: Tokens that are coded; elsewhere the error is `y` and the offset 0.
    """
    rows = x[where]
    code = nodes.encode(rows)
    offset = nodes.offset(rows)
    b, t, d = y.shape
    indices = torch.zeros(b, t, code.k, dtype=torch.int64, device=y.device)
    indices[where] = code.indices
    values = torch.zeros(b, t, code.k, dtype=y.dtype, device=y.device).index_put((where,), code.values)
    explained = torch.zeros(b, t, d, dtype=y.dtype, device=y.device).index_put((where,), nodes.add_up(code) + offset)
    everywhere = torch.zeros_like(explained).index_put((where,), offset)
    return NodeValues(indices, values, y - explained), everywhere


def put_together(nodes: AbstractNodes, placed: NodeValues) -> Float[Tensor, "b t d"]:
    """`values atoms + error`, without the offset; differentiable."""
    b, t, d = placed.error.shape
    code = SparseCode(placed.indices.flatten(0, 1), placed.values.flatten(0, 1), nodes.n_latents)
    return nodes.add_up(code).view(b, t, d) + placed.error


def _difference(nodes: AbstractNodes, placed: NodeValues, own: NodeValues) -> Float[Tensor, "b t d"]:
    """`(values' - values) atoms + error' - error`: exactly 0 where nothing changed."""
    # Each part on its own: the sum of a part is the same number on both sides, and cancels without rounding.
    without = torch.zeros_like(own.error)
    parts = [put_together(nodes, NodeValues(v.indices, v.values, without)) for v in (placed, own)]
    return (parts[0] - parts[1]) + (placed.error - own.error)


def _leaves(own: NodeValues) -> NodeValues:
    if not torch.is_grad_enabled():
        return own.detach()
    return NodeValues(own.indices, own.values.detach().requires_grad_(), own.error.detach().requires_grad_())


def _for_each(
    nodes: Mapping[Site, AbstractNodes], option: Option | Mapping[Site, Option], known: tuple[Option, ...], name: str
) -> dict[Site, Option]:
    """An option for every site: the one given for all, or each site's own."""
    if isinstance(option, Mapping):
        if set(option) != set(nodes):
            raise ValueError(f"{name} must name the sites that have nodes, {sorted(map(str, nodes))}")
        chosen = dict(option)
    else:
        chosen = dict.fromkeys(nodes, option)
    for value in chosen.values():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
    return chosen


def _one_by_one(edits: list[Edit], x: Tensor) -> Tensor:
    for edit in edits:
        x = edit(x)
    return x
