"""An approximate search asked for by name: how it is made, and a record of what it did and what it cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import GramTable, Screening
from sparsight.evaluation.arms import SEARCHING, Setting, canonical, make_arm
from sparsight.evaluation.reading import row_blocks
from sparsight.evaluation.record import SearchRecord


@dataclass(frozen=True)
class Approximate:
    """Ask pursuits for the approximate search of `sparsight.coding.Screening`, which may choose other atoms.

    Attributes:
        candidates: Atoms of which the next may be chosen between two scans of all.
        scans: Scans of all atoms for a row.
        checked: Rows, spread evenly, coded a second time with the exact search for the record; at least 2.
    """

    candidates: int = 64
    scans: int = 4
    checked: int = 512

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.scans < 1 or self.checked < 2:
            raise ValueError(
                "candidates and scans must be at least 1 and checked at least 2, "
                f"got {self.candidates}, {self.scans} and {self.checked}"
            )


class ApproximateCoder:
    """A pursuit with an approximate search, that can say what the search did and what it cost.

    Args:
        coder: Name of the pursuit.
        setting: Its setting; its own search is the exact one that codes are held against.
        wanted: Which approximate search.
    Raises:
        ValueError: the coder is none of the pursuits.
    """

    def __init__(self, coder: str, setting: Setting, wanted: Approximate) -> None:
        if canonical(coder) not in SEARCHING:
            raise ValueError(f"coder={coder!r} searches no atoms: an approximate search is for {', '.join(SEARCHING)}")
        self._coder, self._wanted = coder, wanted
        self._setting = replace(setting, search=cache(setting.search))
        self.screening = self._screening()
        self._code = make_arm(coder, replace(setting, search=lambda: self.screening))

    def __call__(self, x: Float[Tensor, "n d_in"], budget: Int64[Tensor, " n"]) -> SparseCode:
        return self._code(x, budget)

    def counts(self) -> dict[str, int]:
        """What the search has done so far, to be put back by `screening.count` when a run goes on."""
        report = self.screening.report()
        return {name: getattr(report, name) for name in ("rows", "choices", "scanned", "proven")}

    def record(self, x: Float[Tensor, "n d_in"], budget: Int64[Tensor, " n"]) -> SearchRecord:
        """What the search did so far, and its codes of some rows beside exact ones; those rows are not counted."""
        # Another search of the same kind: this one's counts are of the rows that were asked for.
        again = make_arm(self._coder, replace(self._setting, search=self._screening))
        codes = again(x, budget), make_arm(self._coder, self._setting)(x, budget)
        dictionary, report = self._setting.dictionary, self.screening.report()
        with torch.no_grad():
            lost = [float((x - dictionary.decode(code)).double().square().sum()) for code in codes]
        spread = float((x.double() - x.double().mean(dim=0)).square().sum())
        fvu, exact = (None, None) if spread == 0 else (lost[0] / spread, lost[1] / spread)
        members = [code.support().sort(dim=1).values for code in codes]
        width = max(m.shape[1] for m in members)
        first, second = (torch.nn.functional.pad(m, (width - m.shape[1], 0), value=-1) for m in members)
        return SearchRecord(
            candidates=self._wanted.candidates,
            scans=self._wanted.scans,
            rows=report.rows,
            choices=report.choices,
            scanned=report.scanned,
            proven_share=report.proven_share,
            checked_rows=len(x),
            fvu=fvu,
            fvu_exact=exact,
            fvu_difference=None if fvu is None or exact is None else fvu - exact,
            same_support=float((first == second).all(dim=1).double().mean()) if len(x) else 1.0,
        )

    def _screening(self) -> Screening:
        exact = self._setting.search()
        return Screening(
            self._setting.dictionary.atoms.detach(),
            candidates=self._wanted.candidates,
            scans=self._wanted.scans,
            table=exact if isinstance(exact, GramTable) else None,
        )


class ApproximateCode:
    """The same at one `k` for all rows: from activations to codes."""

    def __init__(self, coder: ApproximateCoder, k: int) -> None:
        self.coder, self.k = coder, k

    def __call__(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        return self.coder(x, self._budget(x))

    def record(self, x: Float[Tensor, "n d_in"]) -> SearchRecord:
        """As `ApproximateCoder.record`."""
        return self.coder.record(x, self._budget(x))

    def _budget(self, x: Tensor) -> Int64[Tensor, " n"]:
        return torch.full((len(x),), self.k, device=x.device)


def spread_rows(read: Callable[[slice], Tensor], n_rows: int, limit: int) -> Float[Tensor, "n d_in"]:
    """About `limit` of `n_rows` rows, spread evenly."""
    return torch.cat([read(block) for block in row_blocks(n_rows, 8, limit)])
