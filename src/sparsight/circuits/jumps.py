"""Integrated gradients through gates: where they flip, what that does to the metric, and which nodes caused it.

Between flips the metric is smooth, and an integral of its gradient is the difference it makes. At a flip of a gate that
jumps it is not: the derivative misses the jump, however many points are taken. So every flip is enclosed between two
points of the path that are apart by rounding only; what the metric does between them is the jump. Ever steeper smooth
gates in its place would hand the jump to the nodes in proportion to how each moves the gate's pre-activation `z`:

    share of node j = jump * (dz / d node_j * change_j) / sum over nodes of the same

Every smooth piece is checked: the integral over it must be the difference of the metric between its ends. Where it is
not, the piece is halved and looked at again; a gate that flips and flips back between two points is found that way.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.circuits.field import Field
from sparsight.circuits.gates import crossing, gates_of
from sparsight.circuits.nodes import DictionaryNodes
from sparsight.circuits.quadrature import GAUSS_POINTS, points
from sparsight.models import Site

# Halvings of the path after which two points are a flip's two sides: closer ones meet in rounding.
HALVINGS = {torch.float64: 44, torch.float32: 19}
# A piece whose integral does not come out is halved at most this often.
MOST_ROUNDS = 24
LEAST_POINTS = 4
COLUMNS = ("rows", "begins", "ends", "metrics", "states", "parts")


@dataclass(frozen=True)
class Cuts:
    """Parts of paths: smooth pieces, or flips.

    Attributes:
        rows: Sequence of each.
        begins, ends: Alphas.
        metrics: The metric at either.
        states: Which latents are active at either, as a number.
        parts: Smooth neighbours with the same number here are one piece.
    """

    rows: Int64[Tensor, " p"]
    begins: Float64[Tensor, " p"]
    ends: Float64[Tensor, " p"]
    metrics: Float64[Tensor, "p 2"]
    states: Int64[Tensor, "p 2"]
    parts: Int64[Tensor, " p"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> "Cuts":
        return Cuts(**{name: getattr(self, name)[which] for name in COLUMNS})

    @property
    def rise(self) -> Float64[Tensor, " p"]:
        """By how much the metric rises."""
        return self.metrics[:, 1] - self.metrics[:, 0]

    @property
    def flips(self) -> Bool[Tensor, " p"]:
        """Where the active latents differ between the ends."""
        return self.states[:, 0] != self.states[:, 1]

    @staticmethod
    def cat(cuts: list["Cuts"]) -> "Cuts":
        return Cuts(**{name: torch.cat([getattr(each, name) for each in cuts]) for name in COLUMNS})

    def halved(self, field: Field) -> "Cuts":
        """Both halves of each."""
        middle = (self.begins + self.ends) / 2
        metric, state = field.measure_states(self.rows, middle)
        first = Cuts(
            self.rows,
            self.begins,
            middle,
            torch.stack([self.metrics[:, 0], metric], dim=1),
            torch.stack([self.states[:, 0], state], dim=1),
            self.parts,
        )
        second = Cuts(
            self.rows,
            middle,
            self.ends,
            torch.stack([metric, self.metrics[:, 1]], dim=1),
            torch.stack([state, self.states[:, 1]], dim=1),
            self.parts,
        )
        return Cuts.cat([first, second])


@dataclass(frozen=True)
class Integral:
    """The mean gradient along the paths, jumps included.

    Attributes:
        gradients: At each moved site: times what a node changes, its effect.
        n_flips: Flips of each sequence.
    """

    gradients: dict[Site, Tensor]
    n_flips: Int64[Tensor, " b"]


def integrate(field: Field, n: int, grid: int) -> Integral:
    """The integral of the gradient along the path of every sequence, and the jumps on it.

    Args:
        field: The metric along the path.
        n: Number of sequences.
        grid: Equal intervals in which flips are looked for at first.
    Raises:
        ValueError: the latents of a dictionary on the way are chosen by a pursuit, which has no gates.
    """
    for site, nodes in [] if field.standing is None else field.standing.nodes.items():
        if site not in field.start:
            gates_of(nodes)
    total = {site: torch.zeros_like(way) for site, way in field.way.items()}
    n_flips = torch.zeros(n, dtype=torch.int64)
    pieces = _grid(field, n, grid)
    for i in range(MOST_ROUNDS):
        smooth, flips = _apart(field, pieces)
        n_flips += torch.bincount(flips.rows, minlength=n)
        _add_jumps(field, flips, total)
        failed = _add_smooth(field, smooth, grid, total, last=i == MOST_ROUNDS - 1)
        if len(failed) == 0:
            break
        halves = failed.halved(field)
        pieces = replace(halves, parts=torch.arange(len(halves)))
    return Integral(total, n_flips)


def _grid(field: Field, n: int, grid: int) -> Cuts:
    """Equal intervals of every path."""
    alphas = torch.linspace(0, 1, grid + 1, dtype=torch.float64)
    rows = torch.arange(n).repeat_interleave(grid + 1)
    metric, state = (v.view(n, grid + 1) for v in field.measure_states(rows, alphas.repeat(n)))
    return Cuts(
        torch.arange(n).repeat_interleave(grid),
        alphas[:-1].repeat(n),
        alphas[1:].repeat(n),
        torch.stack([metric[:, :-1].flatten(), metric[:, 1:].flatten()], dim=1),
        torch.stack([state[:, :-1].flatten(), state[:, 1:].flatten()], dim=1),
        torch.arange(n).repeat_interleave(grid),
    )


def _apart(field: Field, pieces: Cuts) -> tuple[Cuts, Cuts]:
    """The smooth pieces, neighbours joined, and the flips between them, each as narrow as numbers allow."""
    dtype = next(iter(field.start.values())).dtype
    narrow = 2.0 ** -HALVINGS.get(dtype, HALVINGS[torch.float32])
    smooth, open_ = [pieces[~pieces.flips]], pieces[pieces.flips]
    done = [open_[:0]]
    while len(open_) > 0:
        is_narrow = open_.ends - open_.begins <= narrow
        done.append(open_[is_narrow])
        halves = open_[~is_narrow].halved(field) if not bool(is_narrow.all()) else open_[:0]
        smooth.append(halves[~halves.flips])
        open_ = halves[halves.flips]
    return _joined(Cuts.cat(smooth)), Cuts.cat(done)


def _joined(pieces: Cuts) -> Cuts:
    """Pieces of one part that touch, as one."""
    if len(pieces) == 0:
        return pieces
    pieces = pieces[(pieces.begins + 2 * pieces.rows.double()).argsort()]
    new = torch.ones(len(pieces), dtype=torch.bool)
    new[1:] = (pieces.begins[1:] != pieces.ends[:-1]) | (pieces.parts[1:] != pieces.parts[:-1])
    first = new.nonzero()[:, 0]
    last = torch.cat([first[1:] - 1, torch.tensor([len(pieces) - 1])])
    return Cuts(
        pieces.rows[first],
        pieces.begins[first],
        pieces.ends[last],
        torch.stack([pieces.metrics[first, 0], pieces.metrics[last, 1]], dim=1),
        torch.stack([pieces.states[first, 0], pieces.states[last, 1]], dim=1),
        pieces.parts[first],
    )


def _add_smooth(field: Field, pieces: Cuts, grid: int, total: dict[Site, Tensor], *, last: bool) -> Cuts:
    """Add the integrals over smooth pieces; those that do not come out are given back (none at last)."""
    precision = torch.finfo(next(iter(field.start.values())).dtype).eps ** (2 / 3)
    failed = [pieces[:0]]
    for begin in range(0, len(pieces), field.bench.batch_size):
        some = pieces[begin : begin + field.bench.batch_size]
        found = _piecewise(field, some, grid)
        rise = torch.zeros(len(some), dtype=torch.float64)
        for site, gradient in found.items():
            rise += (gradient * field.way[site][some.rows]).double().sum(dim=(1, 2)).cpu()
        off = (rise - some.rise).abs()
        good = off <= precision * (1 + some.metrics.abs().amax(dim=1))
        good |= last
        for site, gradient in found.items():
            total[site].index_add_(0, some.rows[good].to(gradient.device), gradient[good])
        failed.append(some[~good])
    return Cuts.cat(failed)


def _piecewise(field: Field, pieces: Cuts, grid: int) -> dict[Site, Tensor]:
    """The integral of the gradient over each piece, by a Gauss rule."""
    columns = []
    lengths = pieces.ends - pieces.begins
    for i, (begin, length) in enumerate(zip(pieces.begins.tolist(), lengths.tolist(), strict=True)):
        steps = min(GAUSS_POINTS, max(LEAST_POINTS, round(grid * length)))
        alphas, weights = points("gauss", steps)
        columns.append(torch.stack([torch.full_like(alphas, i), begin + alphas * length, weights * length]))
    number, alphas, weights = torch.cat(columns, dim=1)
    return field.gradients(pieces.rows[number.long()], alphas, weights, into=number.long(), n=len(pieces))


def _add_jumps(field: Field, flips: Cuts, total: dict[Site, Tensor]) -> None:
    """Add `jump * dz/dx / (dz/dx · way)` for every flip: its product with what a node changes is the node's share.

    A jump at which no node moves the gate is nobody's; the residual of completeness shows it.
    """
    half = max(1, field.bench.batch_size // 2)
    for first in range(0, len(flips), half):
        some = flips[first : first + half]
        leaves, z = _crossings(field, some)
        found = [g[: len(some)] for g in field.bench.gradients(z, list(leaves.values()))]
        slope = torch.zeros(len(some), dtype=torch.float64)
        for site, gradient in zip(leaves, found, strict=True):
            slope += (gradient * field.way[site][some.rows]).sum(dim=(1, 2)).double().cpu()
        known = slope != 0
        share = torch.where(known, some.rise / torch.where(known, slope, 1.0), 0.0)
        for site, gradient in zip(leaves, found, strict=True):
            rows = some.rows.to(gradient.device)
            total[site].index_add_(0, rows, gradient * share.to(gradient).view(-1, 1, 1))


def _crossings(field: Field, flips: Cuts) -> tuple[dict[Site, Tensor], Float[Tensor, " m"]]:
    """What crosses 0 at each flip, as a function of the activations at the moved sites.

    Of everything that differs between the two sides of a flip the earliest site's latents caused the rest.
    """
    m = len(flips)
    both = torch.cat([flips.rows, flips.rows])
    # A little further apart than they were found: rounding differs from batch to batch, and could hide the flip.
    apart = 64 * (flips.ends - flips.begins)
    alphas = torch.cat([flips.begins - apart, flips.ends + apart])
    with torch.enable_grad():
        leaves = {site: place.requires_grad_() for site, place in field.places(both, alphas).items()}
        edits, splice = field.edits(both, leaves)
        assert splice is not None
        field.bench.measure(both, edits)
        # 0, and in the graph, where nothing is found to have flipped.
        z: list[Tensor] = [next(iter(leaves.values())).flatten()[0] * 0] * m
        open_ = torch.ones(m, dtype=torch.bool)
        for site, nodes in splice.nodes.items():
            if not isinstance(nodes, DictionaryNodes):
                continue
            found = splice.found[site]
            active = NodeStates(found.indices, found.values != 0)
            for i in open_.nonzero()[:, 0].tolist():
                tokens = active.differ(i, m + i)
                if len(tokens) == 0:
                    continue
                open_[i] = False
                gates = gates_of(nodes)
                states = [active.dense(row, tokens, nodes.n_latents) for row in (i, m + i)]
                z[i] = crossing(gates, splice.read[site][i, tokens], states[0], states[1])
    return leaves, torch.stack(z)


@dataclass(frozen=True)
class NodeStates:
    """Which latents are active, by slot."""

    indices: Int64[Tensor, "b t k"]
    active: Tensor

    def differ(self, a: int, b: int) -> Int64[Tensor, " s"]:
        """Tokens at which two sequences have different active latents."""
        named = [(self.indices[i] + 1) * self.active[i] for i in (a, b)]
        return (named[0].sort(dim=1).values != named[1].sort(dim=1).values).any(dim=1).nonzero()[:, 0]

    def dense(self, row: int, tokens: Tensor, n_latents: int) -> Tensor:
        """One column per latent, of some tokens of a sequence."""
        on = torch.zeros(len(tokens), n_latents, device=tokens.device)
        return on.scatter_add_(1, self.indices[row, tokens], self.active[row, tokens].to(on)) > 0
