"""Predictions of a circuit, met by acting: ablate a node or an edge in the model, and compare."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.circuits.discovery.changes import Change, changes, nodes_at
from sparsight.circuits.discovery.circuit import OUTPUT, Circuit
from sparsight.circuits.discovery.effects import judged_values, parents_of
from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.nodes import AbstractNodes, Placed, nodes_of
from sparsight.evaluation.frozen_record import Record
from sparsight.models import Edit, LanguageModel, Replacement, Site


class Acted(Record):
    """A prediction and what happened.

    Attributes:
        id: The node, or "SOURCE -> TARGET".
        predicted: Its effect or weight.
        found: Change of the metric when it is ablated in the model, mean over examples.
    """

    id: str
    predicted: float
    found: float


class Acting(Record):
    """All predictions of a circuit that were put to the test.

    Attributes:
        acted: One for each node or edge.
        correlation: Of predicted and found; None for fewer than three.
        relative_error: `sqrt(sum (predicted - found)^2 / sum found^2)`: 0 is perfect, 1 no better than predicting 0.
    """

    acted: list[Acted]
    correlation: float | None
    relative_error: float


@torch.no_grad()
def act_on_nodes(
    circuit: Circuit, lm: LanguageModel, dictionaries: Placed | Mapping[Site, Placed], examples: Examples
) -> Acting:
    """Ablate each node of a circuit alone, the rest of the model responding, and compare with its effect.

    One pass for each node. What a node is ablated to is what its effect was taken for.
    """
    stage = _Stage.of(circuit, lm, dictionaries, examples)
    clean = stage.metric({})
    acted = []
    for node in circuit.record.nodes:
        site = Site.parse(node.site)
        moved = stage.moved(site, node.index, node.position)
        found = float((stage.metric({site: _Add(moved)}) - clean).mean())
        acted.append(Acted(id=node.id, predicted=node.effect, found=found))
    return _compared(acted)


@torch.no_grad()
def act_on_edges(
    circuit: Circuit,
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    examples: Examples,
    *,
    strongest: int | None = None,
) -> Acting:
    """Ablate each edge of a circuit alone, and compare with its weight.

    The source's change reaches the target by the direct path only: every other site in front of the target is held at
    its clean activation, the target's new value is read off, and the model runs with this one value changed. An edge
    into the output holds all sites. Two passes for each edge; `strongest` limits them to those of largest weight.
    """
    stage = _Stage.of(circuit, lm, dictionaries, examples)
    clean = stage.metric({})
    by_id = {node.id: node for node in circuit.record.nodes}
    acted = []
    for edge in circuit.record.edges[:strongest]:
        source = by_id[edge.source]
        at = Site.parse(source.site)
        moved = stage.moved(at, source.index, source.position)
        if edge.target == OUTPUT:
            found = stage.metric(stage.held(None, at, moved)) - clean
        else:
            target = by_id[edge.target]
            into = Site.parse(target.site)
            response = stage.response(into, stage.held(into, at, moved), target.index, target.position)
            found = stage.metric({into: _Add(response)}) - clean
        acted.append(Acted(id=f"{edge.source} -> {edge.target}", predicted=edge.weight, found=float(found.mean())))
    return _compared(acted)


@dataclass(frozen=True, eq=False)
class _Stage:
    """A model, its nodes and the examples, with the changes that ablation means for them."""

    lm: LanguageModel
    nodes: dict[Site, AbstractNodes]
    examples: Examples
    changes: dict[Site, Change]
    by_position: bool

    @staticmethod
    def of(
        circuit: Circuit, lm: LanguageModel, dictionaries: Placed | Mapping[Site, Placed], examples: Examples
    ) -> "_Stage":
        nodes = nodes_of(lm, dictionaries)
        ablation = circuit.record.ablation
        if ablation == "paired" and examples.patch is None:
            raise ValueError("the circuit's nodes go to those of pairs; give examples with pairs")
        clean = examples.clean.to(lm.device)
        patch = None if examples.patch is None else examples.patch.to(lm.device)
        made = changes(lm, nodes, clean, patch, circuit.means, ablation)
        return _Stage(lm, nodes, examples, made, circuit.record.positions is not None)

    def metric(self, edits: Mapping[Site, Edit]) -> Float[Tensor, " n"]:
        values = judged_values(self.lm, self.examples, self.examples.clean.to(self.lm.device), edits)
        return self.examples.metric.of(values, torch.arange(len(self.examples), device=values.device)).double()

    def moved(self, site: Site, index: int | None, position: int | None) -> Float[Tensor, "b t d"]:
        """By how much the activation changes when one node is ablated."""
        change = self.changes[site]
        if index is None:
            return self._at(change.error, position)
        amount = change.values.masked_fill(change.indices != index, 0).sum(dim=2)
        if change.shift is not None:
            amount = amount + change.shift[:, index] * change.where
        return self._at(amount[..., None] * self.nodes[site].atoms[index], position)

    def response(self, site: Site, edits: dict[Site, Edit], index: int | None, position: int | None) -> Tensor:
        """By how much the activation at a site changes when one of its nodes takes the value it has under edits."""
        nodes, before = self.nodes[site], self.changes[site].clean.nodes
        after = nodes_at(self.lm, {site: nodes}, self.examples.clean.to(self.lm.device), edits)[site].nodes
        if index is None:
            return self._at(after.error - before.error, position)
        values = [n.values.masked_fill(n.indices != index, 0).sum(dim=2) for n in (before, after)]
        return self._at((values[1] - values[0])[..., None] * nodes.atoms[index], position)

    def held(self, target: Site | None, source: Site, moved: Tensor) -> dict[Site, Edit]:
        """Edits that hold every parent of a site at its clean activation, the source moved."""
        parents = parents_of(list(self.nodes), target)
        return {site: Replacement(self.changes[site].start + (moved if site == source else 0)) for site in parents}

    def _at(self, change: Tensor, position: int | None) -> Tensor:
        if position is None:
            return change
        kept = torch.zeros_like(change)
        kept[:, position] = change[:, position]
        return kept


class _Add:
    def __init__(self, change: Tensor) -> None:
        self._change = change

    def __call__(self, x: Tensor) -> Tensor:
        return x + self._change.to(x.dtype)


def _compared(acted: list[Acted]) -> Acting:
    predicted = torch.tensor([one.predicted for one in acted], dtype=torch.float64)
    found = torch.tensor([one.found for one in acted], dtype=torch.float64)
    missed = float((predicted - found).square().sum().sqrt())
    size = float(found.square().sum().sqrt())
    varies = len(acted) > 2 and float(predicted.std()) > 0 and float(found.std()) > 0
    return Acting(
        acted=acted,
        correlation=float(torch.corrcoef(torch.stack([predicted, found]))[0, 1]) if varies else None,
        relative_error=missed / size if size > 0 else 0.0,
    )
