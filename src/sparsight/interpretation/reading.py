"""What interpretation asks of a dictionary and of stored activations, and the one pass that all of it shares."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.models import Site


@runtime_checkable
class StoredActivations(Protocol):
    """Rows of activations with their tokens: `ActivationStore`, a split of one, or a double in a test."""

    @property
    def sites(self) -> list[Site]: ...

    def __len__(self) -> int: ...

    def rows(self, site: Site, rows: slice | Tensor) -> Tensor: ...

    def tokens(self, rows: slice | Tensor) -> "TokensOfRows": ...


@runtime_checkable
class TokensOfRows(Protocol):
    """Where rows come from: token, document and place in the document of each."""

    @property
    def token_ids(self) -> Tensor: ...

    @property
    def document_ids(self) -> Tensor: ...

    @property
    def positions(self) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """Atoms and a rule that codes activations with them: every `AbstractDictionary`."""

    atoms: torch.nn.Parameter
    site: Site | None

    @property
    def n_latents(self) -> int: ...

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode: ...


def site_of(dictionary: Encodes, store: StoredActivations) -> Site:
    """The site whose activations the dictionary codes: its own, or the only one in the store.

    Raises:
        ValueError: the dictionary names no site and the store has several, or has not the one it names.
    """
    if dictionary.site is not None:
        if dictionary.site not in store.sites:
            held = ", ".join(map(str, store.sites))
            raise ValueError(f"the dictionary codes {dictionary.site} but the store holds {held}; harvest that site")
        return dictionary.site
    if len(store.sites) != 1:
        raise ValueError(
            f"the dictionary names no site and the store holds {len(store.sites)}; set dictionary.site to one of them"
        )
    return store.sites[0]


@torch.no_grad()
def codes_of(
    dictionary: Encodes, store: StoredActivations, *, batch_size: int = 4096
) -> Iterator[tuple[int, SparseCode]]:
    """Code a store from its first row to its last: pairs of (first row, codes of `batch_size` rows from there).

    Memory is that of one batch, whatever the length of the store.
    """
    site = site_of(dictionary, store)
    device = dictionary.atoms.device
    for start in range(0, len(store), batch_size):
        rows = store.rows(site, slice(start, min(start + batch_size, len(store))))
        yield start, dictionary.encode(rows.to(device)).to("cpu")
