"""A store held in memory, and a model small enough to check by hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from sparsight.dictionaries import TopK, TopKDictionary
from sparsight.models import LanguageModel, Site, Tokens

SITE = Site.parse("1.resid_post")


@dataclass(frozen=True)
class Batch:
    tokens: Tokens
    document_ids: Tensor


class MemoryStore:
    """What evaluation reads of an `ActivationStore`. Documents whose number is divisible by 3 are held out."""

    def __init__(
        self,
        x: Tensor,
        document_ids: Tensor,
        labels: dict[str, Tensor] | None = None,
        contexts: list[Batch] | None = None,
        model: str = "tiny",
        site: Site = SITE,
    ) -> None:
        self.x, self.document_ids, self.model = x, document_ids, model
        self.sites = [site]
        self._labels = labels or {}
        self._contexts = contexts or []
        self.label_names = list(self._labels)

    def __len__(self) -> int:
        return len(self.x)

    def width(self, site: Site) -> int:
        return self.x.shape[1]

    def rows(self, site: Site, rows: slice | Tensor) -> Tensor:
        assert site in self.sites
        return self.x[rows].float()

    def tokens(self, rows: slice | Tensor) -> SimpleNamespace:
        ids = self.document_ids
        # Documents lie in one piece: a token's place is its distance from the first of its document.
        places = torch.arange(len(ids)) - torch.searchsorted(ids, ids)
        return SimpleNamespace(document_ids=ids[rows], positions=places[rows])

    def labels(self, rows: slice | Tensor) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self._labels.items()}

    def split(self, name: str) -> "MemoryStore":
        def mine(ids: Tensor) -> Tensor:
            return (ids % 3 == 0) == (name == "heldout")

        rows = mine(self.document_ids)
        return MemoryStore(
            self.x[rows],
            self.document_ids[rows],
            {label: values[rows] for label, values in self._labels.items()},
            [batch for batch in self._contexts if bool(mine(batch.document_ids).all())],
            self.model,
            self.sites[0],
        )

    def context_batches(self, batch_size: int) -> Iterator[Batch]:
        yield from self._contexts


def topk_dictionary(d_in: int = 8, n_latents: int = 24, k: int = 4, seed: int = 0, **where: object) -> TopKDictionary:
    """A random tied dictionary with an offset, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = TopK(n_latents, k).build(d_in, generator)
    with torch.no_grad():
        dictionary.b_dec += torch.randn(d_in, generator=generator)
    for name, value in where.items():
        setattr(dictionary, name, value)
    return dictionary


def activations(n: int = 900, d: int = 8, documents: int = 30, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Activations that differ from document to document, and the document of each."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.arange(documents).repeat_interleave(n // documents)
    offsets = torch.randn(documents, d, generator=g)
    return 2 * torch.randn(n, d, generator=g) + offsets[ids] + 1.5, ids


def tiny_gpt2(dtype: torch.dtype = torch.float64) -> LanguageModel:
    """Three random layers of width 8 over 20 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return LanguageModel(model.requires_grad_(False), SimpleNamespace(model_max_length=16), name="tiny")


def contexts(n_batches: int = 6, b: int = 3, t: int = 10, lm: LanguageModel | None = None) -> list[Batch]:
    """Contexts with a special first token; the last row of each batch is padded. One document for each row.

    With a model, each token is the one the model itself expects: then ablations hurt.
    """
    g = torch.Generator().manual_seed(2)
    made = []
    for i in range(n_batches):
        ids = torch.randint(1, 20, (b, t), generator=g)
        ids[:, 0] = 0
        special = torch.zeros(b, t, dtype=torch.bool)
        special[:, 0] = True
        mask = torch.ones(b, t, dtype=torch.bool)
        for at in range(2, t) if lm is not None else ():
            ids[:, at] = lm.logits(Tokens(ids, mask, special))[:, at - 1].argmax(-1)
        mask = mask.clone()
        mask[-1, 6:] = False
        made.append(Batch(Tokens(ids, mask, special), 3 * (i + 100 * torch.arange(b))))
    return made


def store_of_model(lm: LanguageModel, batches: list[Batch], site: Site = SITE) -> MemoryStore:
    """The activations of a model at the counted tokens of some contexts."""
    x, ids = [], []
    for batch in batches:
        counted = batch.tokens.counted
        x.append(lm.activations(batch.tokens, [site])[site][counted])
        ids.append(batch.document_ids[:, None].expand(counted.shape)[counted])
    return MemoryStore(torch.cat(x), torch.cat(ids), contexts=batches, site=site)
