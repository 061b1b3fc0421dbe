"""Opening whatever activations came as one endless stream of batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream
from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.dictionaries.base import Place
from sparsight.dictionaries.transcoder import TranscoderDictionary
from sparsight.errors import TrainingError
from sparsight.models import Site
from sparsight.models.site_choice import sites_meant
from sparsight.training.joined import JoinedStream, check_same_tokens
from sparsight.training.settings import Training

Activations = ActivationStore | ActivationStream | Tensor | Sequence[ActivationStore] | Sequence[Tensor]
Sites = str | Site | Sequence[str | Site] | None

# Bytes of activations up to which a stream keeps them all in memory.
_MEMORY = 2 << 30


@dataclass(frozen=True)
class Source:
    """A stream and what is known about its activations.

    Attributes:
        stream: Batches `[batch, d]`, shuffled, endless, resumable; several sites stand side by side.
        places: Where the columns were read, one entry for each site.
        n_rows: Activations in an epoch, if known.
        description: For the record of the run.
    """

    stream: ActivationStream | JoinedStream
    places: tuple[Place, ...]
    n_rows: int | None
    description: str

    @property
    def d_in(self) -> int | tuple[int, ...]:
        """What a dictionary is built for: the width of the one site, or those of several."""
        return self.places[0].width if len(self.places) == 1 else tuple(place.width for place in self.places)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each site."""
        return tuple(place.width for place in self.places)

    @property
    def site(self) -> Site | None:
        """Where activations of one site were read, if known."""
        return self.places[0].site if len(self.places) == 1 else None

    @property
    def model(self) -> str | None:
        """Name of the model that all were read from, if known and one."""
        return self.places[0].model if len({place.model for place in self.places}) == 1 else None

    def record(self) -> dict[str, Any]:
        """What a resumed run must find unchanged, as JSON."""
        if len(self.places) > 1:
            places = [{"site": _name(p.site), "model": p.model, "d": p.width} for p in self.places]
            return {"places": places, "n_rows": self.n_rows}
        [place] = self.places
        return {"site": _name(place.site), "model": place.model, "d_in": place.width, "n_rows": self.n_rows}

    def locate(self, dictionary: AbstractDictionary) -> None:
        """Write into a dictionary where its activations come from.

        What has one value for all sites is its `site` or `model`; a transcoder's `site` is the one that it codes.
        """
        dictionary.model = self.model
        shared = len({place.site for place in self.places}) == 1 or isinstance(dictionary, TranscoderDictionary)
        dictionary.site = self.places[0].site if shared else None
        dictionary.places = self.places if len(self.places) > 1 else ()


def open_source(
    source: Activations, site: Sites, training: Training, configs: Sequence[DictionaryConfig] = ()
) -> Source:
    """A stream over `source`. Of a whole store only the training documents are used; a split is used as it is.

    Raises:
        ValueError: the source has several sites and `site` does not choose; an argument does not apply; a configuration
            reads another number of sites.
        TrainingError: a tensor holds NaN or infinity; the row is named.
        DataError: several stores do not hold the same tokens.
    """
    if isinstance(source, ActivationStream):
        opened = _from_stream(source, site, training)
    elif isinstance(source, Tensor):
        opened = _from_tensors([source], site, training)
    elif isinstance(source, ActivationStore):
        wanted = None if site is None else sites_meant(site, source.sites)
        if wanted == []:
            raise ValueError("site must name at least one site, got none; leave it out where the store has one")
        opened = _from_stores([source] * len(wanted or [None]), wanted, training)
    elif len(source) == 0:
        raise ValueError("source must hold activations, got an empty sequence")
    elif all(isinstance(part, ActivationStore) for part in source):
        opened = _from_stores([part for part in source if isinstance(part, ActivationStore)], site, training)
    elif all(isinstance(part, Tensor) for part in source):
        opened = _from_tensors([part for part in source if isinstance(part, Tensor)], site, training)
    else:
        kinds = ", ".join(sorted({type(part).__name__ for part in source}))
        raise ValueError(f"source must be stores or tensors, got {kinds} together")
    _check_configs(configs, opened)
    return opened


def _check_configs(configs: Sequence[DictionaryConfig], source: Source) -> None:
    """Every dictionary trained together reads the same rows, and can be trained."""
    n = len(source.places)
    for config in configs:
        if not config.trainable:
            raise ValueError(
                f"{config.run_name} holds weights that others published and has no training; train topk, pursuit, or a "
                "transcoder with a k"
            )
        least, most = config.n_sites
        if not least <= n <= (n if most is None else most):
            wanted = str(least) if least == most else f"{least} or more"
            given = ", ".join(map(str, source.places))
            raise ValueError(
                f"{config.run_name} reads {wanted} site(s), but the source gives {n} ({given}); name as many with "
                "site=, and train dictionaries that read other sites in another call"
            )


def _from_stream(stream: ActivationStream, site: Sites, training: Training) -> Source:
    if stream.batch_size != training.batch_size:
        raise ValueError(
            f"the stream's batch_size is {stream.batch_size}, the training's {training.batch_size}; make them equal"
        )
    if site is not None and sites_meant(site, stream.sites) != stream.sites:
        raise ValueError(f"the stream is of {[str(s) for s in stream.sites]}, not of {site}; leave site out")
    description = f"stream: {stream.mixing}"
    if len(stream.sites) < 2:
        known = stream.sites[0] if stream.sites else None
        return Source(stream, (Place(stream.width(known), known),), stream.n_rows, description)
    places = tuple(Place(stream.width(known), known) for known in stream.sites)
    return Source(JoinedStream([stream]), places, stream.n_rows, description)


def _from_stores(stores: list[ActivationStore], site: Sites, training: Training) -> Source:
    """One site of each store; the same store as often as it has sites to read."""
    names = [site] * len(stores) if site is None or isinstance(site, str | Site) else list(site)
    if len(names) != len(stores):
        raise ValueError(f"give one site for each of {len(stores)} stores, or one for all; got {len(names)}")
    chosen = [_choose(store.sites, name) for store, name in zip(stores, names, strict=True)]
    places = tuple(Place(store.width(at), at, store.model) for store, at in zip(stores, chosen, strict=True))
    parts = {id(store): store.split("train") if store.split_name == "all" else store for store in stores}
    unique = list(parts.values())
    first = unique[0]
    description = (
        f"store {', '.join(str(p.path) for p in unique)}, {first.split_name} documents, {len(first)} activations"
    )
    if len(stores) == 1:
        stream = ActivationStream(first, chosen[0], training.batch_size, training.seed)
        return Source(stream, places, stream.n_rows, description)
    check_same_tokens(unique)
    # All in memory or none: streams that read in other ways do not go in step.
    size = sum(len(first) * place.width * store.dtype.itemsize for place, store in zip(places, stores, strict=True))
    memory = _MEMORY if size <= _MEMORY else 0
    if len(unique) == 1:
        streams = [ActivationStream(first, chosen, training.batch_size, training.seed, memory=memory)]
    else:
        streams = [
            ActivationStream(parts[id(store)], at, training.batch_size, training.seed, memory=memory)
            for store, at in zip(stores, chosen, strict=True)
        ]
    joined = JoinedStream(streams)
    return Source(joined, places, joined.n_rows, description)


def _from_tensors(tensors: list[Tensor], site: Sites, training: Training) -> Source:
    for i, tensor in enumerate(tensors):
        which = "the tensor" if len(tensors) == 1 else f"tensor {i + 1}"
        if tensor.dim() != 2 or not tensor.is_floating_point() or len(tensor) == 0:
            raise ValueError(
                f"a tensor of activations must be floating [n, d_in], got {tensor.dtype} {list(tensor.shape)}"
            )
        bad = (~torch.isfinite(tensor)).any(dim=1).nonzero()
        if len(bad):
            raise TrainingError(
                f"activations must be finite, but row {int(bad[0])} of {which} holds NaN or infinity "
                f"({len(bad)} such rows of {len(tensor)}); drop them"
            )
    if len({len(tensor) for tensor in tensors}) != 1:
        raise ValueError(f"tensors must have a row for each token, as many in each, got {[len(t) for t in tensors]}")
    known = [None] * len(tensors) if site is None else [Site.parse(s) for s in _listed(site)]
    if len(known) == 1:
        known = known * len(tensors)
    if len(known) != len(tensors):
        raise ValueError(f"give one site for each of {len(tensors)} tensors, or none, got {len(known)}")
    places = tuple(Place(tensor.shape[1], at) for tensor, at in zip(tensors, known, strict=True))
    streams = [ActivationStream(tensor, None, training.batch_size, training.seed) for tensor in tensors]
    stream = streams[0] if len(streams) == 1 else JoinedStream(streams)
    shown = "tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"
    return Source(stream, places, stream.n_rows, f"{shown}, {len(tensors[0])} activations")


def _choose(sites: list[Site], site: str | Site | None) -> Site:
    """The site asked for, or the only one."""
    if site is None and len(sites) == 1:
        return sites[0]
    names = ", ".join(str(known) for known in sites)
    if site is None:
        raise ValueError(f"the store holds several sites ({names}); say which with site=")
    meant = sites_meant(site, sites)
    if len(meant) != 1:
        raise ValueError(f"give one site for each store, got {site}, which means {len(meant)} of {names}")
    if meant[0] not in sites:
        raise ValueError(f"the store holds {names}, not {meant[0]}; choose one of them or harvest it")
    return meant[0]


def _listed(site: str | Site | Sequence[str | Site]) -> list[str | Site]:
    return [site] if isinstance(site, str | Site) else list(site)


def _name(site: Site | None) -> str | None:
    return None if site is None else str(site)
