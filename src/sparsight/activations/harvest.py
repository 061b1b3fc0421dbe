"""`harvest`: run a model over documents and keep what it computes at some sites."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from sparsight.activations.contexts import Cutter, Reads, windows
from sparsight.activations.documents import HasText
from sparsight.activations.reading import read_window
from sparsight.activations.record import Settings
from sparsight.activations.store import ActivationStore
from sparsight.activations.writer import StoreWriter
from sparsight.errors import DataError
from sparsight.models import Site
from sparsight.models.tokenization import padding_id

WINDOW = 4  # batches in a window: contexts of like length are batched together within it
_SHARD_BYTES = 64 << 20  # of activations, by default
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
        sites: One or several; all are read in one pass.
        out: Folder of the store, absent or empty.
        n_tokens: Rows to store. When the text has fewer, all are stored, `short_of` in the record says how many were
            asked for, and `notify` is told.
        context: Most tokens the model sees at once, special tokens included.
        dtype: "float16", "bfloat16" or "float32".
        resume: Go on with an unfinished store, under the same settings; a finished one is opened as it is.
        batch_size: Contexts in one forward pass.
        heldout: Share of documents that `store.split("heldout")` keeps from training, in [0, 1).
        split_seed: Which documents those are.
        shard_rows: A shard is closed by the window (four batches) that brings it to so many rows. Default: 64 MB.
        progress: Show a bar on stderr.
        notify: Called with each remark; by default it is printed on stderr.
    Raises:
        ValueError: an argument is out of range.
        ModelError: the model has no such site.
        DataError: there is no text, labels do not fit, or an activation is not finite or too large for `dtype`.
        StoreError: `out` holds something else, was begun under other settings, or the disk is full.
    """
    if isinstance(documents, str):
        raise ValueError("documents must be several texts, got one string; put it into a list")
    wanted = _sites(sites)
    settings = _settings(lm, wanted, n_tokens, context, dtype, batch_size, heldout, split_seed, shard_rows)
    remark = notify or _print_remark
    with StoreWriter(Path(out), settings, resume=resume, pad_id=padding_id(lm.tokenizer)) as writer:
        if not writer.finished:
            cutter = Cutter(lm, context, writer.label_names)
            with _bar(progress, n_tokens, writer.n_rows) as advance:
                short_of = _fill(writer, cutter, documents, wanted, advance)
            if short_of is not None:
                remark(f"the text has {writer.n_rows:,} tokens, fewer than the {short_of:,} asked for; all are stored")
            writer.finish(short_of=short_of, version=version("sparsight"), command=shlex.join(sys.argv))
    return ActivationStore(out)


def _fill(
    writer: StoreWriter,
    cutter: Cutter,
    documents: Iterable[str | HasText],
    sites: list[Site],
    advance: Callable[[int], None],
) -> int | None:
    """Read windows until all rows are there; the number asked for when the documents end before."""
    settings = writer.settings
    size, missing = settings.batch_size * WINDOW, settings.n_tokens - writer.n_rows
    if missing <= 0:
        return None
    for window in windows(cutter.cut(documents, writer.end), size, missing):
        read = read_window(cutter.lm, window, sites, _DTYPES[settings.dtype], settings.batch_size, missing)
        writer.add(read, cutter.label_names or [])
        missing -= read.n_rows
        advance(read.n_rows)
        if missing == 0:
            return None
    if writer.n_rows == 0:
        raise DataError("the text has no tokens; expected at least one document that is not empty")
    return settings.n_tokens


def _sites(sites: Sequence[str | Site] | str | Site) -> list[Site]:
    wanted = [Site.parse(site) for site in ([sites] if isinstance(sites, str | Site) else sites)]
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"sites must be one or more, each once, got {[str(site) for site in wanted]}")
    return wanted


def _settings(
    lm: Reads,
    sites: list[Site],
    n_tokens: int,
    context: int,
    dtype: str,
    batch_size: int,
    heldout: float,
    split_seed: int,
    shard_rows: int | None,
) -> Settings:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if not 0 <= heldout < 1:
        raise ValueError(f"heldout must be in [0, 1), got {heldout:g}")
    widths = [lm.width(site) for site in sites]
    if shard_rows is None:
        shard_rows = max(1, _SHARD_BYTES // (sum(widths) * _DTYPES[dtype].itemsize))
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
            "context": context,
            "n_tokens": n_tokens,
            "batch_size": batch_size,
            "shard_rows": shard_rows,
            "heldout": float(heldout),
            "split_seed": split_seed,
        }
    )


def _print_remark(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, highlight=False)


@contextmanager
def _bar(show: bool, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over tokens with the rate, or nothing."""
    if not show:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("harvest"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("harvest", total=total, completed=done)
        yield lambda n: bars.advance(task, n)
