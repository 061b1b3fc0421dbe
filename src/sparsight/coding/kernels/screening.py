"""Approximate search, by name only: look at all atoms a few times, and at a short list of candidates in between."""

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Bool, Float, Float32, Int64
from torch import Tensor

from sparsight.coding.arguments import LONGEST_ATOM, rounding_floor
from sparsight.coding.kernels.gram import GramTable
from sparsight.coding.kernels.search import ChosenAtoms, Search, block_bytes

# Atoms that are first looked at together, by their maximum, when candidates are sought.
GROUP = 16
# Rounding of both vectors to bfloat16, and of the product (summed in float32), relative to the product of their norms.
BFLOAT_ROUNDING = 3.1 * 2.0**-9


@dataclass(frozen=True)
class ScreeningReport:
    """What an approximate search did, over all calls so far.

    Attributes:
        candidates: Atoms kept per row between two scans.
        scans: Scans of all atoms planned for a row.
        rows: Rows searched for.
        choices: Steps of rows that were still alive, each with one choice.
        scanned: Choices made right after a scan of all atoms.
        proven: Choices whose score exceeds a bound on every atom outside the candidates.
    """

    candidates: int
    scans: int
    rows: int
    choices: int
    scanned: int
    proven: int

    @property
    def proven_share(self) -> float:
        """Fraction of choices proven to be those of an exact search; 1 where nothing was chosen."""
        return self.proven / self.choices if self.choices else 1.0


class Screening:
    """An approximate search to hand to the pursuits; it keeps count of what it did.

    All atoms are scored only `scans` times in `k` steps, in bfloat16; in between only the best `candidates` of the last
    scan can be chosen. Inner products that weights are computed from stay in the precision of the activations: the
    support may differ from that of an exact search, the weights on it are as good. A row without promising candidates
    is scanned again before it ends. The steps of the scans depend on `k`, so a larger `k` does not extend the code of a
    smaller one.

    Attributes:
        atoms: A copy of the atoms, to notice when a coder is called with others.
        low: The same in bfloat16, padded with zeros to a multiple of `GROUP` rows.
        table: All inner products; without them scores are products with the candidates' atoms, which is slower.
    """

    def __init__(
        self,
        atoms: Float[Tensor, "n_latents d"],
        *,
        candidates: int = 64,
        scans: int = 4,
        table: GramTable | None = None,
    ) -> None:
        if candidates < 1 or scans < 1:
            raise ValueError(f"candidates and scans must be at least 1, got {candidates} and {scans}")
        if table is not None:
            table.check(atoms)
            table.exact  # noqa: B018  made now rather than in the first call
        n_latents, d = atoms.shape
        self.atoms: Float[Tensor, "n_latents d"] = atoms.detach().clone() if table is None else table.atoms
        self.low: BFloat16[Tensor, "padded d"] = torch.zeros(
            -(-n_latents // GROUP) * GROUP, d, dtype=torch.bfloat16, device=atoms.device
        )
        self.low[:n_latents] = self.atoms
        self.table = table
        self.candidates = candidates
        self.scans = scans
        self._counts = dict.fromkeys(("rows", "choices", "scanned", "proven"), 0)

    def report(self) -> ScreeningReport:
        """What was done since this search was made."""
        return ScreeningReport(self.candidates, self.scans, **self._counts)

    def count(self, **counts: int) -> None:
        """Add to what `report` says."""
        for name, value in counts.items():
            self._counts[name] += value

    def check(self, atoms: Float[Tensor, "n_latents d"]) -> None:
        """Refuse atoms other than those this was made of."""
        if self.atoms.shape != atoms.shape or not torch.equal(self.atoms, atoms):
            raise ValueError(
                f"the screening is of {list(self.atoms.shape)} atoms that differ from the {list(atoms.shape)} given; "
                "make a new Screening after the atoms change"
            )

    def scan_steps(self, k: int) -> frozenset[int]:
        """Steps that begin with a scan: closer together at first, where more is at stake."""
        return frozenset(int(k * (scan / self.scans) ** 1.25) for scan in range(self.scans))

    def block_rows(self, k: int) -> int:
        """Rows in a block so that what is kept of them stays near the cache."""
        n_latents, d = self.atoms.shape
        kept = max(k, 1) * d if self.table is not None else (max(k, 1) + self.candidates) * d
        room = block_bytes(self.atoms.device)
        return max(1, min(2 * room // (kept * self.atoms.element_size()), room // (4 * n_latents), 2**16))


class ScreenedSearch(Search):
    """Answers for one block of rows from the candidates of the last scan.

    With a table, a candidate's score is that of the scan less `sum_i p_i <d_c, d_i>`, where `p` are the changes of the
    weights since; without one it is the inner product of its atom with the residual. The chosen atom's own score is
    computed afresh in the precision of `x`. Of an atom outside the candidates we know that it scored at most the lowest
    candidate in the scan, and that the residual has moved by `|sum_i p_i d_i|` since: a higher score is proven best.
    """

    def __init__(
        self, x: Float[Tensor, "b d"], screening: Screening, k: int, *, nonnegative: bool, repeats: bool
    ) -> None:
        n_latents = screening.atoms.shape[0]
        self.x = x
        self.screening = screening
        self.nonnegative = nonnegative
        self.repeats = repeats
        self.steps = screening.scan_steps(k)
        # Never fewer candidates than choices between two scans.
        self.width = min(n_latents, max(screening.candidates, k))
        self.chosen = ChosenAtoms(x, screening.atoms, k)
        self.norms: Tensor = torch.linalg.vector_norm(x, dim=1)
        self.products = x.new_zeros(len(x), k if screening.table is not None else 0, self.width)
        screening.count(rows=len(x))

    def best(
        self,
        indices: Int64[Tensor, "b t"],
        values: Float[Tensor, "b t"],
        gram: Float[Tensor, "b t t"] | None,
        alive: Bool[Tensor, " b"],
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        t = indices.shape[1]
        residual = self.chosen.residual(values) if t in self.steps or self.screening.table is None else None
        fresh = t in self.steps
        if fresh:
            self._scan(indices, values, residual)
        elif self.screening.table is not None:
            self._remember(indices, slice(t - 1, t))
        index, score = self._pick(indices, values, residual)
        floor = rounding_floor(self.x.dtype) * self.norms
        if not fresh and bool((alive & (self._ranked(score) <= floor)).any()):
            fresh = True
            residual = self.chosen.residual(values)
            self._scan(indices, values, residual)
            index, score = self._pick(indices, values, residual)
        made = alive & (self._ranked(score) > floor)
        choices, proven = int(made.sum()), int((made & self._proven(score, values, gram)).sum())
        self.screening.count(choices=choices, scanned=choices if fresh else 0, proven=proven)
        return index, score

    def add(
        self, indices: Int64[Tensor, "b t"], chosen: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        table, t = self.screening.table, indices.shape[1]
        if table is None:
            return self.chosen.add(t, chosen)
        index, atom, known, products = self.found
        assert index is chosen
        self.chosen.slots[:, t] = atom
        own = table.look_up(chosen, chosen.unsqueeze(1))
        return torch.cat([products, own], dim=1), known

    def _scan(
        self, indices: Int64[Tensor, "b t"], values: Float[Tensor, "b t"], residual: Float[Tensor, "b d"] | None
    ) -> None:
        """Score all atoms roughly; keep the best, their scores, and a bound on the others."""
        assert residual is not None
        scores = residual.to(torch.bfloat16) @ self.screening.low.T
        n_latents = self.screening.atoms.shape[0]
        never = -torch.inf if self.nonnegative else 0.0
        scores[:, n_latents:] = never
        if not self.repeats:
            scores.scatter_(1, indices, never)
        self.members, others = _largest(scores if self.nonnegative else scores.abs(), self.width)
        # Where fewer atoms than candidates are left, padding is among them.
        self.done = self.members >= n_latents
        self.members.clamp_max_(n_latents - 1)
        self.base = scores.gather(1, self.members).to(self.x.dtype)
        self.error = BFLOAT_ROUNDING * LONGEST_ATOM * torch.linalg.vector_norm(residual, dim=1)
        # Nothing is left out where every atom is a candidate.
        self.others = others + self.error if self.width < n_latents else torch.full_like(self.error, -torch.inf)
        self.then = values.clone()
        if not self.repeats:
            self.done |= (self.members.unsqueeze(2) == indices.unsqueeze(1)).any(dim=2)
        if self.screening.table is None:
            self.vectors = self.screening.atoms.index_select(0, self.members.view(-1)).view(len(scores), self.width, -1)
        else:
            self._remember(indices, slice(0, indices.shape[1]))

    def _remember(self, indices: Int64[Tensor, "b t"], slots: slice) -> None:
        """Look up the inner products of the atoms in some slots with the candidates."""
        table, some = self.screening.table, indices[:, slots]
        assert table is not None
        if some.numel() == 0:
            return
        members = self.members.unsqueeze(1).expand(-1, some.shape[1], -1).reshape(-1, self.width)
        self.products[:, slots] = table.look_up(some.reshape(-1), members).view(*some.shape, self.width)

    def _pick(
        self, indices: Int64[Tensor, "b t"], values: Float[Tensor, "b t"], residual: Float[Tensor, "b d"] | None
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        """The best candidate of each row, and its score in the precision of `x`."""
        table, t = self.screening.table, indices.shape[1]
        if table is None:
            assert residual is not None
            scores = torch.bmm(residual.unsqueeze(1), self.vectors.transpose(1, 2)).squeeze(1)
        elif t == 0:
            scores = self.base
        else:
            scores = torch.baddbmm(
                self.base.unsqueeze(1), self._pending(values).unsqueeze(1), self.products[:, :t], alpha=-1
            ).squeeze(1)
        ranked = self._ranked(scores).masked_fill(self.done, -torch.inf)
        best, places = ranked.topk(min(2, self.width), dim=1)
        index = self.members.gather(1, places[:, :1]).squeeze(1)
        if not self.repeats:
            self.done.scatter_(1, places[:, :1], True)
        if table is None:
            self.rivals = torch.full_like(self.error, -torch.inf)
            return index, scores.gather(1, places[:, :1]).squeeze(1)
        # Scores of candidates began in bfloat16: the second may truly be the first.
        self.rivals = best[:, -1] + self.error if self.width > 1 else torch.full_like(self.error, -torch.inf)
        atom = self.screening.atoms.index_select(0, index)
        self.found = index, atom, (atom * self.x).sum(dim=1), table.look_up(index, indices)
        return index, self.found[2] - (self.found[3] * values).sum(dim=1)

    def _pending(self, values: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """What the weights have changed by since the last scan."""
        pending = values.clone()
        pending[:, : self.then.shape[1]] -= self.then
        return pending

    def _ranked(self, scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return scores if self.nonnegative else scores.abs()

    def _proven(
        self, score: Float[Tensor, " b"], values: Float[Tensor, "b t"], gram: Float[Tensor, "b t t"] | None
    ) -> Bool[Tensor, " b"]:
        """Which rows' choices no other free atom can beat."""
        pending = self._pending(values)
        moved = pending.abs().sum(dim=1)
        if gram is not None and pending.shape[1] > 0:
            square = (torch.bmm(pending.unsqueeze(1), gram).squeeze(1) * pending).sum(dim=1).clamp_min(0)
            slack = 2 * torch.finfo(gram.dtype).eps * self.x.shape[1] * moved.square()
            moved = torch.minimum(moved, (square + slack).sqrt())
        bound = torch.maximum(self.others + moved * LONGEST_ATOM, self.rivals)
        return self._ranked(score) >= bound


def _largest(ranked: Float[Tensor, "b padded"], width: int) -> tuple[Int64[Tensor, "b width"], Float32[Tensor, " b"]]:
    """Columns with some of the largest entries, nearly all of the `width` largest; and a bound on the entries left out.

    The largest maxima of groups are found first and only their members are sorted.
    """
    n_rows, columns = ranked.shape
    n_groups = max(width // 2, -(-width // GROUP))
    if n_groups >= columns // GROUP:
        kept = ranked.float().topk(width, dim=1)
        return kept.indices, kept.values[:, -1]
    grouped = ranked.view(n_rows, -1, GROUP)
    maxima = grouped.amax(dim=2).float().topk(n_groups, dim=1)
    inside = grouped.gather(1, maxima.indices.unsqueeze(2).expand(-1, -1, GROUP)).reshape(n_rows, -1).float()
    kept = inside.topk(width, dim=1)
    members = maxima.indices.gather(1, kept.indices // GROUP) * GROUP + kept.indices % GROUP
    return members, torch.maximum(kept.values[:, -1], maxima.values[:, -1])
