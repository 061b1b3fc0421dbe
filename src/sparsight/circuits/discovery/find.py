"""Finding a circuit."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sparsight.circuits.discovery.changes import Ablation, mean_nodes
from sparsight.circuits.discovery.circuit import (
    Circuit,
    CircuitRecord,
    EdgeRecord,
    SiteRecord,
    above,
    id_of,
    node_records,
    orphans,
    strongest,
)
from sparsight.circuits.discovery.effects import Key, Path, edge_effects, node_effects
from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.nodes import AbstractNodes, DictionaryNodes, Placed, nodes_of
from sparsight.models import LanguageModel, Site


def find_circuit(
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    examples: Examples,
    *,
    node_threshold: float | int = 0.1,
    edge_threshold: float | int = 0.01,
    max_nodes: int | None = None,
    aggregation: Literal["sum", "none"] = "sum",
    ablation: Ablation | None = None,
    steps: int = 4,
    edges: bool = True,
    batch_size: int = 32,
    progress: bool = False,
) -> Circuit:
    """The latents that matter for a metric, and how they act on one another.

    Effects and edges are taken along one path, by one rule (`sparsight.circuits.discovery.effects`). A node belongs to
    the circuit if its mean effect over the examples exceeds a threshold in absolute value; an edge if its mean weight
    does and both its ends belong. What a dictionary leaves unexplained is a node like any other, one for each site (and
    position): it is counted, and it can be left out when the circuit is measured.

    Args:
        lm: The model.
        dictionaries: By site; a transcoder at the one it writes at. Also neurons or directions (`NeuronNodes`,
            `DirectionNodes`), the baselines.
        examples: Sequences with their metric, with pairs or without.
        node_threshold, edge_threshold: Least absolute mean effect and weight, in units of the metric.
        max_nodes: At most this many, those with the largest effects.
        aggregation: "sum": a latent is one node, whatever the position. "none": one node for each position, for
            templates of one length.
        ablation: What nodes go to: "paired" to those of the pair, "mean" to their mean over the pairs (over the
            examples where there are none), "zero". By default "paired" where there are pairs, else "mean". When a
            circuit is measured, "paired" means the mean over the pairs. Means are taken at each position where all
            examples are of one length, else over all positions.
        steps: Midpoints of the path; 0 takes gradients at the clean end.
        edges: Whether to take edges: one backward pass for each node, batch and point.
        batch_size: Sequences in one pass.
        progress: Show a bar on stderr.
    Raises:
        ValueError: a wrong argument, nodes that do not fit the model, or pairs that are missing.
        UndefinedMetric: no node exceeds the threshold, or the metric is NaN.
    Source:
        Marks et al., "Sparse Feature Circuits", 2024. We depart from it: midpoints for the left rule; the same averaged
        gradient and the same ablation for nodes and edges; one threshold on means over examples for both.
    """
    if aggregation not in ("sum", "none"):
        raise ValueError(f"aggregation must be 'sum' or 'none', got {aggregation!r}")
    nodes = nodes_of(lm, dictionaries)
    _check(nodes)
    if ablation is None:
        ablation = "mean" if examples.patch is None else "paired"
    by_position = aggregation == "none"
    path = Path(ablation, steps, by_position, batch_size)
    templates = len(torch.unique(examples.clean.mask.sum(dim=1))) == 1
    means = mean_nodes(lm, nodes, examples, by_position=templates, batch_size=batch_size)
    effects = node_effects(lm, nodes, examples, means, path, progress=progress)
    sites = {str(site): SiteRecord(kind=n.kind, n_nodes=n.n_latents) for site, n in nodes.items()}
    positions = examples.clean.ids.shape[1] if by_position else None
    masks = _chosen(effects, float(node_threshold), max_nodes)
    found = node_records(sites, effects, masks, positions)
    drawn: list[EdgeRecord] = []
    if edges:
        targets = {site: [(p, c) for p, c in mask.nonzero().tolist()] for site, mask in masks.items()}
        weights = edge_effects(lm, nodes, examples, means, path, targets, progress=progress)
        drawn = _edges(weights, masks, float(edge_threshold), sites, positions)
    record = CircuitRecord(
        model=lm.name,
        sites=sites,
        ablation=ablation,
        steps=steps,
        positions=positions,
        n_examples=len(examples),
        node_threshold=float(node_threshold),
        edge_threshold=float(edge_threshold),
        nodes=found,
        edges=drawn,
        n_orphans=orphans(found, drawn),
    )
    return Circuit(record, effects, {} if ablation == "zero" else means)


def _chosen(effects: Mapping[Site, Tensor], threshold: float, max_nodes: int | None) -> dict[Site, Tensor]:
    """At each site the nodes whose effect exceeds the threshold, or of these the strongest of all sites."""
    masks = above(effects, threshold)
    if max_nodes is None:
        return masks
    largest = strongest(effects, max_nodes)
    return {site: mask & largest[site] for site, mask in masks.items()}


def _edges(
    weights: Mapping[Key, Mapping[Site, Tensor]],
    masks: Mapping[Site, Tensor],
    threshold: float,
    sites: Mapping[str, SiteRecord],
    positions: int | None,
) -> list[EdgeRecord]:
    """Edges between chosen nodes whose weight exceeds the threshold, strongest first."""
    drawn = []
    for key, by_parent in weights.items():
        target = id_of(key, sites, positions)
        for parent, values in by_parent.items():
            for p, c in (masks[parent] & (values.abs() > threshold)).nonzero().tolist():
                source = id_of((parent, p, c), sites, positions)
                drawn.append(EdgeRecord(source=source, target=target, weight=float(values[p, c])))
    return sorted(drawn, key=lambda edge: (-abs(edge.weight), edge.source, edge.target))


def _check(nodes: Mapping[Site, AbstractNodes]) -> None:
    """Refuse what has a part that is neither latent, error nor constant, so that no node would stand for it."""
    for site, one in nodes.items():
        if isinstance(one, DictionaryNodes) and getattr(one.dictionary, "W_skip", None) is not None:
            raise ValueError(
                f"the transcoder at {site} has a skip, which is no node: a circuit of its latents would leave out what "
                "passes beside them; use one without"
            )
