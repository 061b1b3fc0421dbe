"""Stores with planted representations, and a model whose next token is a known function of its activations."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from sparsight.models import Site, Tokens

SITES = [Site.parse("embed"), Site.parse("0.resid_post"), Site.parse("0.mlp_out")]


class PlantedStore:
    """Activations in memory, several sites; documents whose number is divisible by 3 are held out.

    One context for each document, with a special token before its rows.
    """

    def __init__(
        self,
        x: dict[str, Tensor],
        document_ids: Tensor,
        token_ids: Tensor,
        labels: dict[str, Tensor],
        model: str = "tiny",
    ) -> None:
        self.x = {Site.parse(site): values for site, values in x.items()}
        self.document_ids, self.token_ids, self._labels, self.model = document_ids, token_ids, labels, model
        self.sites, self.label_names = list(self.x), list(labels)

    def __len__(self) -> int:
        return len(self.document_ids)

    def width(self, site: Site) -> int:
        return self.x[site].shape[1]

    def rows(self, site: Site, rows: slice | Tensor) -> Tensor:
        return self.x[site][rows].float()

    def tokens(self, rows: slice | Tensor) -> SimpleNamespace:
        return SimpleNamespace(document_ids=self.document_ids[rows], token_ids=self.token_ids[rows])

    def labels(self, rows: slice | Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self._labels.items()}

    def split(self, name: str) -> "PlantedStore":
        mine = (self.document_ids % 3 == 0) == (name == "heldout")
        return PlantedStore(
            {str(site): values[mine] for site, values in self.x.items()},
            self.document_ids[mine],
            self.token_ids[mine],
            {label: values[mine] for label, values in self._labels.items()},
            self.model,
        )

    def context_batches(self, batch_size: int) -> Iterator[SimpleNamespace]:
        for document in torch.unique(self.document_ids).tolist():
            rows = (self.document_ids == document).nonzero()[:, 0]
            ids = torch.cat([torch.zeros(1, dtype=torch.int64), self.token_ids[rows]])[None]
            special = torch.zeros_like(ids, dtype=torch.bool)
            special[0, 0] = True
            tokens = Tokens(ids, torch.ones_like(special), special)
            yield SimpleNamespace(
                tokens=tokens,
                rows=torch.cat([torch.tensor([-1]), rows])[None],
                document_ids=torch.tensor([document]),
            )


class Reader:
    """A model of one site: activations are looked up by token, and the next token's logits are linear in them."""

    name = "tiny"
    family = "planted"
    device = torch.device("cpu")
    has_causal_loss = True

    def __init__(self, table: Tensor, unembed: Tensor, site: str = "0.resid_post") -> None:
        self.table, self.unembed, self.site = table, unembed, Site.parse(site)

    def logits(self, tokens: Tokens, *, edits: dict | None = None) -> Tensor:
        x = self.table[tokens.ids]
        for site, edit in (edits or {}).items():
            edited = edit(x)
            x = edited if site == self.site else x  # the other sites are read by nothing
        return (x.double() @ self.unembed.double()).float()


def documents(n: int, per_document: int = 10) -> Tensor:
    return torch.arange(n) // per_document


def directions(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows."""
    return torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64)).Q.T
