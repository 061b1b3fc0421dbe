"""`harvest`: run a model over documents and keep what it computes at some sites."""

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from sparsight.activations.contexts import BOS, Cutter, Reads, windows
from sparsight.activations.documents import HasText
from sparsight.activations.forecast import Meter
from sparsight.activations.pieces import distinct_sites
from sparsight.activations.reading import Reading
from sparsight.activations.record import Settings, rounding_errors
from sparsight.activations.rounding import DTYPES, bytes_per_row
from sparsight.activations.split import on_heldout_side
from sparsight.activations.store import ActivationStore
from sparsight.activations.workers import Here, Readers
from sparsight.activations.writer import StoreWriter
from sparsight.errors import DataError
from sparsight.models import Site
from sparsight.models.tokenization import padding_id

WINDOW = 4  # batches in a window: contexts of like length are batched together within it
_SHARD_BYTES = 64 << 20  # of activations, by default


def harvest(
    lm: Reads,
    documents: Iterable[str | HasText],
    sites: Sequence[str | Site] | str | Site,
    out: str | Path,
    *,
    n_tokens: int,
    context: int = 128,
    dtype: str = "float16",
    resume: bool = False,
    batch_size: int = 32,
    heldout: float = 0.1,
    split_seed: int = 0,
    shard_rows: int | None = None,
    packed: bool = False,
    bos: str = "context",
    special_rows: bool = False,
    max_norm: float | None = None,
    readers: Readers | None = None,
    progress: bool = False,
    notify: Callable[[str], None] | None = None,
) -> ActivationStore:
    """Store the activations of exactly `n_tokens` tokens that are neither padding nor special.

    Documents are read in order; each is tokenized whole and cut into contexts. The last context is kept whole, so that
    losses can be computed on it, but only the rows up to `n_tokens` are stored. The same call gives the same rows,
    whether or not it was interrupted and resumed (on one machine: rounding inside the model may differ on another).

    Args:
        lm: A `LanguageModel`, or anything with the methods of `Reads`.
        documents: Strings or objects with `.text`, and optionally `.id` (int) and `.labels` ({feature: one value per
            token that is not special}). Read lazily: may be endless. On resume the same documents must come again.
        sites: One or several, as in `choose_sites` ("all.resid_post" ...); all are read in one pass, and
            stored in this order.
        out: Folder of the store, absent or empty.
        n_tokens: Rows to store. When the text has fewer, all are stored, `short_of` in the record says how many were
            asked for, and `notify` is told.
        context: Most tokens the model sees at once, special tokens included.
        dtype: "float16", "bfloat16", "float32", or "int8" with a scale for every row. What rounding lost is in the
            record (`store.rounding`).
        resume: Go on with an unfinished store, under the same settings; a finished one is opened as it is.
        batch_size: Contexts in one forward pass.
        heldout: Share of documents that `store.split("heldout")` keeps from training, in [0, 1).
        split_seed: Which documents those are.
        shard_rows: A shard is closed by the window (four batches) that brings it to so many rows. Default: 64 MB.
        packed: Fill contexts with one document after the other, held-out ones apart from the others. Otherwise a
            context never spans two documents.
        bos: Where the tokenizer's special tokens go: around every "context", around every "document", or "none".
        special_rows: Store rows of special tokens too; by default they have none.
        max_norm: Leave out tokens whose norm at some site exceeds this multiple of the median norm there, over the
            contexts read together; above 1. None leaves out none.
        readers: Who runs the model: by default this process; `RayReaders` spreads it over others.
        progress: Show an estimate of time and bytes, and a bar, on stderr.
        notify: Called with each remark; by default it is printed on stderr.
    Raises:
        ValueError: an argument is out of range, or a site is named twice.
        ModelError: the model has no such site.
        DataError: there is no text, labels do not fit, or an activation is not finite or too large for `dtype`.
        StoreError: `out` holds something else, was begun under other settings, or the disk is full.
    """
    if isinstance(documents, str):
        raise ValueError("documents must be several texts, got one string; put it into a list")
    wanted = distinct_sites(sites, lm.sites())
    settings = _settings(
        lm,
        wanted,
        shard_rows,
        n_tokens=n_tokens,
        context=context,
        dtype=dtype,
        batch_size=batch_size,
        heldout=heldout,
        split_seed=split_seed,
        packed=packed,
        bos=bos,
        special_rows=special_rows,
        max_norm=max_norm,
    )
    with StoreWriter(Path(out), settings, resume=resume, pad_id=padding_id(lm.tokenizer)) as writer:
        if not writer.finished:
            _collect(writer, lm, documents, wanted, readers or Here(lm), progress, notify or _print_remark)
    return ActivationStore(out)


def _collect(
    writer: StoreWriter,
    lm: Reads,
    documents: Iterable[str | HasText],
    sites: list[Site],
    readers: Readers,
    progress: bool,
    remark: Callable[[str], None],
) -> None:
    """Fill and finish a store that is not finished, and say what there is to say about it."""
    settings = writer.settings
    side = partial(on_heldout_side, share=settings.heldout, seed=settings.split_seed) if settings.packed else None
    cutter = Cutter(lm, settings.context, writer.label_names, bos=settings.bos, side=side)
    with Meter(settings, writer.n_rows, progress) as meter:
        short_of = _fill(writer, cutter, documents, sites, meter, readers)
    if short_of is not None:
        remark(f"the text has {writer.n_rows:,} tokens, fewer than the {short_of:,} asked for; all are stored")
    writer.finish(short_of=short_of, version=version("sparsight"), command=shlex.join(sys.argv))
    if progress:
        for site, lost in rounding_errors(writer.shards).items():
            remark(f"{site}: storing as {settings.dtype} lost {lost['fvu']:.2e} of the variance")


def _fill(
    writer: StoreWriter,
    cutter: Cutter,
    documents: Iterable[str | HasText],
    sites: list[Site],
    meter: Meter,
    readers: Readers,
) -> int | None:
    """Read windows until all rows are there; the number asked for when the documents end before."""
    settings = writer.settings
    reading = Reading(sites, DTYPES[settings.dtype], settings.batch_size, settings.special_rows, settings.max_norm)
    size, missing = settings.batch_size * WINDOW, settings.n_tokens - writer.n_rows
    if missing <= 0:
        return None
    # How many tokens are left out for their norm is known only when the model has run: then all windows are full.
    known = missing if settings.max_norm is None else None
    cut = windows(cutter.cut(documents, writer.end), size, known, reading.count)
    for read in readers.read(cut, reading):
        kept = read.cut(missing)
        writer.add(kept, cutter.label_names or [])
        missing -= kept.n_rows
        meter.advance(kept.n_rows)
        if missing == 0:
            return None
    if writer.n_rows == 0:
        raise DataError("the text has no tokens; expected at least one document that is not empty")
    return settings.n_tokens


def _settings(
    lm: Reads,
    sites: list[Site],
    shard_rows: int | None,
    *,
    n_tokens: int,
    dtype: str,
    batch_size: int,
    heldout: float,
    split_seed: int,
    bos: str,
    max_norm: float | None,
    **others: int | bool,
) -> Settings:
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not 0 <= heldout < 1:
        raise ValueError(f"heldout must be in [0, 1), got {heldout:g}")
    if bos not in BOS:
        raise ValueError(f"bos must be one of {', '.join(BOS)}, got {bos!r}")
    if max_norm is not None and not 1 < max_norm < float("inf"):
        raise ValueError(f"max_norm is a multiple of the median norm, above 1, got {max_norm:g}")
    widths = [lm.width(site) for site in sites]
    if shard_rows is None:
        shard_rows = max(1, _SHARD_BYTES // sum(bytes_per_row(width, dtype) for width in widths))
    for name, value in (("n_tokens", n_tokens), ("batch_size", batch_size), ("shard_rows", shard_rows)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if split_seed < 0:
        raise ValueError(f"split_seed must be 0 or more, got {split_seed}")
    return Settings.model_validate(
        {
            "model": lm.name,
            "family": lm.family,
            "sites": [str(site) for site in sites],
            "widths": widths,
            "dtype": dtype,
            "n_tokens": n_tokens,
            "batch_size": batch_size,
            "shard_rows": shard_rows,
            "heldout": float(heldout),
            "split_seed": split_seed,
            "bos": bos,
            "max_norm": None if max_norm is None else float(max_norm),
            **others,
        }
    )


def _print_remark(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, highlight=False)
