"""Labelled examples out of a store: single tokens, or documents as the mean of their tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.codes import SparseCode
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.reading import StoredActivations, row_blocks
from sparsight.models import Site

_DRAW = 0xE5A  # says what a generator is for, beside the seed
_BLOCK = 4096
LOOKED_AT = 400_000  # rows of a side whose labels are looked at
UNDEFINED = -1


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples with the dictionary's code of each.

    Attributes:
        x: Activations; of a document, the mean over its tokens.
        z: Codes, one column for each latent; of a document, the mean over its tokens.
        y: Labels, one column for each feature asked for.
        documents: Document of each.
        tokens: Token id of each; -1 for documents.
    """

    x: Float[Tensor, "n d"]
    z: Float[Tensor, "n m"]
    y: Int64[Tensor, "n f"]
    documents: Int64[Tensor, " n"]
    tokens: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Examples":
        return Examples(self.x[rows], self.z[rows], self.y[rows], self.documents[rows], self.tokens[rows])


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of some rows of a part.

    Attributes:
        features: Whose they are, in the order of the columns.
        rows: Which rows.
        y: One column for each feature.
    """

    features: tuple[str, ...]
    rows: Int64[Tensor, " n"]
    y: Int64[Tensor, "n f"]


def labels_of(part: StoredActivations, features: Sequence[str], limit: int | None = LOOKED_AT) -> Labels:
    """Labels of about `limit` rows, in blocks spread evenly over a part; of all rows when None.

    Raises:
        DataError: the store lacks a label, or its labels are not one for each row.
    """
    missing = [name for name in features if name not in part.label_names]
    if missing:
        raise DataError(
            f"the store has no label {', '.join(missing)}; it has {', '.join(part.label_names) or 'none'}; harvest "
            "labelled documents, such as the organism's"
        )
    found, rows = [], []
    for block in row_blocks(len(part), _BLOCK, limit):
        rows.append(torch.arange(block.start, block.stop))
        labels = part.labels(block)
        columns = [labels[name] for name in features]
        lengths = {len(column) for column in columns}
        if lengths != {block.stop - block.start}:
            raise DataError(
                f"labels must be one for each of {block.stop - block.start} rows, got {sorted(lengths)}; "
                "harvest the store again"
            )
        found.append(torch.stack(columns, dim=1))
    return Labels(tuple(features), torch.cat(rows), torch.cat(found))


def draw_tokens(
    part: StoredActivations,
    site: Site,
    encode: Callable[[Tensor], SparseCode],
    known: Labels,
    group: Callable[[Tensor], Tensor],
    per_group: int,
    seed: int = 0,
) -> Examples:
    """Tokens, as many of each group as there are, at most `per_group`, drawn without replacement.

    Args:
        part: One side of a store.
        site: Where.
        encode: From activations to codes.
        known: Labels of the rows to draw from.
        group: From label columns `[n, f]` to the group of each row, -1 for rows that are not wanted.
        per_group: Examples of each group.
        seed: Of the draw.
    Raises:
        UndefinedMetric: no row is wanted.
    """
    groups = group(known.y)
    generator = torch.Generator().manual_seed(mix_seed(seed, _DRAW))
    rows = []
    for g in torch.unique(groups[groups >= 0]).tolist():
        of_group = (groups == g).nonzero()[:, 0]
        rows.append(of_group[torch.randperm(len(of_group), generator=generator)[:per_group]])
    if not rows:
        raise UndefinedMetric(f"no token has the labels that are needed ({', '.join(known.features)})")
    places = torch.cat(rows).sort().values
    chosen = known.rows[places]
    read = part.tokens(chosen)
    x = part.rows(site, chosen)
    tokens = getattr(read, "token_ids", torch.full_like(chosen, UNDEFINED))
    return Examples(x, dense(encode, x), known.y[places], read.document_ids, tokens)


def pool_documents(
    part: StoredActivations,
    site: Site,
    encode: Callable[[Tensor], SparseCode],
    features: Sequence[str],
    n_latents: int,
    most: int = 4000,
) -> Examples:
    """Documents as the mean of those of their tokens where every label is defined, at most `most`, spread evenly.

    A document's label is that of its last such token.

    Raises:
        DataError: as `labels_of`.
        UndefinedMetric: no document has all labels.
    """
    known = labels_of(part, features)
    whole = (known.y >= 0).all(dim=1)
    kept, labels = known.rows[whole], known.y[whole]
    ids = part.tokens(kept).document_ids
    present = torch.unique(ids)
    if not len(present):
        raise UndefinedMetric(f"no document has all of {', '.join(features)}")
    if len(present) > most:
        present = present[torch.arange(most) * len(present) // most]
    wanted = torch.isin(ids, present)
    rows, ids, labels = kept[wanted], ids[wanted], labels[wanted]
    place = torch.searchsorted(present, ids)
    counts = torch.bincount(place, minlength=len(present)).float()[:, None]
    x = torch.zeros(len(present), part.width(site))
    z = torch.zeros(len(present), n_latents)
    for few in torch.split(torch.arange(len(rows)), 4096):
        batch = part.rows(site, rows[few])
        x.index_add_(0, place[few], batch)
        z.index_add_(0, place[few], dense(encode, batch))
    y = torch.zeros(len(present), len(features), dtype=torch.int64)
    y[place] = labels
    return Examples(x / counts, z / counts, y, present, torch.full_like(present, UNDEFINED))


@torch.no_grad()
def dense(encode: Callable[[Tensor], SparseCode], x: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """Codes with one column for each latent, in batches."""
    return (
        torch.cat([encode(few).to_dense().float() for few in torch.split(x, 2048)]) if len(x) else encode(x).to_dense()
    )


def balanced(groups: Int64[Tensor, " n"], seed: int, n_groups: int) -> Int64[Tensor, " kept"]:
    """As many rows of each group, as the smallest has.

    Raises:
        UndefinedMetric: a group has no example.
    """
    counts = torch.bincount(groups[groups >= 0], minlength=n_groups)
    if int(counts.min()) == 0:
        raise UndefinedMetric(
            f"class {int(counts.argmin())} of {n_groups} has no examples here; harvest more documents"
        )
    generator = torch.Generator().manual_seed(mix_seed(seed, _DRAW, 1))
    rows = []
    for g in range(n_groups):
        of_group = (groups == g).nonzero()[:, 0]
        rows.append(of_group[torch.randperm(len(of_group), generator=generator)[: int(counts.min())]])
    return torch.cat(rows).sort().values
