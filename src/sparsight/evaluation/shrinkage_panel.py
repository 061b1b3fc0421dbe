"""Where shrinkage is, from sums: by norm, by position, by size of the value, and latent by latent."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import refit
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.joint_scale import JointScaleSums
from sparsight.evaluation.refit_slopes import RefitSlopes
from sparsight.evaluation.shrinkage_panel_record import ShrinkagePanel, Spread, TokenGroup, ValueBin
from sparsight.evaluation.shrinkage_profile import (
    GroupedShrinkageSums,
    ValueProfile,
    equally_frequent,
    norm_deciles,
    norm_group,
)

T = TypeVar("T")

N_GROUPS = 10  # ranges of the norm, and of the values
LATENT_TOKENS = 10  # a latent active less often says nothing about its own scale
SAMPLE_TOKENS = 16_384  # tokens from which the ranges are taken
_POSITIONS = 32  # ranges of the position, each twice as long as the one before


class PanelSums:
    """Sums behind a panel, filled batch by batch.

    Args:
        atoms: Directions of the latents.
        norm_edges: Inner edges of the ranges of the norm, ascending.
        value_edges: Inner edges of the ranges of the values, ascending.
    """

    def __init__(
        self,
        atoms: Float[Tensor, "n_latents d"],
        norm_edges: Float64[Tensor, " edges"],
        value_edges: Float64[Tensor, " value_edges"],
    ) -> None:
        self.atoms = atoms.detach().double()
        self.norm_edges, self.value_edges = norm_edges, value_edges
        self._sums: tuple[GroupedShrinkageSums, GroupedShrinkageSums, ValueProfile, RefitSlopes, JointScaleSums] | None
        self._sums = None
        self.placed = True

    @torch.no_grad()
    def add(self, x: Float[Tensor, "n d"], code: SparseCode, positions: Int64[Tensor, " n"] | None = None) -> None:
        """Add a batch.

        Args:
            x: Activations less what is reconstructed when every latent is silent.
            code: Their code.
            positions: Place of each token in its context; None where it is not known.
        """
        x, code = x.double(), SparseCode(code.indices, code.values.double(), code.n_latents)
        x_hat = code.decode(self.atoms)
        refitted = refit(x, self.atoms, code.support())
        on = code.values != 0
        self.placed = self.placed and positions is not None
        places = (
            torch.zeros(len(x), dtype=torch.int64, device=x.device) if positions is None else positions.to(x.device)
        )
        found = (
            GroupedShrinkageSums.of(x, x_hat, norm_group(x, self.norm_edges), len(self.norm_edges) + 1),
            GroupedShrinkageSums.of(x, x_hat, position_group(places), _POSITIONS),
            ValueProfile.of(refitted.values[on], code.values[on], self.value_edges),
            RefitSlopes.of(code, refitted),
            JointScaleSums.of(x, code, self.atoms),
        )
        old = self._sums
        self._sums = (
            found
            if old is None
            else (old[0] + found[0], old[1] + found[1], old[2] + found[2], old[3] + found[3], old[4] + found[4])
        )

    @property
    def panel(self) -> ShrinkagePanel:
        """What the sums say.

        Raises:
            UndefinedMetric: nothing was added.
        """
        if self._sums is None:
            raise UndefinedMetric("a shrinkage panel of no activations is undefined; add some")
        by_norm, by_position, by_value, slopes, joint = self._sums
        family = _or_none(lambda: by_norm.pooled)
        explained = _or_none(lambda: by_value.explained)
        line = _or_none(lambda: by_value.line)
        often = slopes.n >= LATENT_TOKENS
        return ShrinkagePanel(
            n_tokens=joint.n,
            family=family,
            by_norm=_norm_groups(by_norm, self.norm_edges),
            by_position=_position_groups(by_position) if self.placed else [],
            by_value=_value_bins(by_value),
            slope=None if line is None else line[0],
            intercept=None if line is None else line[1],
            explained_by_factor=None if explained is None else explained[0],
            explained_by_amount=None if explained is None else explained[1],
            refit_slope=spread(slopes.slope[often]),
            joint_scale=spread(joint.scales(self.atoms)[often]),
            n_latents=int(often.sum()),
            scale_gain=None if family is None else family.scale_gain,
            joint_scale_gain=joint.gain(self.atoms),
        )


def panel_of(
    x: Float[Tensor, "n d"],
    code: SparseCode,
    atoms: Float[Tensor, "n_latents d"],
    positions: Int64[Tensor, " n"] | None = None,
) -> ShrinkagePanel:
    """The panel of one batch, with ranges from the batch itself.

    Args:
        x: Activations less what is reconstructed when every latent is silent.
        code: Their code.
        atoms: Directions of the latents.
        positions: Place of each token in its context; None where it is not known.
    Raises:
        UndefinedMetric: there is no activation.
    """
    if not len(x):
        raise UndefinedMetric("a shrinkage panel of no activations is undefined; add some")
    sums = PanelSums(atoms, *ranges(x, code))
    sums.add(x, code, positions)
    return sums.panel


def ranges(
    x: Float[Tensor, "n d"], code: SparseCode
) -> tuple[Float64[Tensor, " edges"], Float64[Tensor, " value_edges"]]:
    """Inner edges of ten equally frequent ranges of the norm, and of the values in use."""
    values = code.values[code.values != 0]
    return norm_deciles(x, N_GROUPS), equally_frequent(values, N_GROUPS)


def position_group(positions: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Range of each place: 0, 1, 2-3, 4-7 and so on are numbers 0, 1, 2, 3."""
    edges = 2 ** torch.arange(_POSITIONS - 1, device=positions.device)
    return torch.bucketize(positions, edges, right=True)


def spread(values: Float64[Tensor, " n"]) -> Spread | None:
    """Median and outer percentiles by nearest rank; None of nothing."""
    if not len(values):
        return None
    ordered = values.sort().values
    at = [float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for share in (0.5, 0.05, 0.95)]
    return Spread(median=at[0], p5=at[1], p95=at[2])


def _norm_groups(sums: GroupedShrinkageSums, edges: Tensor) -> list[TokenGroup]:
    ends: list[float | None] = [None, *edges.tolist(), None]
    return [
        TokenGroup(low=low, high=high, n_tokens=n, family=family)
        for low, high, n, family in zip(ends, ends[1:], sums.n.tolist(), sums.values, strict=False)
    ]


def _position_groups(sums: GroupedShrinkageSums) -> list[TokenGroup]:
    return [
        TokenGroup(low=float(2**i // 2), high=float(max(0, 2**i - 1)), n_tokens=n, family=family)
        for i, (n, family) in enumerate(zip(sums.n.tolist(), sums.values, strict=True))
        if n
    ]


def _value_bins(profile: ValueProfile) -> list[ValueBin]:
    """The profile is of refitted values, in ranges of the code's own."""
    ends: list[float | None] = [None, *profile.edges.tolist(), None]
    rows = zip(profile.n.tolist(), profile.sum_should.tolist(), profile.sum_value.tolist(), strict=True)
    return [
        ValueBin(
            low=ends[i],
            high=ends[i + 1],
            n_values=n,
            value=own / n if n else None,
            refitted=best / n if n else None,
            ratio=own / best if best != 0 else None,
            difference=(own - best) / n if n else None,
        )
        for i, (n, own, best) in enumerate(rows)
    ]


def _or_none(compute: Callable[[], T]) -> T | None:
    try:
        return compute()
    except UndefinedMetric:
        return None
