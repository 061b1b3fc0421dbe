"""Adding, ablating, keeping and swapping directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.intervention.direction import Direction, as_direction, fitting, orthonormal
from sparsight.intervention.edits import Edits, everywhere
from sparsight.intervention.positions import Where, checked_where
from sparsight.models import LanguageModel, Site
from sparsight.models.site_choice import sites_meant

Directions: TypeAlias = Direction | Tensor | Sequence[Direction | Tensor]
"""One direction, or several whose span is meant."""


@dataclass(frozen=True)
class Gate:
    """Only tokens whose coordinate along a direction exceeds a threshold: `<x, unit> > above`.

    Attributes:
        direction: Along which the coordinate is taken.
        above: In the units of the activations.
    """

    direction: Direction
    above: float

    def opens(self, x: Float[Tensor, "b t d"]) -> Bool[Tensor, "b t 1"]:
        """Which tokens are meant."""
        return ((x @ self.direction.unit.to(x)) > self.above).unsqueeze(-1)


def write_sites(lm: LanguageModel) -> list[Site]:
    """Where a model writes into its residual stream, and where blocks take it in: the sites of directional ablation."""
    there = set(lm.sites())
    wanted = [Site(layer, kind) for layer in range(lm.n_layers) for kind in ("resid_pre", "attn_out", "mlp_out")]
    found = [site for site in [*wanted, Site(lm.n_layers - 1, "resid_post")] if site in there]
    return sorted(found)


def add_direction(
    lm: LanguageModel,
    direction: Direction | Tensor,
    site: Site | str | None = None,
    *,
    strength: float | int = 1.0,
    gate: Gate | None = None,
    where: Where = None,
) -> Edits:
    """`x + strength * direction`: at strength 1 a difference in means moves one class's mean to the other's.

    Args:
        lm: The model.
        direction: With its length.
        site: Where; where it was found, if not given.
        strength: Multiples of the direction's own length.
        gate: Only tokens it opens for; all when None.
        where: Positions; all when None.
    Raises:
        ValueError: the direction is zero or of another width, no site is known, or the strength is not finite.
        DataError: it was found in another model.
    """
    sites = [_site_for(direction, site)]
    vector = fitting(direction, lm, sites).vector
    if not abs(strength) < float("inf"):
        raise ValueError(f"strength must be finite, got {strength}")

    def change(x: Float[Tensor, "b t d"], _: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        edited = x + strength * vector.to(x)
        return edited if gate is None else torch.where(gate.opens(x), edited, x)

    return everywhere(change, sites, checked_where(where), "adding a direction")


def ablate_direction(
    lm: LanguageModel,
    direction: Directions,
    sites: Sequence[Site | str] | None = None,
    *,
    towards: Tensor | None = None,
    gate: Gate | None = None,
    where: Where = None,
) -> Edits:
    """`x - P (x - towards)`, `P` the orthogonal projector on the span of the directions: nothing is left along them.

    Without `towards` this is directional ablation, `x - r r^T x`. With it the coordinates are set to those of a point
    that stands for absence, such as the mean of one class, instead of to 0, which may mean anything.

    Args:
        lm: The model.
        direction: One direction, or several whose span is ablated; their lengths do not matter.
        sites: Where; `write_sites(lm)` when None, so that nothing along them is left anywhere in the stream.
        towards: Activation `[d]` whose coordinates are put in.
        gate: Only tokens it opens for; all when None.
        where: Positions; all when None.
    Raises:
        ValueError: a direction is zero, of another width, or repeats others.
        DataError: it was found in another model.
    Source:
        Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", 2024 (`towards` = 0); Marshall et
        al., "Refusal in LLMs is an Affine Function", 2024.
    """
    places, basis = span_of(lm, direction, sites)
    if towards is not None and towards.shape != basis.shape[1:]:
        raise ValueError(f"towards must be an activation of width {basis.shape[1]}, got {list(towards.shape)}")

    def change(x: Float[Tensor, "b t d"], _: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        rows = basis.to(x)
        off = x if towards is None else x - towards.to(x)
        edited = x - (off @ rows.T) @ rows
        return edited if gate is None else torch.where(gate.opens(x), edited, x)

    return everywhere(change, places, checked_where(where), "ablating a direction")


ablate_subspace = ablate_direction


def project(
    lm: LanguageModel,
    directions: Directions,
    sites: Sequence[Site | str],
    *,
    about: Tensor | None = None,
    where: Where = None,
) -> Edits:
    """`about + P (x - about)`: only what lies along the directions is kept, the rest is `about` (0 when None).

    Raises:
        ValueError, DataError: as `ablate_direction`.
    """
    places, basis = span_of(lm, directions, sites)

    def change(x: Float[Tensor, "b t d"], _: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        rows = basis.to(x)
        if about is None:
            return (x @ rows.T) @ rows
        centre = about.to(x)
        return centre + ((x - centre) @ rows.T) @ rows

    return everywhere(change, places, checked_where(where), "projecting")


def swap_coordinates(
    lm: LanguageModel,
    directions: Directions,
    site: Site | str,
    source: Tensor,
    *,
    rest: bool = False,
    where: Where = None,
) -> Edits:
    """`x + P (source - x)`: the coordinates along the directions are those of another run, all else is this run's.

    Args:
        lm: The model.
        directions: Whose span is swapped.
        site: Where.
        source: Activations of the other run, `[b, t, d]` by position, or `[b, d]` for every position of a row. Tokens
            beyond them are left as they are.
        rest: Swap everything but the coordinates: `x + (1 - P)(source - x)`.
        where: Positions; all when None.
    Raises:
        ValueError: as `ablate_direction`, or the source has another width.
    """
    places, basis = span_of(lm, directions, [site])

    def change(x: Float[Tensor, "b t d"], positions: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        rows = basis.to(x)
        off = _source_at(source, x, positions) - x
        along = (off @ rows.T) @ rows
        return x + (off - along if rest else along)

    _check_source(source, lm.width(places[0]))
    return everywhere(change, places, checked_where(where), "swapping coordinates")


def replace(lm: LanguageModel, site: Site | str, source: Tensor, *, where: Where = None) -> Edits:
    """The activations of another run in place of this run's.

    Args:
        lm: The model.
        site: Where.
        source: `[b, t, d]` by position, or `[b, d]` for every position of a row; tokens beyond them are left.
        where: Positions; all when None.
    Raises:
        ValueError: the source has another width or number of rows.
    """
    place = Site.parse(site)
    _check_source(source, lm.width(place))

    def change(x: Float[Tensor, "b t d"], positions: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        return _source_at(source, x, positions)

    return everywhere(change, [place], checked_where(where), "replacing")


def _check_source(source: Tensor, width: int) -> None:
    if source.dim() not in (2, 3) or source.shape[-1] != width:
        raise ValueError(f"the source must be [b, t, {width}] or [b, {width}], got {list(source.shape)}")


def _source_at(source: Tensor, x: Float[Tensor, "b t d"], positions: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
    """The source's activation at each position; `x` where it has none."""
    if len(source) != len(x):
        raise ValueError(f"the source is for {len(source)} rows, the batch has {len(x)}; give one for each")
    if source.dim() == 2:
        return source.to(x).unsqueeze(1).expand_as(x)
    last = source.shape[1] - 1
    index = positions.clamp_max(last).unsqueeze(-1).expand_as(x)
    return torch.where((positions <= last).unsqueeze(-1), source.to(x).gather(1, index), x)


def _site_for(direction: Direction | Tensor, site: Site | str | None) -> Site:
    if site is not None:
        return Site.parse(site)
    if (found := as_direction(direction).site) is None:
        raise ValueError("the direction does not say where it was found; pass site=, such as '2.resid_post'")
    return found


def span_of(
    lm: LanguageModel, directions: Directions, sites: Sequence[Site | str] | None
) -> tuple[list[Site], Float[Tensor, "k d"]]:
    """The sites of an edit (`write_sites(lm)` when None), and an orthonormal basis that fits them.

    Raises:
        ValueError, DataError: a direction does not fit the model, or repeats others.
    """
    places = write_sites(lm) if sites is None else sites_meant(sites, lm.sites())
    if not places:
        raise ValueError("expected at least one site to edit, got none")
    if isinstance(directions, Direction) or (isinstance(directions, Tensor) and directions.dim() == 1):
        fitting(directions, lm, places)
    else:
        for one in directions:
            fitting(one, lm, places)
    return places, orthonormal(directions)
