"""Opening whatever activations came as one endless stream of batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream
from sparsight.errors import TrainingError
from sparsight.models import Site
from sparsight.training.settings import Training


@dataclass(frozen=True)
class Source:
    """A stream and what is known about its activations.

    Attributes:
        stream: Batches `[batch, d_in]` of one site, shuffled, endless, resumable.
        d_in: Width of the activations.
        site: Where they were read, if known.
        model: Name of the model they were read from, if known.
        n_rows: Activations in an epoch, if known.
        description: For the record of the run.
    """

    stream: ActivationStream
    d_in: int
    site: Site | None
    model: str | None
    n_rows: int | None
    description: str


def open_source(
    source: ActivationStore | ActivationStream | Tensor, site: str | Site | None, training: Training
) -> Source:
    """A stream over `source`. Of a whole store only the training documents are used; a split is used as it is.

    Raises:
        ValueError: the source has several sites and `site` does not choose one; an argument does not apply.
        TrainingError: a tensor holds NaN or infinity; the row is named.
    """
    if isinstance(source, ActivationStream):
        return _from_stream(source, site, training)
    if isinstance(source, ActivationStore):
        chosen = _choose(source.sites, site)
        part = source.split("train") if source.split_name == "all" else source
        stream = ActivationStream(part, chosen, training.batch_size, training.seed)
        description = f"store {source.path}, {part.split_name} documents, {len(part)} activations"
        return Source(stream, source.width(chosen), chosen, source.model, stream.n_rows, description)
    if source.dim() != 2 or not source.is_floating_point() or len(source) == 0:
        raise ValueError(f"a tensor of activations must be floating [n, d_in], got {source.dtype} {list(source.shape)}")
    bad = (~torch.isfinite(source)).any(dim=1).nonzero()
    if len(bad):
        raise TrainingError(
            f"activations must be finite, but row {int(bad[0])} of the tensor holds NaN or infinity "
            f"({len(bad)} such rows of {len(source)}); drop them"
        )
    stream = ActivationStream(source, None, training.batch_size, training.seed)
    known = None if site is None else Site.parse(site)
    return Source(stream, source.shape[1], known, None, stream.n_rows, f"tensor, {len(source)} activations")


def _from_stream(stream: ActivationStream, site: str | Site | None, training: Training) -> Source:
    if stream.batch_size != training.batch_size:
        raise ValueError(
            f"the stream's batch_size is {stream.batch_size}, the training's {training.batch_size}; make them equal"
        )
    if site is not None and Site.parse(site) not in stream.sites:
        raise ValueError(f"the stream is of {[str(s) for s in stream.sites]}, not of {site}; leave site out")
    known = stream.sites[0] if len(stream.sites) == 1 else None
    if len(stream.sites) > 1:
        raise ValueError(f"a stream to train on has one site, got {[str(s) for s in stream.sites]}; stream one of them")
    return Source(stream, stream.width(known), known, None, stream.n_rows, f"stream: {stream.mixing}")


def _choose(sites: list[Site], site: str | Site | None) -> Site:
    """The site asked for, or the only one."""
    if site is None and len(sites) == 1:
        return sites[0]
    names = ", ".join(str(known) for known in sites)
    if site is None:
        raise ValueError(f"the store holds several sites ({names}); say which with site=")
    if Site.parse(site) not in sites:
        raise ValueError(f"the store holds {names}, not {site}; choose one of them or harvest it")
    return Site.parse(site)
