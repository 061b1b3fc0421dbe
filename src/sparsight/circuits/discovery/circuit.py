"""A sparse circuit: the nodes that matter for a metric, the edges between them, and what it takes to test it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal

import torch
from jaxtyping import Float64
from pydantic import ValidationError
from torch import Tensor

from sparsight.circuits.discovery.changes import Ablation, Means
from sparsight.circuits.discovery.effects import Key
from sparsight.errors import FormatError, UndefinedMetric
from sparsight.evaluation.frozen_record import Record
from sparsight.models import Site

OUTPUT = "output"
RECORD_FILE, TENSOR_FILE = "circuit.json", "circuit.safetensors"


class NodeRecord(Record):
    """A node of a circuit.

    Attributes:
        id: `SITE/KIND/INDEX`, `SITE/error`, with `@POSITION` where positions are told apart: the same in every run.
        site: Where it stands.
        kind: "latent", "neuron", "direction" or "error".
        index: Of the latent; None for an error.
        position: Token it belongs to; None where positions are summed.
        effect: What ablating it does to the metric, mean over examples: below 0 it raises the metric.
    """

    id: str
    site: str
    kind: str
    index: int | None
    position: int | None
    effect: float


class EdgeRecord(Record):
    """An edge: the part of the target's effect that comes from the source's change, directly.

    Attributes:
        source, target: Ids of nodes; the target may be "output".
        weight: Mean over examples, in units of the metric.
    """

    source: str
    target: str
    weight: float


class SiteRecord(Record):
    """What stands at a site: kind of node and how many."""

    kind: str
    n_nodes: int


class CircuitRecord(Record):
    """`circuit.json`.

    Attributes:
        model: Name of the model.
        sites: What stood where, in the order of a forward pass.
        ablation: What nodes go to when they are ablated.
        steps: Midpoints of the path effects were taken on; 0 for the clean end alone.
        positions: How many positions are told apart; None where they are summed.
        n_examples: Sequences it was found on.
        node_threshold, edge_threshold: Least absolute effect and weight.
        nodes, edges: Those above the thresholds, largest first; nodes that no path of edges leads on from are kept.
        n_orphans: Nodes without an edge to another node of the circuit or the output.
    """

    schema_version: Literal[1] = 1
    model: str
    sites: dict[str, SiteRecord]
    ablation: Ablation
    steps: int
    positions: int | None
    n_examples: int
    node_threshold: float
    edge_threshold: float
    nodes: list[NodeRecord]
    edges: list[EdgeRecord]
    n_orphans: int

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes and edges, with the effects of all nodes they were chosen from.

    Attributes:
        record: What goes into `circuit.json`.
        effects: By site, effect of every node: a row for each position or one for all, errors in the last column.
        means: By site, what nodes are ablated to with "mean"; empty for other ablations.
    """

    record: CircuitRecord
    effects: dict[Site, Float64[Tensor, "p n"]]
    means: dict[Site, Means]

    def __len__(self) -> int:
        return len(self.record.nodes)

    @property
    def kept(self) -> dict[Site, Tensor]:
        """By site, which nodes belong to it, in the shape of the effects."""
        masks = {site: torch.zeros_like(values, dtype=torch.bool) for site, values in self.effects.items()}
        for node in self.record.nodes:
            site = Site.parse(node.site)
            column = masks[site].shape[1] - 1 if node.index is None else node.index
            masks[site][node.position or 0, column] = True
        return masks

    @property
    def n_errors(self) -> int:
        """Error nodes among its nodes."""
        return sum(node.kind == "error" for node in self.record.nodes)

    def of_size(self, n: int, *, errors: bool = True) -> "Circuit":
        """The `n` nodes with the largest absolute effects, without edges.

        Args:
            n: How many; all there are when fewer.
            errors: Whether errors may be among them.
        """
        masks = strongest(self.effects, n, errors=errors)
        return self.with_nodes(masks)

    def with_nodes(self, masks: Mapping[Site, Tensor]) -> "Circuit":
        """Another choice of nodes, with those edges that lie between them."""
        nodes = node_records(self.record.sites, self.effects, masks, self.record.positions)
        ids = {node.id for node in nodes} | {OUTPUT}
        edges = [edge for edge in self.record.edges if edge.source in ids and edge.target in ids]
        update = {"nodes": nodes, "edges": edges, "n_orphans": orphans(nodes, edges)}
        return Circuit(self.record.model_copy(update=update), self.effects, self.means)

    def without(self, *ids: str) -> "Circuit":
        """The circuit less some nodes, or edges written `SOURCE -> TARGET`.

        Raises:
            ValueError: it has no such node or edge.
        """
        edges = {f"{edge.source} -> {edge.target}" for edge in self.record.edges}
        known = {node.id for node in self.record.nodes} | edges
        if unknown := sorted(set(ids) - known):
            raise ValueError(f"the circuit has no {unknown[0]!r}; nodes and edges are listed in its record")
        nodes = [node for node in self.record.nodes if node.id not in ids]
        left = {node.id for node in nodes} | {OUTPUT}
        kept = [
            edge
            for edge in self.record.edges
            if f"{edge.source} -> {edge.target}" not in ids and edge.source in left and edge.target in left
        ]
        update = {"nodes": nodes, "edges": kept, "n_orphans": orphans(nodes, kept)}
        return Circuit(self.record.model_copy(update=update), self.effects, self.means)

    def error_share(self) -> dict[str, float]:
        """By site, the errors' part of the summed absolute effects of all nodes: what latents do not account for."""
        shares = {}
        for site, values in self.effects.items():
            total = float(values.abs().sum())
            shares[str(site)] = float(values[:, -1].abs().sum()) / total if total > 0 else 0.0
        return shares

    def save(self, folder: str | FilePath) -> None:
        """Write `circuit.json` and `circuit.safetensors` into a folder, which is made if need be."""
        from safetensors.torch import save_file

        folder = FilePath(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"effects/{site}": values.contiguous() for site, values in self.effects.items()}
        for site, mean in self.means.items():
            tensors |= {f"mean_values/{site}": mean.values.contiguous(), f"mean_error/{site}": mean.error.contiguous()}
        save_file(tensors, folder / TENSOR_FILE)
        (folder / RECORD_FILE).write_text(self.record.to_json() + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | FilePath) -> "Circuit":
        """Read what `save` wrote.

        Raises:
            FormatError: a file is missing or damaged, or the two do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = FilePath(folder)
        try:
            record = CircuitRecord.model_validate_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
            tensors = load_file(folder / TENSOR_FILE)
        except FileNotFoundError as error:
            raise FormatError(f"{error.filename} is missing: {folder} holds no circuit") from None
        except (ValidationError, UnicodeDecodeError, SafetensorError) as error:
            first = str(error).splitlines()[0]
            raise FormatError(f"{folder} holds a damaged circuit: {first}; find it again") from None
        effects, means = {}, {}
        for name, facts in record.sites.items():
            site = Site.parse(name)
            values = tensors.get(f"effects/{name}")
            if values is None or values.shape != (record.positions or 1, facts.n_nodes + 1):
                raise FormatError(f"{folder / TENSOR_FILE} does not hold the effects of {name}; find the circuit again")
            effects[site] = values
            if f"mean_values/{name}" in tensors:
                means[site] = Means(tensors[f"mean_values/{name}"], tensors[f"mean_error/{name}"])
        return Circuit(record, effects, means)


def node_id(site: Site | str, kind: str, index: int | None, position: int | None) -> str:
    """The id of a node; ids of errors hold no number that a latent's could be mistaken for."""
    middle = "error" if index is None else f"{kind}/{index}"
    return f"{site}/{middle}" + ("" if position is None else f"@{position}")


def id_of(key: Key, sites: Mapping[str, SiteRecord], positions: int | None) -> str:
    """The id of a node that is named by site, position and column."""
    site, position, column = key
    if site is None:
        return OUTPUT
    facts = sites[str(site)]
    index = None if column == facts.n_nodes else column
    return node_id(site, facts.kind, index, None if positions is None else position)


def node_records(
    sites: Mapping[str, SiteRecord],
    effects: Mapping[Site, Tensor],
    masks: Mapping[Site, Tensor],
    positions: int | None,
) -> list[NodeRecord]:
    """Records of the nodes of a mask, the largest absolute effect first."""
    found = []
    for site, mask in masks.items():
        facts = sites[str(site)]
        for position, column in mask.nonzero().tolist():
            index = None if column == facts.n_nodes else column
            place = None if positions is None else position
            found.append(
                NodeRecord(
                    id=node_id(site, facts.kind, index, place),
                    site=str(site),
                    kind="error" if index is None else facts.kind,
                    index=index,
                    position=place,
                    effect=float(effects[site][position, column]),
                )
            )
    return sorted(found, key=lambda node: (-abs(node.effect), node.id))


def strongest(effects: Mapping[Site, Tensor], n: int, *, errors: bool = True) -> dict[Site, Tensor]:
    """Masks of the `n` nodes with the largest absolute effects of all sites; nodes without any effect are left out."""
    sites = sorted(effects)
    sizes = {}
    for site in sites:
        size = effects[site].abs().clone()
        if not errors:
            size[:, -1] = 0
        sizes[site] = size
    flat = torch.cat([sizes[site].flatten() for site in sites])
    order = flat.argsort(descending=True, stable=True)[:n]
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[order[flat[order] > 0]] = True
    parts = torch.split(chosen, [sizes[site].numel() for site in sites])
    return {site: part.view_as(sizes[site]) for site, part in zip(sites, parts, strict=True)}


def above(effects: Mapping[Site, Tensor], threshold: float) -> dict[Site, Tensor]:
    """Masks of the nodes whose absolute effect exceeds a threshold.

    Raises:
        UndefinedMetric: there is none.
    """
    masks = {site: values.abs() > threshold for site, values in effects.items()}
    if not any(bool(mask.any()) for mask in masks.values()):
        largest = max(float(values.abs().max()) for values in effects.values())
        raise UndefinedMetric(
            f"no node's effect exceeds {threshold:g}, so the circuit is empty; the largest is {largest:.3g}, lower the "
            "threshold"
        )
    return masks


def orphans(nodes: list[NodeRecord], edges: list[EdgeRecord]) -> int:
    """Nodes from which no edge leads on."""
    sources = {edge.source for edge in edges}
    return sum(node.id not in sources for node in nodes)
