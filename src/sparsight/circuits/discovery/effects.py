"""Effects of nodes on a metric, and of nodes on nodes: one path, one gradient rule, for both.

All sites go together from their clean activations to their ablated ones, `x(a) = x + a * way`. At each point of the
path the gradient of the metric by the activation of every site is taken through the model itself, as if nothing stood
at the other sites. With `g` these gradients, averaged over points where a mean is written,

    effect(d)    = mean_a  g_d(a) . (change of d)
    edge(u -> d) = mean_a  g_d(a) . (d d / d u)(a) (change of u)

for nodes `d` and `u`: the edge replaces the change of `d` by what the change of `u` makes of it, to first order and by
the direct path alone, and is the effect's own summand. In a linear model the edges into a node, those from errors
counted, add up to its effect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.circuits.discovery.changes import Ablation, Change, Means, changes, nodes_at
from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.splice import NodeValues
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.reading import reported
from sparsight.models import Edit, LanguageModel, Replacement, Site, Tokens

CUTS = ("resid_pre", "resid_mid", "resid_post")
"""Kinds of sites that everything behind them comes through."""

Key = tuple[Site | None, int, int]
"""Site, position and column of a node; (None, 0, 0) is the metric."""


@dataclass(frozen=True)
class Path:
    """How effects are taken.

    Attributes:
        ablation: What nodes go to.
        steps: Midpoints of the path; 0 takes the clean end alone (attribution patching).
        by_position: Whether nodes at different positions are different nodes.
        batch_size: Sequences in one pass.
    """

    ablation: Ablation
    steps: int
    by_position: bool
    batch_size: int

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError(
                f"steps must be at least 0 and batch_size at least 1, got {self.steps} and {self.batch_size}"
            )

    @property
    def points(self) -> list[float]:
        return [0.0] if self.steps == 0 else [(i + 0.5) / self.steps for i in range(self.steps)]


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of a batch, with what ablation does to them.

    Attributes:
        tokens: The sequences.
        rows: Their numbers among the examples.
        changes: By site.
        ways: By site, what the whole change comes to.
    """

    tokens: Tokens
    rows: Int64[Tensor, " b"]
    changes: dict[Site, Change]
    ways: dict[Site, Tensor]

    def state(self, site: Site, point: float) -> Float[Tensor, "b t d"]:
        return self.changes[site].start + point * self.ways[site]


def batches_of(
    lm: LanguageModel, nodes: Mapping[Site, AbstractNodes], examples: Examples, means: Mapping[Site, Means], path: Path
) -> list[slice]:
    """Slices of the examples, checked once: positions can only be told apart in sequences of one length."""
    lengths = examples.clean.mask.sum(dim=1)
    if path.by_position and len(torch.unique(lengths)) != 1:
        raise ValueError(
            f"positions can be told apart in templates of one length only, got lengths {int(lengths.min())} to "
            f"{int(lengths.max())}; use aggregation='sum'"
        )
    if path.ablation == "paired" and examples.patch is None:
        raise ValueError("ablation='paired' needs pairs; give patch sequences, or use 'mean' or 'zero'")
    return [slice(i, i + path.batch_size) for i in range(0, len(examples), path.batch_size)]


def batch_at(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    examples: Examples,
    rows: slice,
    means: Mapping[Site, Means],
    path: Path,
) -> Batch:
    """The batch of some rows, with the changes of every site."""
    tokens = examples.clean[rows].to(lm.device)
    patch = None if examples.patch is None else examples.patch[rows].to(lm.device)
    made = changes(lm, nodes, tokens, patch, means, path.ablation)
    numbers = torch.arange(len(examples))[rows].to(lm.device)
    return Batch(tokens, numbers, made, {site: change.way for site, change in made.items()})


def metric_gradients(
    lm: LanguageModel, examples: Examples, batch: Batch, point: float
) -> dict[Site, Float[Tensor, "b t d"]]:
    """Gradient of the metric by every site's activation where all sites are at a point of the path.

    Raises:
        UndefinedMetric: the metric is NaN or infinite there.
        ValueError: it is not one number per sequence.
    """
    written: dict[Site, Tensor] = {}

    def place(site: Site, x: Tensor) -> Tensor:
        y = batch.state(site, point) + (x - x.detach())
        if not y.requires_grad:
            y.requires_grad_()
        written[site] = y
        return y

    edits: dict[Site, Edit] = {site: partial(place, site) for site in batch.changes}
    values = judged_values(lm, examples, batch.tokens, edits)
    metric = examples.metric.of(values, batch.rows)
    sites = sorted(written)
    found = torch.autograd.grad(metric.sum(), [written[s] for s in sites], allow_unused=True)
    return {s: torch.zeros_like(written[s]) if g is None else g for s, g in zip(sites, found, strict=True)}


def judged_values(
    lm: LanguageModel, examples: Examples, tokens: Tokens, edits: Mapping[Site, Edit]
) -> Float[Tensor, "b t v"]:
    """What the metric is a function of: logits, or the activations it reads."""
    reads = examples.metric.reads
    return lm.logits(tokens, edits=edits) if reads is None else lm.activations(tokens, [reads], edits=edits)[reads]


def node_effects(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    examples: Examples,
    means: Mapping[Site, Means],
    path: Path,
    *,
    progress: bool = False,
) -> dict[Site, Float64[Tensor, "p n"]]:
    """Mean over examples of every node's effect: by site, a row for each position or one for all, errors last."""
    found: dict[Site, Tensor] = {}
    with reported("node effects", len(examples), shown=progress) as advance:
        for rows in batches_of(lm, nodes, examples, means, path):
            batch = batch_at(lm, nodes, examples, rows, means, path)
            for point in path.points:
                for site, gradient in metric_gradients(lm, examples, batch, point).items():
                    effect = batch.changes[site].along(gradient, by_position=path.by_position).cpu()
                    share = effect / (len(path.points) * len(examples))
                    found[site] = found[site] + share if site in found else share
            advance(len(batch.tokens))
    return found


def parents_of(sites: Sequence[Site], target: Site | None) -> list[Site]:
    """Sites whose nodes reach a site directly: those behind the last one that everything comes through, and that one.

    Args:
        sites: Where nodes stand.
        target: A site, or None for what comes out of the model.
    """
    before = [site for site in sorted(sites) if target is None or site < target]
    cuts = [i for i, site in enumerate(before) if site.kind in CUTS]
    return before[cuts[-1] :] if cuts else before


def edge_effects(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    examples: Examples,
    means: Mapping[Site, Means],
    path: Path,
    targets: Mapping[Site, Sequence[tuple[int, int]]],
    *,
    progress: bool = False,
) -> dict[Key, dict[Site, Float64[Tensor, "p n"]]]:
    """Mean over examples of the edges into some nodes, and into the metric.

    One backward pass for each target, batch and point gives the edges from all its parents.

    Args:
        lm, nodes, examples, means, path: As for `node_effects`.
        targets: By site, (position, column) of the nodes whose incoming edges are wanted.
        progress: Show a bar on stderr.
    Returns:
        By (site, position, column), and (None, 0, 0) for the metric: by parent site the same array as effects have.
    """
    found: dict[Key, dict[Site, Tensor]] = {}
    order: list[Site | None] = [*sorted(site for site, wanted in targets.items() if wanted), None]
    with reported("edges", len(examples) * len(order), shown=progress) as advance:
        for rows in batches_of(lm, nodes, examples, means, path):
            batch = batch_at(lm, nodes, examples, rows, means, path)
            for point in path.points:
                gradients = metric_gradients(lm, examples, batch, point)
                for site in order:
                    for key, by_parent in _into(lm, nodes, examples, batch, point, gradients, path, site, targets):
                        kept = found.setdefault(key, {})
                        for parent, effect in by_parent.items():
                            share = effect.cpu() / (len(path.points) * len(examples))
                            kept[parent] = kept[parent] + share if parent in kept else share
            advance(len(batch.tokens) * len(order))
    return found


def _into(
    lm: LanguageModel,
    nodes: Mapping[Site, AbstractNodes],
    examples: Examples,
    batch: Batch,
    point: float,
    gradients: Mapping[Site, Tensor],
    path: Path,
    site: Site | None,
    targets: Mapping[Site, Sequence[tuple[int, int]]],
) -> list[tuple[Key, dict[Site, Tensor]]]:
    """Edges into the targets of one site, or into the metric, at one point of the path."""
    parents = parents_of(list(nodes), site)
    if not parents:
        return []
    leaves = {p: batch.state(p, point).detach().requires_grad_() for p in parents}
    # Each parent stands on its own, whatever is before it: only direct paths remain, and sites further up have none.
    edits: dict[Site, Edit] = {parent: Replacement(leaf) for parent, leaf in leaves.items()}
    found: list[tuple[Key, dict[Site, Tensor]]] = []
    if site is None:
        metric = examples.metric.of(judged_values(lm, examples, batch.tokens, edits), batch.rows).sum()
        scores: list[tuple[Key, Tensor]] = [((None, 0, 0), metric)]
    else:
        own = nodes_at(lm, {site: nodes[site]}, batch.tokens, edits)[site].nodes
        scores = _scores(nodes[site], own, gradients[site], site, targets[site], path.by_position)
    for key, score in scores:
        pulled = (
            torch.autograd.grad(score, list(leaves.values()), retain_graph=True, allow_unused=True)
            if score.requires_grad
            else [None] * len(leaves)
        )
        by_parent = {
            p: batch.changes[p].along(g, by_position=path.by_position)
            for p, g in zip(leaves, pulled, strict=True)
            if g is not None
        }
        found.append((key, by_parent))
    return found


def _scores(
    nodes: AbstractNodes,
    own: NodeValues,
    gradient: Float[Tensor, "b t d"],
    site: Site,
    wanted: Sequence[tuple[int, int]],
    by_position: bool,
) -> list[tuple[Key, Tensor]]:
    """`g . (node as a function of its inputs)` of each target, summed over the batch (and over positions)."""
    dense = own.to_dense(nodes.n_latents)
    scores: list[tuple[Key, Tensor]] = []
    for position, column in wanted:
        if column == nodes.n_latents:
            part = (gradient * own.error).sum(dim=2)
        else:
            part = (gradient @ nodes.atoms[column]) * dense[..., column]
        scores.append(((site, position, column), part[:, position].sum() if by_position else part.sum()))
    return scores


def largest(effects: Mapping[Site, Float64[Tensor, "p n"]]) -> float:
    """The largest absolute effect of any node."""
    if not effects:
        raise UndefinedMetric("there are no nodes; give dictionaries at one site at least")
    return max(float(values.abs().max()) for values in effects.values())
