"""What a dictionary reads and what it is to reconstruct: the same rows, another site, or several side by side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, JointNormalization, Place, TranscoderDictionary
from sparsight.dictionaries.base import columns_of
from sparsight.errors import DataError
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.reading import StoredActivations, part_of, same_model, site_for
from sparsight.evaluation.record import Estimate, SiteRecord
from sparsight.evaluation.sums import Frame, Rows, frame_over
from sparsight.evaluation.token_policy import TokenPolicy
from sparsight.models import Site


@dataclass(frozen=True)
class Reading:
    """Where rows come from.

    Attributes:
        part: Rows, tokens and contexts of the (first) store.
        site: What is reconstructed there; of a crosscoder, its first site.
        reads: What is coded, where that is another site of the same store.
        parts: For several sites: the store of each, in order; empty for one.
        places: For several sites: where they are, in order.
        weights: For several sites: what each is multiplied with, so that all weigh alike.
    """

    part: StoredActivations
    site: Site
    reads: Site | None = None
    parts: tuple[StoredActivations, ...] = ()
    places: tuple[Place, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def columns(self) -> list[slice]:
        """Columns of each of several sites; none for one site."""
        return columns_of([place.width for place in self.places])

    @property
    def model(self) -> str:
        """Name of the model, or of all."""
        return ", ".join(dict.fromkeys(part.model for part in (self.part, *self.parts)))

    def weigh(self, y: Float[Tensor, "... d_out"]) -> Float[Tensor, "... d_out"]:
        """Each of several sites in units in which they weigh alike."""
        if not self.weights:
            return y
        widths = torch.tensor([place.width for place in self.places])
        return y * torch.tensor(self.weights, dtype=y.dtype).repeat_interleave(widths).to(y.device)

    def rows(self, block: slice, device: torch.device) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """What is coded, and what should be made of it."""
        if self.parts:
            sites = [part.rows(p.site, block) for part, p in zip(self.parts, self.places, strict=True) if p.site]
            x = torch.cat(sites, dim=1).to(device)
            return x, self.weigh(x)
        y = self.part.rows(self.site, block).to(device)
        return (y if self.reads is None else self.part.rows(self.reads, block).to(device)), y

    def facts(self, block: slice, y: Float[Tensor, "n d"], policy: TokenPolicy, longest: float, by: list[str]) -> Rows:
        """What is known of the tokens of a block; `by` names the labels that are needed."""
        tokens = self.part.tokens(block)
        labels = self.part.labels(block) if by else {}
        kinds = policy.kinds(y, tokens.positions, longest)
        return Rows(tokens.document_ids, tokens.positions, kinds, {name: labels[name] for name in by})

    def frame(
        self,
        blocks: list[slice],
        device: torch.device,
        advance: Callable[[int], None],
        policy: TokenPolicy | None = None,
    ) -> Frame:
        """The first pass over what is to be reconstructed; over it again where outlying tokens do not count.

        Raises:
            UndefinedMetric: no token counts.
        """
        policy = policy or TokenPolicy()

        def batches(longest: float | None) -> Iterator[Tensor]:
            for block in blocks:
                y = self.rows(block, device)[1]
                advance(block.stop - block.start)
                if policy.left_out:
                    places = self.part.tokens(block).positions
                    kinds = policy.kinds(y, places, float("inf") if longest is None else longest)
                    y = y[policy.counted(kinds)]
                yield y

        frame = frame_over(batches(None), policy.outlier_norm)
        if policy.outliers:
            return frame
        return replace(frame_over(batches(frame.longest)), longest=frame.longest)


def reading_of(
    dictionary: AbstractDictionary,
    store: StoredActivations | Sequence[StoredActivations],
    split: str,
    site: Site | str | None,
    *,
    force: bool = False,
) -> Reading:
    """Find in one or several stores what a dictionary reads and writes.

    Raises:
        ValueError: widths differ, a site is not named, or numbers of stores and sites differ.
        DataError: a store lacks a site or the split, rows are not the same tokens, or the dictionary was made for
            another site or model.
    """
    stores = [store] if isinstance(store, StoredActivations) else list(store)
    if isinstance(dictionary, TranscoderDictionary):
        return _of_transcoder(dictionary, _only(stores), split, site, force=force)
    if dictionary.places:
        return _of_crosscoder(dictionary, stores, split, force=force)
    part = part_of(_only(stores), split)
    return Reading(part, site_for(dictionary, part, site, force=force))


def _only(stores: list[StoredActivations]) -> StoredActivations:
    if len(stores) != 1:
        raise ValueError(f"this dictionary is measured on one store, got {len(stores)}")
    return stores[0]


def _of_transcoder(
    dictionary: TranscoderDictionary, store: StoredActivations, split: str, site: Site | str | None, *, force: bool
) -> Reading:
    part = part_of(store, split)
    reads = site_for(dictionary, part, site, force=force)
    target = dictionary.places[1].site
    if target is None:
        raise ValueError("the transcoder does not name the site of its output; train it with site=(input, output)")
    _check_place(dictionary.places[1], part)
    return Reading(part, target, reads)


def _of_crosscoder(
    dictionary: AbstractDictionary, stores: list[StoredActivations], split: str, *, force: bool
) -> Reading:
    places = dictionary.places
    if len(stores) not in (1, len(places)):
        raise ValueError(f"give one store, or one for each of {len(places)} sites in their order; got {len(stores)}")
    found = [part_of(store, split) for store in stores]
    parts = found * len(places) if len(found) == 1 else found
    for place, part in zip(places, parts, strict=True):
        _check_place(place, part)
        if not force and place.model is not None and not same_model(place.model, part.model):
            raise DataError(
                f"the crosscoder was made for {place}, got activations of {part.model}; give stores in the order of "
                "its sites, or force to go on"
            )
    _check_tokens(found)
    weights = (1.0,) * len(places)
    if isinstance(dictionary.normalization, JointNormalization):
        weights = dictionary.normalization.scale
    at = tuple(replace(place, model=part.model) for place, part in zip(places, parts, strict=True))
    first = places[0].site
    assert first is not None
    return Reading(parts[0], first, None, tuple(parts), at, weights)


def _check_place(place: Place, part: StoredActivations) -> None:
    held = ", ".join(map(str, part.sites))
    if place.site is None:
        raise ValueError("the dictionary does not name its sites; train it with site=")
    if place.site not in part.sites:
        raise DataError(f"the store holds {held}, expected {place.site} too; harvest that site")
    if part.width(place.site) != place.width:
        raise ValueError(f"{place} had width {place.width} in training, here it has {part.width(place.site)}")


def _check_tokens(parts: list[StoredActivations]) -> None:
    """Refuse stores whose rows are of other documents."""
    first = parts[0]
    for other in parts[1:]:
        alike = len(first) == len(other) and torch.equal(
            first.tokens(slice(0, len(first))).document_ids, other.tokens(slice(0, len(other))).document_ids
        )
        if not alike:
            raise DataError("the stores do not hold the same rows; harvest every model on the same text alike")


class SiteSums:
    """Residual and variance of each of several sites, summed in each document."""

    def __init__(self, columns: list[slice], frame: Frame) -> None:
        self.columns = columns
        self.frame = frame
        self.documents = DocumentSums(2 * len(columns))

    def add(self, y: Float[Tensor, "n d"], y_hat: Float[Tensor, "n d"], document_ids: Tensor) -> None:
        """Add a batch."""
        if not self.columns:
            return
        residual, centred = (y.double() - y_hat.double()).square(), (y.double() - self.frame.mean).square()
        terms = [part[:, at].sum(dim=1) for at in self.columns for part in (residual, centred)]
        self.documents.add(document_ids, torch.stack(terms, dim=1))

    def records(self, places: tuple[Place, ...], estimator: Callable[..., Estimate]) -> list[SiteRecord] | None:
        """The FVU at each site; None for a dictionary of one."""
        if not self.columns:
            return None
        found = []
        for i, place in enumerate(places):
            fvu = estimator(self.documents, lambda s, i=i: s[..., 2 * i] / s[..., 2 * i + 1])
            found.append(SiteRecord(site=str(place.site), model=str(place.model), fvu=fvu))
        return found
