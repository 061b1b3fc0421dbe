"""What is compared: a part of a store, or a plain tensor whose true codes may be known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError
from sparsight.evaluation.reading import (
    Predicts,
    StoredActivations,
    batches,
    check_model,
    part_of,
    row_blocks,
    site_for,
)
from sparsight.evaluation.recovery import RECOVERED
from sparsight.models import Site

NO_PARTNER = -2
"""Stands in a planted support for a latent that is active and that the dictionary has no atom for."""


GROUPS = 512


class GivenActivations:
    """A plain tensor read like a store.

    It has no documents: rows are taken to be independent, and are resampled in at most 512 groups of equal size, which
    gives intervals of the same width as resampling single rows, for less work.
    """

    def __init__(self, x: Float[Tensor, "n d_in"], site: Site) -> None:
        self.x = x
        self.sites = [site]
        self.model = "none"
        self.label_names: list[str] = []

    def __len__(self) -> int:
        return len(self.x)

    def width(self, site: Site) -> int:
        return self.x.shape[1]

    def rows(self, site: Site, rows: slice | Tensor) -> Tensor:
        return self.x[rows]

    def tokens(self, rows: slice | Tensor) -> Any:
        return SimpleNamespace(document_ids=torch.arange(len(self.x))[rows] % GROUPS)

    def labels(self, rows: slice | Tensor) -> dict[str, Tensor]:
        return {}

    def split(self, name: Any) -> "GivenActivations":
        raise DataError("a plain tensor has no split into documents; pass train= for what must be fitted")

    def context_batches(self, batch_size: int) -> Iterator[Any]:
        return iter(())


@dataclass(frozen=True, eq=False)
class Source:
    """Activations to be coded, and where what must be fitted is fitted.

    Attributes:
        part: Rows to be coded.
        site: Where they were read.
        split: Which part of the store they are; "given" for a tensor.
        train_rows: Reads activations that are not judged.
        planted: True latents of each row, as latents of the dictionary; None where the truth is not known.
    """

    part: StoredActivations
    site: Site
    split: str
    train_rows: Callable[[], Tensor]
    planted: Int64[Tensor, "n k_true"] | None

    @property
    def site_name(self) -> str | None:
        """The site as it is recorded; none for a plain tensor."""
        return None if isinstance(self.part, GivenActivations) else str(self.site)

    @property
    def model_name(self) -> str | None:
        """The model as it is recorded; none for a plain tensor."""
        return None if isinstance(self.part, GivenActivations) else self.part.model


def source_of(
    dictionary: AbstractDictionary,
    store: StoredActivations | Float[Tensor, "n d_in"],
    *,
    truth: SparseCode | None,
    true_atoms: Float[Tensor, "n_true d_in"] | None,
    train: Float[Tensor, "m d_in"] | None,
    split: str,
    site: Site | str | None,
    model: Predicts | None,
    fit_tokens: int,
    force: bool,
) -> Source:
    """A part of a store, or a plain tensor, as `compare_coders` describes them.

    Raises:
        ValueError: an argument is for the other of the two, or widths or rows disagree.
        DataError: the store lacks the site or the split, or the dictionary was made for another site or model.
    """
    if isinstance(store, Tensor):
        if model is not None:
            raise ValueError("the loss needs the contexts of a store; compare a plain tensor without model=")
        return _given(dictionary, store, train, truth, true_atoms, fit_tokens)
    for name, value in (("truth", truth), ("true_atoms", true_atoms), ("train", train)):
        if value is not None:
            raise ValueError(f"{name} goes with a plain tensor of activations; a store has no planted truth")
    part = part_of(store, split)
    chosen = site_for(dictionary, part, site, force=force)
    if model is not None:
        check_model(model, store, force=force)

    def train_rows() -> Tensor:
        return _spread(part_of(store, "train"), chosen, fit_tokens, dictionary.atoms.device)

    return Source(part, chosen, split, cache(train_rows), None)


def _given(
    dictionary: AbstractDictionary,
    x: Float[Tensor, "n d_in"],
    train: Float[Tensor, "m d_in"] | None,
    truth: SparseCode | None,
    true_atoms: Float[Tensor, "n_true d_in"] | None,
    fit_tokens: int,
) -> Source:
    atoms = dictionary.atoms.detach()
    for name, rows in (("activations", x), ("train", train)):
        if rows is not None and (rows.dim() != 2 or rows.shape[1] != dictionary.d_in or len(rows) == 0):
            raise ValueError(f"{name} must be rows of width {dictionary.d_in}, got {list(rows.shape)}")
    if truth is not None and len(truth) != len(x):
        raise ValueError(f"truth must be of the same {len(x)} rows as the activations, got {len(truth)}")
    if truth is None and true_atoms is not None:
        raise ValueError("true_atoms say what truth= is over: pass the planted code too")
    site = dictionary.site or Site.parse("embed")

    def train_rows() -> Tensor:
        if train is None:
            raise ValueError("an arm must be fitted, and not on what it is judged on: pass train=, or leave it out")
        return _spread(GivenActivations(train.to(atoms.dtype), site), site, fit_tokens, atoms.device)

    planted = None if truth is None else planted_support(truth, atoms, true_atoms).to(atoms.device)
    return Source(GivenActivations(x.to(atoms.dtype), site), site, "given", cache(train_rows), planted)


def _spread(part: StoredActivations, site: Site, limit: int, device: torch.device) -> Tensor:
    """Rows spread evenly, about `limit` of them."""
    blocks = row_blocks(len(part), 4096, limit)
    return torch.cat([x for _, x in batches(part, site, blocks, device)])


def planted_support(
    truth: SparseCode, atoms: Float[Tensor, "n_latents d_in"], true_atoms: Float[Tensor, "n_true d_in"] | None
) -> Int64[Tensor, "n k_true"]:
    """True latents of each row, as latents of the dictionary.

    Latents are matched one to one so that the sum of cosines is largest; below a cosine of 0.9 a true latent has no
    partner.

    Args:
        truth: The planted code, over the dictionary's own latents, or over the true atoms if those came.
        atoms: The dictionary's, of unit norm.
        true_atoms: Directions of any non-zero norm.
    Returns:
        -1 in empty slots; `NO_PARTNER` where the dictionary has no atom for a latent that is active.
    Raises:
        ValueError: the code is over another number of latents.
    """
    expected = len(atoms) if true_atoms is None else len(true_atoms)
    if truth.n_latents != expected:
        raise ValueError(f"truth must be over the {expected} atoms it names, got one over {truth.n_latents} latents")
    partner = torch.arange(len(atoms))
    if true_atoms is not None:
        from scipy.optimize import linear_sum_assignment

        cosines = torch.nn.functional.normalize(true_atoms.double().cpu(), dim=1) @ atoms.double().cpu().T
        rows, columns = (torch.from_numpy(side) for side in linear_sum_assignment(-cosines.numpy()))
        partner = torch.full((len(true_atoms),), NO_PARTNER)
        partner[rows] = torch.where(cosines[rows, columns] >= RECOVERED, columns, NO_PARTNER)
    return partner[truth.indices.cpu()].masked_fill(truth.values.cpu() == 0, -1)
