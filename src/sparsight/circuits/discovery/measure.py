"""Whether a circuit does what the model does, and whether the model still does it without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from sparsight.circuits.discovery.changes import Means
from sparsight.circuits.discovery.circuit import Circuit
from sparsight.circuits.discovery.effects import judged_values
from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.nodes import AbstractNodes, Placed, nodes_of
from sparsight.circuits.splice import NodeValues, Splice
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import bootstrap
from sparsight.evaluation.frozen_record import Record
from sparsight.models import LanguageModel, Site

Errors = Literal["as found", "all", "none"]


class Share(Record):
    """A part of what a model does: `(m(kept) - m(nothing)) / (m(model) - m(nothing))`.

    1: all of it; 0: none. Values above 1 are real: what was left out worked against the metric.

    Attributes:
        value: Of the mean metrics.
        low, high: 95 % percentile bootstrap over examples.
        m_kept, m_model, m_nothing: Mean metrics: with some nodes kept, of the model, with every node ablated.
        n_nodes: Nodes kept, errors among them.
        n_errors: Error nodes kept.
        n_examples: Examples measured on.
    """

    value: float
    low: float
    high: float
    m_kept: float
    m_model: float
    m_nothing: float
    n_nodes: int
    n_errors: int
    n_examples: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] with {self.n_nodes} nodes"


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with nodes, examples to measure on, and what nodes are ablated to.

    Attributes:
        lm, nodes, examples: What is run.
        means: By site, goals of ablation; zeros when empty.
        batch_size: Sequences in one pass.
    """

    lm: LanguageModel
    nodes: dict[Site, AbstractNodes]
    examples: Examples
    means: dict[Site, Means]
    batch_size: int = 64

    @staticmethod
    def of(
        circuit: Circuit,
        lm: LanguageModel,
        dictionaries: Placed | Mapping[Site, Placed],
        examples: Examples,
        *,
        batch_size: int = 64,
    ) -> "Bench":
        """For a circuit: ablation goes to what was the mean where it was found, so that nothing leaks from here.

        Raises:
            ValueError: the nodes are not those the circuit was found in, or positions do not match.
        """
        nodes = nodes_of(lm, dictionaries)
        found = {site: (facts.kind, facts.n_nodes) for site, facts in circuit.record.sites.items()}
        here = {str(site): (n.kind, n.n_latents) for site, n in nodes.items()}
        if found != here:
            raise ValueError(f"the circuit was found among {found}, got nodes {here}; give the same dictionaries")
        positions, t = circuit.record.positions, examples.clean.ids.shape[1]
        if positions is not None and positions != t:
            raise ValueError(f"the circuit tells {positions} positions apart, got sequences of {t} tokens")
        return Bench(lm, nodes, examples, circuit.means, batch_size)

    @torch.no_grad()
    def metric(self, kept: Mapping[Site, Tensor] | None) -> Float64[Tensor, " rows"]:
        """The metric of every example with some nodes kept and all others ablated; of the model itself for None."""
        found = []
        for start in range(0, len(self.examples), self.batch_size):
            rows = slice(start, start + self.batch_size)
            tokens = self.examples.clean[rows].to(self.lm.device)
            where = tokens.counted
            change = {
                site: partial(_kept_alone, self.nodes[site], mask.to(self.lm.device), self.means.get(site), where)
                for site, mask in (kept or {}).items()
            }
            splice = Splice({site: self.nodes[site] for site in change}, where=where, change=change)
            edits = splice.edits()
            values = judged_values(self.lm, self.examples, tokens, edits)
            numbers = torch.arange(len(self.examples))[rows].to(values.device)
            found.append(self.examples.metric.of(values, numbers).double().cpu())
        return torch.cat(found)


def _kept_alone(
    nodes: AbstractNodes, kept: Bool[Tensor, "p n"], means: Means | None, where: Bool[Tensor, "b t"], own: NodeValues
) -> NodeValues:
    """Nodes with every one that is not kept at its mean (or at 0), at tokens that are coded.

    What latents that are silent gain by their means is handed to the error, which has room for it. Where everything is
    kept nothing is changed, so that the splice leaves the activation as it is, to the last bit.
    """
    t = own.values.shape[1]
    mask = kept.expand(t, -1) if len(kept) == 1 else kept
    positions = torch.arange(t, device=own.indices.device)[None, :, None].expand_as(own.indices)
    values = own.values.masked_fill(~mask[positions, own.indices], 0)
    gone = ~mask[:, -1][None, :, None] & where[..., None]
    error = own.error.masked_fill(gone, 0)
    if means is not None:
        mean = means.at(t)
        goal = mean.values.to(error).masked_fill(mask[:, :-1], 0) @ nodes.atoms
        error = error + goal * where[..., None] + mean.error.to(error) * gone
    return NodeValues(own.indices, values, error)


def share(
    bench: Bench, kept: Mapping[Site, Tensor], *, seed: int = 0, ends: tuple[Tensor, Tensor] | None = None
) -> Share:
    """The part of the model's metric that some nodes carry, with an interval over examples.

    Args:
        bench: What to measure on.
        kept: Masks by site.
        seed: Of the bootstrap.
        ends: The metric of the model and with nothing kept, where they are known already.
    Raises:
        UndefinedMetric: ablating everything does not change the metric, here or on resampled examples.
    """
    model, nothing = bench_ends(bench) if ends is None else ends
    with_kept = bench.metric(kept)
    sums = torch.stack([with_kept, model, nothing], dim=1)
    means = sums.mean(dim=0).tolist()
    if abs(means[1] - means[2]) < 1e-9 * max(1.0, abs(means[1])):
        raise UndefinedMetric(
            f"ablating every node leaves the metric at {means[1]:.3g}: there is nothing for a circuit to explain"
        )
    n_nodes = sum(int(mask.sum()) for mask in kept.values())
    n_errors = sum(int(mask[:, -1].sum()) for mask in kept.values())
    value = (means[0] - means[2]) / (means[1] - means[2])
    low = high = value
    if len(sums) > 1:
        interval = bootstrap(sums, lambda s: (s[..., 0] - s[..., 2]) / (s[..., 1] - s[..., 2]), seed=seed)
        low, high = interval.low, interval.high
    return Share(
        value=value, low=low, high=high, m_kept=means[0], m_model=means[1], m_nothing=means[2],
        n_nodes=n_nodes, n_errors=n_errors, n_examples=len(sums),
    )  # fmt: skip


def bench_ends(bench: Bench) -> tuple[Float64[Tensor, " rows"], Float64[Tensor, " rows"]]:
    """The metric of the model, and with every node ablated."""
    nothing = {site: torch.zeros(1, n.n_latents + 1, dtype=torch.bool) for site, n in bench.nodes.items()}
    return bench.metric(None), bench.metric(nothing)


def with_errors(kept: Mapping[Site, Tensor], errors: str) -> dict[Site, Tensor]:
    """Masks with all errors kept, none, or those that were found.

    Raises:
        ValueError: `errors` is none of these.
    """
    if errors not in ("as found", "all", "none"):
        raise ValueError(f"errors must be 'as found', 'all' or 'none', got {errors!r}")
    if errors == "as found":
        return dict(kept)
    changed = {site: mask.clone() for site, mask in kept.items()}
    for mask in changed.values():
        mask[:, -1] = errors == "all"
    return changed


def faithfulness(
    circuit: Circuit,
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    examples: Examples,
    *,
    errors: str = "as found",
    batch_size: int = 64,
    seed: int = 0,
) -> Share:
    """How much of what the model does remains when everything outside the circuit is ablated. 1 is all.

    Args:
        circuit: What is kept.
        lm, dictionaries: Those it was found in.
        examples: Others than it was found on.
        errors: Keep error nodes "as found", "all", or "none".
        batch_size: Sequences in one pass.
        seed: Of the bootstrap.
    Raises:
        ValueError: the nodes or positions are not those of the circuit.
        UndefinedMetric: ablating everything does not change the metric.
    """
    bench = Bench.of(circuit, lm, dictionaries, examples, batch_size=batch_size)
    return share(bench, with_errors(circuit.kept, errors), seed=seed)


def completeness(
    circuit: Circuit,
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    examples: Examples,
    *,
    errors: str = "as found",
    batch_size: int = 64,
    seed: int = 0,
) -> Share:
    """How much of what the model does remains when the circuit itself is ablated. 0 is none: nothing was missed.

    Arguments and errors as in `faithfulness`; `errors` says which error nodes the circuit is taken to hold.
    """
    bench = Bench.of(circuit, lm, dictionaries, examples, batch_size=batch_size)
    rest = {site: ~mask for site, mask in with_errors(circuit.kept, errors).items()}
    return share(bench, rest, seed=seed)


def random_nodes(circuit: Circuit, *, seed: int) -> Circuit:
    """As many nodes of each site and kind, drawn among all that have any effect: the matched random baseline."""
    g = torch.Generator().manual_seed(seed)
    masks = {}
    for site, kept in circuit.kept.items():
        drawn = torch.zeros_like(kept)
        for columns in (slice(0, -1), slice(-1, None)):
            wanted, pool = kept[:, columns], circuit.effects[site][:, columns].ne(0).nonzero()
            chosen = pool[torch.randperm(len(pool), generator=g)[: int(wanted.sum())]]
            part = drawn[:, columns]
            part[chosen[:, 0], chosen[:, 1]] = True
        masks[site] = drawn
    return circuit.with_nodes(masks)


def curve(
    circuit: Circuit,
    lm: LanguageModel,
    dictionaries: Placed | Mapping[Site, Placed],
    examples: Examples,
    sizes: Sequence[int],
    *,
    errors: bool = True,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Share]:
    """Faithfulness of the strongest `n` nodes for several `n`.

    Args:
        circuit: Its effects rank the nodes; its own choice of nodes does not matter.
        lm, dictionaries, examples: As in `faithfulness`.
        sizes: Numbers of nodes.
        errors: Whether errors compete for places; if not, they are ablated.
        batch_size: Sequences in one pass.
        seed: Of the bootstrap.
    """
    bench = Bench.of(circuit, lm, dictionaries, examples, batch_size=batch_size)
    ends = bench_ends(bench)
    return [share(bench, circuit.of_size(n, errors=errors).kept, seed=seed, ends=ends) for n in sizes]


def least_size(shares: Sequence[Share], goal: float = 0.8) -> int | None:
    """The number of nodes of the smallest circuit that reaches a faithfulness; None if none does."""
    reached = [found.n_nodes for found in shares if found.value >= goal]
    return min(reached) if reached else None
