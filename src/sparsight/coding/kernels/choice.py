"""Which search answers a coder, and over which blocks of rows."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.coding.kernels.compiled import is_used
from sparsight.coding.kernels.gram import GramSearch, GramTable, gram_block_rows
from sparsight.coding.kernels.screening import ScreenedSearch, Screening
from sparsight.coding.kernels.search import DenseSearch, Search, block_rows

SearchMethod: TypeAlias = Literal["auto", "dense", "gram"] | GramTable | Screening

# Widest dictionary whose table is made without being asked for: 1.6 GB.
LARGEST_AUTOMATIC_TABLE = 2**14


def resolved(
    search: SearchMethod, x: Float[Tensor, "n d"], atoms: Float[Tensor, "n_latents d"], k: int
) -> Literal["dense"] | GramTable | Screening:
    """The search that will answer, its table made now if need be.

    Args:
        search: `"dense"`: a product with all atoms in each step. `"gram"`: a `GramTable` made now. A `GramTable`: made
            before, of these atoms. `"auto"`: a table where it pays for itself in this call. All these choose the same
            atoms. A `Screening` does not: it is approximate, and reports what it did.
        x: All rows.
        atoms: Unit rows.
        k: Steps to come.
    Raises:
        ValueError: the table or the screening is of other atoms.
    """
    if isinstance(search, (GramTable, Screening)):
        search.check(atoms)
        return search
    if search == "gram" or (search == "auto" and _pays(atoms, len(x), k)):
        return GramTable(atoms, compiled=is_used(atoms, len(x) * k))
    return "dense"


def blocks(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    k: int,
    search: Literal["dense"] | GramTable | Screening,
    *,
    nonnegative: bool,
    repeats: bool = False,
) -> Iterator[tuple[Float[Tensor, "b d"], Search]]:
    """Blocks of rows that fit the cache, each with the search that will answer for it.

    Args:
        x: All rows, balanced.
        atoms: Unit rows.
        k: Steps to come.
        search: As `resolved` returned it.
        nonnegative: Whether the largest inner product is best; else the largest magnitude.
        repeats: Whether an atom may be chosen again.
    """
    n_latents, d = atoms.shape
    if isinstance(search, Screening):
        for block in torch.split(x, search.block_rows(k)):
            yield block, ScreenedSearch(block, search, k, nonnegative=nonnegative, repeats=repeats)
    elif isinstance(search, GramTable):
        for block in torch.split(x, gram_block_rows(n_latents, x)):
            yield block, GramSearch(block, search, k, nonnegative=nonnegative, repeats=repeats)
    else:
        for block in torch.split(x, block_rows(n_latents, d, k, x.element_size(), x.device)):
            yield block, DenseSearch(block, atoms, k, nonnegative=nonnegative, repeats=repeats)


def kept_search(atoms: Float[Tensor, "n_latents d"], n_rows: int, k: int) -> SearchMethod:
    """A table to keep for many calls, where it pays over all their rows; else `"auto"`.

    Args:
        atoms: Unit rows, unchanged between the calls.
        n_rows: Rows of all calls together.
        k: Steps in a row.
    """
    return GramTable(atoms, compiled=is_used(atoms, n_rows * k)) if _pays(atoms, n_rows, k) else "auto"


def _pays(atoms: Float[Tensor, "n_latents d"], n_rows: int, k: int) -> bool:
    """Whether making a table costs clearly less than the dense products it saves.

    A table costs as much as one step of `n_latents` rows. It saves most of `n k` row-steps. Measured on a CPU only.
    """
    n_latents, d = atoms.shape
    worthwhile = n_latents * d >= 2**19 and n_rows * k >= 4 * n_latents
    return atoms.device.type == "cpu" and n_latents <= LARGEST_AUTOMATIC_TABLE and worthwhile
