"""What evaluation asks of stored activations and of a model, and the batches in which it reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError
from sparsight.models import Site, Tokens


class TokensOfRows(Protocol):
    """Which document each row comes from."""

    @property
    def document_ids(self) -> Tensor: ...


class Contexts(Protocol):
    """Contexts as the model saw them."""

    @property
    def tokens(self) -> Tokens: ...
    @property
    def document_ids(self) -> Tensor: ...


@runtime_checkable
class StoredActivations(Protocol):
    """Rows of activations with tokens, documents, labels and contexts: `ActivationStore`, or a double in a test."""

    @property
    def sites(self) -> list[Site]: ...
    @property
    def model(self) -> str: ...
    @property
    def label_names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def width(self, site: Site) -> int: ...
    def rows(self, site: Site, rows: slice | Tensor) -> Tensor: ...
    def tokens(self, rows: slice | Tensor) -> Any: ...
    def labels(self, rows: slice | Tensor) -> dict[str, Tensor]: ...
    def split(self, name: Any) -> Any: ...
    def context_batches(self, batch_size: int) -> Iterator[Any]: ...


@runtime_checkable
class Predicts(Protocol):
    """What the loss asks of a model: `LanguageModel`, or anything that does the same."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def has_causal_loss(self) -> bool: ...
    def logits(self, tokens: Tokens, *, edits: Any = None) -> Tensor: ...


def part_of(store: StoredActivations, split: str) -> StoredActivations:
    """The split of a store, or the store as it is for `"all"`.

    Raises:
        ValueError: there is no such split.
        DataError: the split has no rows.
    """
    if split not in ("train", "heldout", "all"):
        raise ValueError(f"split must be 'heldout', 'train' or 'all', got {split!r}")
    part: StoredActivations = store if split == "all" else store.split(split)
    if len(part) == 0:
        raise DataError(f"the {split} split of the store has no rows; harvest more documents, or choose another split")
    return part


def site_for(
    dictionary: AbstractDictionary, store: StoredActivations, site: Site | str | None, *, force: bool = False
) -> Site:
    """The site at which a dictionary is to be measured, once its provenance allows it.

    Args:
        dictionary: Names the site and the model it was trained on, if known.
        store: Activations to measure it on.
        site: Where, if not at the dictionary's own site.
        force: Measure it though it was made for another site or model: at the store's site, where that is the only one.
    Raises:
        ValueError: no site is named and there are several, or widths differ.
        DataError: the store lacks the site, or the dictionary was made for another site or model.
    """
    held = ", ".join(map(str, store.sites))
    if site is not None:
        chosen = Site.parse(site)
    elif dictionary.site is not None and not (force and len(store.sites) == 1):
        chosen = dictionary.site
    elif len(store.sites) == 1:
        chosen = store.sites[0]
    else:
        raise ValueError(f"the dictionary names no site and the store holds {held}; pass site=")
    if chosen not in store.sites:
        raise DataError(f"the store holds {held}, expected {chosen}; harvest that site, or name another by force")
    if not force and dictionary.site is not None and dictionary.site != chosen:
        raise DataError(f"the dictionary was made for {dictionary.site}, got activations of {chosen}; force to go on")
    if not force and dictionary.model is not None and not same_model(dictionary.model, store.model):
        raise DataError(
            f"the dictionary was made for model {dictionary.model}, got activations of {store.model}; force to go on"
        )
    if store.width(chosen) != dictionary.d_in:
        raise ValueError(
            f"the dictionary takes activations of width {dictionary.d_in}, those at {chosen} have "
            f"{store.width(chosen)}; choose the store it was trained on"
        )
    return chosen


def check_model(model: Predicts, store: StoredActivations, *, force: bool = False) -> None:
    """Refuse a model other than the one the activations were read from, unless forced."""
    if not force and not same_model(model.name, store.model):
        raise DataError(f"the activations are of model {store.model}, got model {model.name}; force to go on")


def same_model(first: str, second: str) -> bool:
    """Whether two names are of one model: equal in their last part, since a folder may have moved."""
    return first.rstrip("/").rsplit("/", 1)[-1] == second.rstrip("/").rsplit("/", 1)[-1]


def row_blocks(n: int, batch_size: int, limit: int | None = None) -> list[slice]:
    """Slices that cover `n` rows, or about `limit` of them in blocks spread evenly over the whole.

    Raises:
        ValueError: `batch_size` or `limit` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if limit is not None and limit < 1:
        raise ValueError(f"a limit on tokens must be at least 1, got {limit}; None takes all")
    if limit is not None and limit < n:
        # At least 16 places, so that a small limit does not see one document only.
        batch_size = min(batch_size, max(1, limit // 16))
        n_blocks = limit // batch_size
        starts = [i * (n - batch_size) // max(1, n_blocks - 1) for i in range(n_blocks)]
        return [slice(start, start + batch_size) for start in starts]
    return [slice(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]


def batches(
    store: StoredActivations,
    site: Site,
    blocks: list[slice],
    device: torch.device,
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[tuple[slice, Float[Tensor, "n d_in"]]]:
    """Activations of each block on `device`; `advance` hears how many rows were used up."""
    for block in blocks:
        yield block, store.rows(site, block).to(device)
        advance(block.stop - block.start)


@contextmanager
def reported(description: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, or nothing."""
    if not shown:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)
