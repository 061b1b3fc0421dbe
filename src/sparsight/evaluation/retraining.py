"""The noise floor of a trained dictionary: one of the same kind, trained on a model that has learnt nothing.

Published scores of dictionaries of randomly initialised transformers are close to those of real ones: a score that does
not tell the two apart says nothing of what the model has learnt. Both are trained here by one small recipe on the same
texts, so that they differ in the model alone:

    same recipe    a dictionary of this model
    random model   a dictionary of the model with its weights drawn anew, judged on that model's own activations

The dictionary that is measured may have seen far more tokens; it is the two that are to be compared.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.activations import ContextBatch, TokenRows
from sparsight.activations.split import mix_seed
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.baselines import fvu_sums
from sparsight.evaluation.core_records import BaselineRecord
from sparsight.evaluation.reading import StoredActivations
from sparsight.evaluation.record_values import Resampling, ratio
from sparsight.models import LanguageModel, Site, randomised
from sparsight.training import Training, train

SAME_RECIPE, RANDOM_MODEL = "same recipe", "random model"
DESCRIPTIONS = {
    SAME_RECIPE: "a dictionary of the same kind, trained on this model by the recipe of the next row",
    RANDOM_MODEL: "a dictionary of the same kind, trained on the model with its weights drawn anew and judged on it",
}
_PASSES = 4  # over the training rows
_BATCH = 32
_WEIGHTS, _TRAINING = 0xDEAD, 0x7EA  # say what a generator is for, beside the seed


class HeldActivations:
    """Activations of one site, with their contexts and labels, in memory: a store that was never written."""

    def __init__(
        self,
        x: Float[Tensor, "n d"],
        facts: TokenRows,
        labels: dict[str, Tensor],
        contexts: list[ContextBatch],
        heldout: Bool[Tensor, " n"],
        *,
        site: Site,
        model: str,
    ) -> None:
        self.x, self.facts, self.held_labels, self.contexts, self.heldout = x, facts, labels, contexts, heldout
        self.sites, self.model, self.label_names = [site], model, list(labels)

    def __len__(self) -> int:
        return len(self.x)

    def width(self, site: Site) -> int:
        """Of the activations."""
        return self.x.shape[1]

    def rows(self, site: Site, rows: slice | Tensor) -> Float[Tensor, "m d"]:
        """Activations of some rows."""
        return self.x[rows]

    def tokens(self, rows: slice | Tensor) -> TokenRows:
        """Where they come from."""
        facts = self.facts
        return TokenRows(facts.token_ids[rows], facts.document_ids[rows], facts.positions[rows])

    def labels(self, rows: slice | Tensor) -> dict[str, Tensor]:
        """Their labels."""
        return {name: values[rows] for name, values in self.held_labels.items()}

    def split(self, name: str) -> "HeldActivations":
        """The training side or the held-out one, rows numbered anew."""
        mine = self.heldout == (name == "heldout")
        number = torch.full((len(self) + 1,), -1)  # the last is that of tokens without a row
        number[:-1][mine] = torch.arange(int(mine.sum()))
        kept = []
        for batch in self.contexts:
            there = (number[batch.rows] >= 0).any(dim=1)
            if bool(there.any()):
                kept.append(ContextBatch(batch.tokens[there], number[batch.rows[there]], batch.document_ids[there]))
        rows = mine.nonzero()[:, 0]
        labels = self.labels(rows)
        site = self.sites[0]
        return HeldActivations(
            self.x[rows], self.tokens(rows), labels, kept, self.heldout[rows], site=site, model=self.model
        )

    def context_batches(self, batch_size: int) -> Iterator[ContextBatch]:
        """Contexts, in the batches in which they were read."""
        yield from self.contexts


@dataclass(frozen=True)
class Retrained:
    """A dictionary trained by the small recipe, and where it is to be judged.

    Attributes:
        name: `SAME_RECIPE` or `RANDOM_MODEL`.
        dictionary: As trained.
        store: Activations of its own model, both sides.
        n_trained: Activations it was trained on, repeats counted.
        seconds: Reading and training.
    """

    name: str
    dictionary: AbstractDictionary
    store: HeldActivations
    n_trained: int
    seconds: float


def retrained(
    dictionary: AbstractDictionary,
    store: StoredActivations,
    model: object,
    site: Site,
    *,
    n_tokens: int,
    n_heldout: int = 8192,
    seed: int = 0,
) -> list[Retrained]:
    """Train a dictionary like this one on its model, and one on the model with its weights drawn anew.

    Args:
        dictionary: Its configuration is used, not its weights.
        store: Its contexts are read again by both models.
        model: Of the store.
        site: Where.
        n_tokens: Activations to train each on; a quarter of them are read, and repeated.
        n_heldout: Held-out activations to read for judging.
        seed: Of the weights, of the dictionaries' first values, and of the batches.
    Raises:
        UndefinedMetric: the dictionary's kind cannot be trained, or the model cannot be read and redrawn.
        DataError: the store has no rows on a side.
    """
    if not dictionary.config.trainable:
        raise UndefinedMetric(f"{dictionary.config.run_name} has no training of its own")
    if not isinstance(model, LanguageModel):
        raise UndefinedMetric("it needs the model itself, whose weights are drawn anew")
    found = []
    models = {SAME_RECIPE: model, RANDOM_MODEL: randomised(model, mix_seed(seed, _WEIGHTS))}
    for name, lm in models.items():
        began = time.perf_counter()
        held = read_anew(lm, store, site, {"train": max(1, n_tokens // _PASSES), "heldout": n_heldout})
        rows = held.split("train").x
        size = min(1024, len(rows))
        training = Training(n_tokens=n_tokens, batch_size=size, lr=2e-3, seed=mix_seed(seed, _TRAINING))
        with tempfile.TemporaryDirectory() as folder:
            device = str(dictionary.atoms.device)
            run = train(rows, [dictionary.config], training, out=folder, site=site, device=device)[0]
        made = run.dictionary
        made.model, made.site = held.model, site
        found.append(Retrained(name, made, held, n_tokens, time.perf_counter() - began))
    return found


def read_anew(lm: LanguageModel, store: StoredActivations, site: Site, limits: dict[str, int]) -> HeldActivations:
    """What a model makes of a store's contexts, at one site: about as many rows of each side as `limits` says.

    Contexts are taken from evenly spread places of each side.
    """
    xs, facts, labels, contexts, heldout = [], [], [], [], []
    n = 0
    for side, limit in limits.items():
        part = store.split(side)
        share, n_side, seen = min(1.0, limit / max(1, len(part))), 0, 0
        for batch in part.context_batches(_BATCH):
            place = seen + torch.arange(len(batch.document_ids), dtype=torch.float64)
            wanted = (((place + 1) * share).floor() > (place * share).floor()).nonzero()[:, 0]
            seen += len(place)
            if len(wanted) == 0:
                continue
            tokens, rows = batch.tokens[wanted], batch.rows[wanted]
            stored = rows >= 0
            with torch.no_grad():
                x = lm.activations(tokens.to(lm.device), [site])[site].cpu().float()
            old = rows[stored]
            known, named = part.tokens(old), part.labels(old)
            new = torch.full_like(rows, -1)
            new[stored] = torch.arange(n, n + len(old))
            xs.append(x[stored])
            facts.append((known.token_ids, known.document_ids, known.positions))
            labels.append(named)
            contexts.append(ContextBatch(tokens, new, batch.document_ids[wanted]))
            heldout.append(torch.full((len(old),), side == "heldout"))
            n, n_side = n + len(old), n_side + len(old)
        if n_side == 0:
            raise DataError(f"no context of the {side} side was read; the store is too small for {limit} tokens of it")
    token_ids, document_ids, positions = (torch.cat(column) for column in zip(*facts, strict=True))
    names = list(labels[0])
    return HeldActivations(
        torch.cat(xs),
        TokenRows(token_ids, document_ids, positions),
        {name: torch.cat([some[name] for some in labels]) for name in names},
        contexts,
        torch.cat(heldout),
        site=site,
        model=lm.name,
    )


def records_of(found: list[Retrained], resampling: Resampling) -> list[BaselineRecord]:
    """FVU and L0 of each on held-out documents of its own model, as baselines have them."""
    records = []
    for one in found:
        side = one.store.split("heldout")

        def reconstruct(x: Tensor, dictionary: AbstractDictionary = one.dictionary) -> tuple[Tensor, Tensor]:
            taken = x.to(dictionary.atoms)
            with torch.no_grad():
                z = dictionary.encode(taken)
                return dictionary.reconstruct(taken, z).to(x), z.l0().double()

        ids = side.facts.document_ids
        sums, l0 = fvu_sums(side.x, ids, reconstruct, side.x.double().mean(dim=0))
        records.append(
            BaselineRecord(
                baseline=one.name,
                what=f"{DESCRIPTIONS[one.name]}; {one.n_trained:,} training tokens, {one.seconds:.0f} s",
                n_tokens=len(side.x),
                l0=l0,
                fvu=resampling.estimate(sums, ratio(0, 1)),
                loss_added=None,
            )
        )
    return records
