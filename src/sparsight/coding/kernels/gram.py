"""Exact search without a dense product per step: rough scores follow the weights, and a bound proves the choice."""

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float16, Float32, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import LONGEST_ATOM
from sparsight.coding.kernels.compiled import is_used
from sparsight.coding.kernels.search import Search, block_bytes
from sparsight.coding.kernels.swept_table import GROUP, SINGLE_ROUNDING, SweptTable

# Slots whose change of weight is applied in one step; what remains pending goes into the bound.
APPLIED_PER_STEP = 3
# Groups in one row that may still hold the winner before the row is scanned afresh.
MOST_GROUPS = 32
HALF_ROUNDING = 2.0**-11
TINY_HALF = 2.0**-22
# Changes beyond this stay pending, so that sums of table rows stay far from the largest half-precision number.
LARGEST_CHANGE = 8000.0


class GramTable:
    """Inner products between all atoms, for use in many calls: exact ones to look up, rough ones to sweep over.

    Takes `6 n_latents^2` bytes for float32 atoms, 100 MB at 4,096 latents and 1.6 GB at 16,384; a third of that where
    the search runs in compiled code, which computes the exact ones afresh.

    Args:
        atoms: Unit rows.
        compiled: Whether pursuits with this table run in compiled code; by default where that is available and the
            dictionary is large (`docs/coding.md`).
    Attributes:
        atoms: A copy of the atoms, to notice when a coder is called with others.
        swept: What compiled code needs; None where it is not used, and what follows is made instead.
        exact: Inner products in the precision of the atoms.
        rough: The same rounded to half precision; columns padded with zeros to a multiple of `GROUP`.
        coherence: Largest magnitude of an inner product of each atom with another one in each group.
    """

    def __init__(self, atoms: Float[Tensor, "n_latents d"], *, compiled: bool | None = None) -> None:
        self.atoms: Float[Tensor, "n_latents d"] = atoms.detach().clone().contiguous()
        compiled = is_used(atoms) if compiled is None else compiled
        self.swept = SweptTable(self.atoms) if compiled else None
        if self.swept is None:
            self.rough  # noqa: B018  made now rather than in the first call

    @cached_property
    def exact(self) -> Float[Tensor, "n_latents n_latents"]:
        return self.atoms @ self.atoms.T

    @property
    def rough(self) -> Float16[Tensor, "n_latents padded"]:
        return self._halves[0]

    @property
    def coherence(self) -> Float32[Tensor, "n_latents groups"]:
        return self._halves[1]

    @cached_property
    def _halves(self) -> tuple[Float16[Tensor, "n_latents padded"], Float32[Tensor, "n_latents groups"]]:
        n_latents = self.atoms.shape[0]
        padded = -(-n_latents // GROUP) * GROUP
        rough = torch.zeros(n_latents, padded, dtype=torch.float16, device=self.atoms.device)
        coherence = torch.zeros(n_latents, padded // GROUP, device=self.atoms.device)
        rows = max(1, 2**22 // n_latents)
        for start in range(0, n_latents, rows):
            rough[start : start + rows, :n_latents] = self.exact[start : start + rows]
            others = rough[start : start + rows].float()
            others.diagonal(offset=start).zero_()
            lowest, highest = others.view(len(others), -1, GROUP).aminmax(dim=2)
            # What rounding to half precision can have taken off.
            coherence[start : start + rows] = torch.maximum(-lowest, highest) * (1 + 2 * HALF_ROUNDING) + TINY_HALF
        return rough, coherence

    def look_up(self, atoms: Int64[Tensor, " p"], others: Int64[Tensor, "p t"]) -> Float[Tensor, "p t"]:
        """Exact inner products of each atom with its row of others."""
        # One flat index: several times faster than a pair of index tensors.
        places = torch.add(others, atoms.unsqueeze(1), alpha=self.exact.shape[1])
        return self.exact.view(-1).index_select(0, places.view(-1)).view(places.shape)

    def check(self, atoms: Float[Tensor, "n_latents d"]) -> None:
        """Refuse atoms other than those the table was made of."""
        if self.atoms.shape != atoms.shape or not torch.equal(self.atoms, atoms):
            raise ValueError(
                f"the Gram table is of {list(self.atoms.shape)} atoms that differ from the {list(atoms.shape)} given; "
                "make a new GramTable after the atoms change"
            )


class GramSearch(Search):
    """Keeps every score up to a known error, and scores exactly the few atoms that may be best.

    Let `s` be the true scores `<d_j, x - sum_i z_i d_i>`. The kept scores `s~` start as the dense product with `x` and
    lose `u_i <d_j, d_i>` when a weight's change `u_i` is applied to them, from the table's row `i`. In each step only
    the `APPLIED_PER_STEP` most important changes are applied. For every atom `j` outside the support

        |s_j - s~_j| <= min( sum_i |p_i| c_i(j) ,  |sum_i p_i d_i| ) + rounding,

    with `p_i` the changes still pending and `c_i(j)` the largest `|<d_i, d_l>|` over the other atoms `l` in the group
    of `j`; the second bound is Cauchy-Schwarz's. The rounding of the table, of the rows taken from it and of the
    running sums is bounded beside it. Now score one atom exactly, the one with the largest `s~`: no atom with `s~_j`
    below that score less its bound can win. The others, few, are found by the maxima of their groups and scored
    exactly; the best exact score wins, the lowest index among equals. Where more than `MOST_GROUPS` groups are left,
    the row is scanned by a dense product and its errors start anew.

    Deciding scores, and inner products handed to the coder, are in the precision of `x`; what is rough only ever rules
    atoms out. So the choice is that of `DenseSearch`, up to ties within the rounding of one score.
    """

    def __init__(
        self,
        x: Float[Tensor, "b d"],
        table: GramTable,
        k: int,
        *,
        nonnegative: bool,
        repeats: bool,
    ) -> None:
        n_rows, d = x.shape
        self.table = table
        self.x = x
        self.nonnegative = nonnegative
        self.repeats = repeats
        self.norms: Tensor = torch.linalg.vector_norm(x, dim=1).float()
        self.target = x @ table.atoms.T
        self.scores = torch.full((n_rows, table.rough.shape[1]), self._never, device=x.device)
        self.scores[:, : self.target.shape[1]] = self.target
        self.applied = torch.zeros(n_rows, k, device=x.device)
        # How much was applied in all: what the rounding of the table was multiplied with.
        self.travelled = torch.zeros(n_rows, k, device=x.device)
        # Relative rounding of an inner product, and of the sums and differences that follow.
        self.rounding = SINGLE_ROUNDING * (d + 2 * k)

    @property
    def _never(self) -> float:
        """A kept score that cannot win: -inf where the largest wins, 0 where the largest magnitude does."""
        return -torch.inf if self.nonnegative else 0.0

    def add(
        self, indices: Int64[Tensor, "b t"], chosen: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        members = torch.cat([indices, chosen.unsqueeze(1)], dim=1)
        return self.table.look_up(chosen, members), self.target.gather(1, chosen.unsqueeze(1)).squeeze(1)

    def best(
        self,
        indices: Int64[Tensor, "b t"],
        values: Float[Tensor, "b t"],
        gram: Float[Tensor, "b t t"] | None,
        alive: Bool[Tensor, " b"],
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        self._follow(indices, values)
        error = self._error(indices, values, gram)
        groups = self._group_maxima(indices)
        index = self._largest_kept(groups)
        score = self._exact(torch.arange(len(index), device=index.device), index, indices, values)
        # Only atoms whose kept score reaches this can win; all can where no kept score singles out a free atom.
        rank = self._ranked(score).float().masked_fill(self._taken(index, indices), -torch.inf)
        threshold = rank.unsqueeze(1) - error
        open_groups = (groups >= threshold) & alive.unsqueeze(1)
        afresh = open_groups.sum(dim=1) > MOST_GROUPS
        if bool(afresh.any()):
            open_groups &= ~afresh.unsqueeze(1)
            index[afresh], score[afresh] = self._scan(afresh, indices[afresh], values[afresh])
        rows, candidates = self._contested(open_groups, threshold, indices)
        if len(rows) > 0:
            exact = self._exact(rows, candidates, indices, values)
            self._decide(rows, candidates, exact, index, score)
        return index, score

    def _exact(
        self,
        rows: Int64[Tensor, " p"],
        atoms: Int64[Tensor, " p"],
        indices: Int64[Tensor, "b t"],
        values: Float[Tensor, "b t"],
    ) -> Float[Tensor, " p"]:
        """Scores of single atoms in the precision of `x`: `<d_j, x> - sum_i z_i <d_j, d_i>`."""
        products = self.table.look_up(atoms, indices.index_select(0, rows))
        return self.target[rows, atoms] - (products * values.index_select(0, rows)).sum(dim=1)

    def _follow(self, indices: Int64[Tensor, "b t"], values: Float[Tensor, "b t"]) -> None:
        """Apply the most important pending changes to the kept scores."""
        t = indices.shape[1]
        if t == 0:
            return
        pending = values.float() - self.applied[:, :t]
        slots = pending.abs().topk(min(APPLIED_PER_STEP, t), dim=1).indices
        # Rounded to the table's precision first: what is applied is then known exactly.
        change = pending.gather(1, slots).clamp(-LARGEST_CHANGE, LARGEST_CHANGE).half()
        self.scores.sub_(_weighted_rows(self.table.rough, indices.gather(1, slots), change))
        change = change.float()
        self.applied.scatter_add_(1, slots, change)
        self.travelled.scatter_add_(1, slots, change.abs())

    def _error(
        self, indices: Int64[Tensor, "b t"], values: Float[Tensor, "b t"], gram: Float[Tensor, "b t t"] | None
    ) -> Float32[Tensor, "b groups"]:
        """Bound on how far the kept scores in each group are from the true ones."""
        t = indices.shape[1]
        size, travelled = values.float().abs().sum(dim=1), self.travelled[:, :t]
        least = 2 * self.rounding * LONGEST_ATOM * (self.norms + size + travelled.sum(dim=1)) + (t + 1) * TINY_HALF
        if t == 0:
            return least.unsqueeze(1).expand(-1, self.table.coherence.shape[1])
        pending = values.float() - self.applied[:, :t]
        bound = _weighted_rows(self.table.coherence, indices, pending.abs())
        if gram is not None:
            square = (torch.bmm(pending.unsqueeze(1), gram.float()).squeeze(1) * pending).sum(dim=1).clamp_min(0)
            # The square of a short sum of long terms is known only to their rounding.
            slack = 2 * self.rounding * pending.abs().sum(dim=1).square()
            length = (square + slack).sqrt() * LONGEST_ATOM
            bound = torch.minimum(bound, length.unsqueeze(1))
        # The table's entries are rounded once; their weighted sum may be after each term.
        passes = HALF_ROUNDING * (APPLIED_PER_STEP + 2)
        bound += passes * _weighted_rows(self.table.coherence, indices, travelled)
        if self.repeats:  # an atom that may come again also feels its own changes, by its squared norm
            least = least + (pending.abs() + passes * travelled).sum(dim=1) * LONGEST_ATOM**2
        return bound + least.unsqueeze(1)

    def _ranked(self, scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return scores if self.nonnegative else scores.abs()

    def _group_maxima(self, indices: Int64[Tensor, "b t"]) -> Float[Tensor, "b groups"]:
        if not self.repeats:
            self.scores.scatter_(1, indices, self._never)
        grouped = self._grouped
        if self.nonnegative:
            return grouped.amax(dim=2)
        return torch.maximum(grouped.amax(dim=2), -grouped.amin(dim=2))

    @property
    def _grouped(self) -> Float32[Tensor, "b groups members"]:
        return self.scores.view(self.scores.shape[0], self.table.coherence.shape[1], GROUP)

    def _largest_kept(self, groups: Float[Tensor, "b groups"]) -> Int64[Tensor, " b"]:
        group = groups.argmax(dim=1)
        rows = torch.arange(len(group), device=group.device)
        inside = self._ranked(self._grouped[rows, group])
        # Padding ties with masked atoms where everything is masked: stay among the atoms.
        return (group * GROUP + inside.argmax(dim=1)).clamp_max(self.target.shape[1] - 1)

    def _scan(
        self, rows: Bool[Tensor, " b"], indices: Int64[Tensor, "a t"], values: Float[Tensor, "a t"]
    ) -> tuple[Int64[Tensor, " a"], Float[Tensor, " a"]]:
        """Dense scores of some rows, which also replace the kept ones; their best atoms and scores."""
        t, n_latents = indices.shape[1], self.target.shape[1]
        x_hat = SparseCode(indices, values, n_latents).decode(self.table.atoms)
        scores = (self.x[rows] - x_hat) @ self.table.atoms.T
        if not self.repeats:
            scores.scatter_(1, indices, self._never)
        kept, applied = self.scores[rows], self.applied[rows]
        kept[:, :n_latents] = scores.float()
        applied[:, :t] = values.float()
        self.scores[rows], self.applied[rows], self.travelled[rows] = kept, applied, 0.0
        ranked = self._ranked(scores)
        if not self.repeats:
            ranked = ranked.scatter(1, indices, -torch.inf)
        index = ranked.argmax(dim=1)
        return index, scores.gather(1, index.unsqueeze(1)).squeeze(1)

    def _taken(self, atoms: Int64[Tensor, " p"], indices: Int64[Tensor, "p t"]) -> Bool[Tensor, " p"]:
        """Which of the atoms may not be chosen, being in the support."""
        if self.repeats:
            return torch.zeros_like(atoms, dtype=torch.bool)
        return (atoms.unsqueeze(1) == indices).any(dim=1)

    def _contested(
        self,
        open_groups: Bool[Tensor, "b groups"],
        threshold: Float32[Tensor, "b groups"],
        indices: Int64[Tensor, "b t"],
    ) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
        """Rows and atoms above the threshold in open groups, for rows that have more than one."""
        rows, groups = open_groups.nonzero(as_tuple=True)
        inside = self._ranked(self._grouped[rows, groups])
        pair, member = (inside >= threshold[rows, groups].unsqueeze(1)).nonzero(as_tuple=True)
        rows, atoms = rows[pair], groups[pair] * GROUP + member
        several = (torch.bincount(rows, minlength=len(threshold)) > 1)[rows]
        rows, atoms = rows[several], atoms[several]
        # Padding and atoms of the support reach a threshold below zero.
        free = (atoms < self.target.shape[1]) & ~self._taken(atoms, indices[rows])
        return rows[free], atoms[free]

    def _decide(
        self,
        rows: Int64[Tensor, " p"],
        atoms: Int64[Tensor, " p"],
        exact: Float[Tensor, " p"],
        index: Int64[Tensor, " b"],
        score: Float[Tensor, " b"],
    ) -> None:
        """Write the best candidate of each row into `index` and `score`, the lowest atom among equals."""
        ranked = self._ranked(exact)
        best = torch.full_like(score, -torch.inf).scatter_reduce_(0, rows, ranked, "amax")
        none = self.target.shape[1]
        lowest = torch.full_like(index, none)
        lowest.scatter_reduce_(0, rows, atoms.masked_fill(ranked != best[rows], none), "amin")
        winning = atoms == lowest[rows]
        index[rows[winning]] = atoms[winning]
        score[rows[winning]] = exact[winning]


def _weighted_rows(
    table: Float[Tensor, "n_latents columns"], indices: Int64[Tensor, "b t"], weights: Float[Tensor, "b t"]
) -> Float[Tensor, "b columns"]:
    """`sum_i weights_i table[indices_i]` for each row."""
    return torch.nn.functional.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


def gram_block_rows(n_latents: int, like: Float[Tensor, "..."]) -> int:
    """Rows in a block so that the scores of all its atoms, true at the start and kept, stay in the cache."""
    most = 1024 if like.device.type == "cpu" else 2**16
    return max(1, min(2 * block_bytes(like.device) // (n_latents * (like.element_size() + 6)), most))
