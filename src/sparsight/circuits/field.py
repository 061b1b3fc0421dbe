"""A metric as a function of where on a straight path the nodes of one site, or of several, are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.circuits.metric import Bench
from sparsight.circuits.nodes import AbstractNodes, DictionaryNodes
from sparsight.circuits.splice import NodeValues, Splice
from sparsight.models import Edit, Replacement, Site


@dataclass(frozen=True)
class Standing:
    """Dictionaries that stand in the model while others' nodes are changed, without their errors or with clean ones.

    Attributes:
        nodes: By site.
        errors: Errors of the clean run at each site; None: they are dropped.
        where: Tokens that are coded.
    """

    nodes: Mapping[Site, AbstractNodes]
    errors: Mapping[Site, Tensor] | None
    where: Bool[Tensor, "b t"]

    def splice(self, rows: Int64[Tensor, " m"], without: set[Site]) -> Splice:
        """The splice of some rows; sites in `without` are left to others."""
        nodes = {site: at for site, at in self.nodes.items() if site not in without}
        if self.errors is None:
            return Splice(nodes, where=self.where[rows], error="dropped")
        change = {site: partial(self._hold, self.errors[site][rows], self.where[rows]) for site in nodes}
        return Splice(nodes, where=self.where[rows], error="detached", change=change)

    @staticmethod
    def _hold(error: Tensor, where: Tensor, found: NodeValues) -> NodeValues:
        """The clean error in place of the present one, where there is a code."""
        return NodeValues(found.indices, found.values, torch.where(where.unsqueeze(-1), error, found.error))


@dataclass(frozen=True)
class Field:
    """`m(alpha)`: the metric with `start + alpha * way` at every moved site.

    Attributes:
        bench: The model, the metric and the sequences.
        start: Activations at the moved sites where alpha is 0.
        way: By how much they change until alpha is 1.
        standing: Dictionaries standing in the model; those of moved sites make way.
        stream: The residual stream in front of the moved sites, which does not change: passes begin there.
    """

    bench: Bench
    start: Mapping[Site, Tensor]
    way: Mapping[Site, Tensor]
    standing: Standing | None = None
    stream: Mapping[Site, Tensor] = field(default_factory=dict)
    _keys: dict[Site, Tensor] = field(default_factory=dict)

    @property
    def is_gated(self) -> bool:
        """Whether a code is computed between the moved sites and the metric, so that gates can flip on the way."""
        return self.standing is not None and any(site not in self.start for site in self.standing.nodes)

    def edits(self, rows: Int64[Tensor, " m"], placed: Mapping[Site, Tensor]) -> tuple[dict[Site, Edit], Splice | None]:
        """Edits that put given activations at the moved sites, and the splice of what stands elsewhere."""
        put: dict[Site, Edit] = {site: Replacement(value[rows]) for site, value in self.stream.items()}
        put |= {site: Replacement(value) for site, value in placed.items()}
        if self.standing is None:
            return put, None
        splice = self.standing.splice(rows, without=set(self.start))
        return splice.edits(put), splice

    def measure(self, rows: Int64[Tensor, " m"], alphas: Float64[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The metric of rows, each at its own place on the path, in batches, without gradients."""
        with torch.no_grad():
            parts = [self._run(r, a)[0] for r, a in self.batches(rows, alphas)]
        return torch.cat(parts)

    def measure_states(
        self, rows: Int64[Tensor, " m"], alphas: Float64[Tensor, " m"]
    ) -> tuple[Float64[Tensor, " m"], Int64[Tensor, " m"]]:
        """The metric, and a number that differs where the active latents of standing dictionaries differ."""
        metrics, states = [], []
        with torch.no_grad():
            for r, a in self.batches(rows, alphas):
                metric, splice = self._run(r, a)
                metrics.append(metric.double().cpu())
                states.append(self._state(splice, len(r)))
        return torch.cat(metrics), torch.cat(states)

    def gradients(
        self,
        rows: Int64[Tensor, " m"],
        alphas: Float64[Tensor, " m"],
        weights: Float64[Tensor, " m"],
        *,
        into: Int64[Tensor, " m"] | None = None,
        n: int | None = None,
    ) -> dict[Site, Tensor]:
        """Weighted sums of the gradients of the metric by the activations, at every moved site.

        Args:
            rows, alphas, weights: Sequence, place on its path and weight of each gradient.
            into: Which sum each is part of, of `n`; by default there is one for each sequence.
        Returns:
            `[n, t, d]` at every moved site.
        """
        into = rows if into is None else into
        total = {site: way.new_zeros(len(way) if n is None else n, *way.shape[1:]) for site, way in self.way.items()}
        for r, a, w, number in self.batches(rows, alphas, weights, into):
            leaves = self.places(r, a)
            with torch.enable_grad():
                for leaf in leaves.values():
                    leaf.requires_grad_()
                metric = self.bench.measure(r, self.edits(r, leaves)[0])
                found = self.bench.gradients(metric, list(leaves.values()))
            for site, gradient in zip(leaves, found, strict=True):
                total[site].index_add_(0, number.to(gradient.device), gradient * w.to(gradient).view(-1, 1, 1))
        return total

    def batches(self, *columns: Tensor) -> list[tuple[Tensor, ...]]:
        """Columns of equal length, cut into batches that one pass takes."""
        return list(zip(*[torch.split(column, self.bench.batch_size) for column in columns], strict=True))

    def _run(self, rows: Tensor, alphas: Tensor) -> tuple[Tensor, Splice | None]:
        edits, splice = self.edits(rows, self.places(rows, alphas))
        return self.bench.measure(rows, edits), splice

    def places(self, rows: Int64[Tensor, " m"], alphas: Float64[Tensor, " m"]) -> dict[Site, Tensor]:
        """Activations at the moved sites, each row at its own place on the path."""
        return {
            site: start[rows] + alphas.to(start).view(-1, 1, 1) * self.way[site][rows]
            for site, start in self.start.items()
        }

    def _state(self, splice: Splice | None, n: int) -> Tensor:
        """A sum of random numbers, one for each active latent at each token: a hash of the active set."""
        state = torch.zeros(n, dtype=torch.int64)
        for site, found in ({} if splice is None else splice.found).items():
            assert splice is not None
            if not isinstance(splice.nodes[site], DictionaryNodes):
                continue  # always there: neurons, directions, smoothed gates
            keys = self._key(site, splice.nodes[site].n_latents)
            t = found.indices.shape[1]
            places = torch.arange(t, device=keys.device).mul(2654435761 * 2).add(1)  # odd: multiplying loses nothing
            named = keys[found.indices.to(keys.device)] * places[None, :, None]
            state = state + (named * (found.values != 0).to(keys.device)).sum(dim=(1, 2))
        return state

    def _key(self, site: Site, n_latents: int) -> Tensor:
        if site not in self._keys:
            generator = torch.Generator().manual_seed(len(self._keys))
            self._keys[site] = torch.randint(-(2**62), 2**62, (n_latents,), generator=generator)
        return self._keys[site]
