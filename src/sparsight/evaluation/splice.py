"""Putting something in the place of a site's activations, and reading off what the model makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sparsight.errors import ModelError, UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.loss import LossAdded, next_token_kl, next_token_loss
from sparsight.evaluation.reading import Predicts, StoredActivations, reported
from sparsight.models import Site, Tokens

Replacement = Callable[[Tensor], Tensor]
"""From activations `[m, d]` to what stands in their place, the same shape."""


@dataclass(frozen=True)
class FromSite:
    """A replacement that is computed from the activations of another site, read in the same forward pass.

    Attributes:
        reads: Where it reads; the model must come by there before the place of the replacement.
        function: From activations `[m, d_in]` at `reads` to what stands at the other site, `[m, d_out]`.
    """

    reads: Site
    function: Replacement


def edits_of(
    site: Site, replacement: Replacement | FromSite, counted: Bool[Tensor, "b t"]
) -> dict[Site, Callable[[Tensor], Tensor]]:
    """What a forward pass is edited with, so that the replacement stands at `site`.

    Raises:
        ValueError: (in the pass) the model comes by `site` before the site that the replacement reads.
    """
    if not isinstance(replacement, FromSite):
        return {site: replace_counted(replacement, counted)}
    held: list[Tensor] = []

    def hold(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        held[:] = [replacement.function(x[counted])]
        return x

    def put(y: Tensor) -> Tensor:
        if not held:
            raise ValueError(f"{site} is computed before {replacement.reads}, so nothing read there can replace it")
        return held.pop()

    return {replacement.reads: hold, site: replace_counted(put, counted)}


def replace_counted(replacement: Replacement, counted: Bool[Tensor, "b t"]) -> Callable[[Tensor], Tensor]:
    """An edit that replaces activations at counted tokens and leaves padding and special tokens as they are.

    Special tokens stay untouched because dictionaries are not trained on them, and because a damaged first token (the
    attention sink of many models) would be blamed on the reconstruction.
    """

    def edit(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        edited = x.clone()
        edited[counted] = replacement(x[counted]).to(x.dtype)
        return edited

    return edit


def replaced_losses(
    lm: Predicts,
    tokens: Tokens,
    site: Site,
    replacements: Mapping[str, Replacement | FromSite],
    *,
    clean: Float[Tensor, "b t v"] | None = None,
) -> dict[str, Float64[Tensor, "m 2"]]:
    """Loss and divergence from the clean model, for each replacement, at every prediction of a counted token.

    Args:
        lm: A model with a next-token loss.
        tokens: Contexts.
        site: Where to replace.
        replacements: Functions of the activations at counted tokens, by name.
        clean: Logits of the model on these contexts, where they are known.
    Returns:
        For `"clean"` and for each name: one row `(loss, KL(clean || replaced))` in nats for each predicted counted
        token, in the order of `tokens.counted[:, 1:]`.
    Raises:
        ModelError: the model has no next-token loss.
    """
    if not lm.has_causal_loss:
        raise ModelError(f"{lm.name} ({lm.family}) has no causal loss; measure this dictionary without a model")
    tokens = tokens.to(lm.device)
    counted = tokens.counted
    predicted = counted[:, 1:]
    with torch.no_grad():
        clean = lm.logits(tokens) if clean is None else clean
        loss = next_token_loss(clean, tokens.ids)[predicted].double()
        found = {"clean": torch.stack([loss, torch.zeros_like(loss)], dim=1)}
        for name, replacement in replacements.items():
            logits = lm.logits(tokens, edits=edits_of(site, replacement, counted))
            loss = next_token_loss(logits, tokens.ids)[predicted].double()
            divergence = next_token_kl(clean, logits)[predicted].double()
            found[name] = torch.stack([loss, divergence], dim=1)
    return found


class KnownLosses:
    """Losses that do not depend on the dictionary, kept from one measurement for the next of the same contexts.

    The passes of a model that is clean, or whose site is ablated, are the same for all dictionaries of a site. Their
    rows are small and all kept. The clean logits, which every divergence needs, are kept up to a limit; beyond it that
    pass is made anew. Nothing changes by it, to the last bit.

    Args:
        clean_bytes: Most memory for clean logits.
    """

    names = frozenset({"zero", "mean"})  # of replacements that no dictionary changes

    def __init__(self, clean_bytes: int = 2**28) -> None:
        self.room = clean_bytes
        self.of: tuple[object, ...] | None = None
        self.rows: dict[int, dict[str, Tensor]] = {}
        self.logits: dict[int, Tensor] = {}

    def claim(self, *of: object) -> None:
        """Say what is measured.

        Raises:
            ValueError: it was something else before.
        """
        if self.of not in (None, of):
            raise ValueError(
                "these known losses are of another model, site, store or choice of tokens; begin new ones with "
                "KnownLosses()"
            )
        self.of = of

    def complete(
        self, i: int, lm: Predicts, tokens: Tokens, site: Site, replacements: Mapping[str, Replacement | FromSite]
    ) -> dict[str, Float64[Tensor, "m 2"]]:
        """`replaced_losses` of batch `i`, of which only what is not known is computed."""
        there = self.rows.setdefault(i, {})
        missing = {name: function for name, function in replacements.items() if name not in there}
        clean = self.logits.get(i)
        if clean is None and lm.has_causal_loss:
            with torch.no_grad():
                clean = lm.logits(tokens.to(lm.device))
            if clean.nbytes <= self.room:
                self.room -= clean.nbytes
                self.logits[i] = clean
        found = replaced_losses(lm, tokens, site, missing, clean=clean)
        there |= {name: rows for name, rows in found.items() if name in self.names}
        return there | found


def ablations(mean: Float[Tensor, " d"]) -> dict[str, Replacement]:
    """The two ablations every splice is put beside: by zero, and by the mean activation."""
    return {"zero": torch.zeros_like, "mean": lambda x: mean.to(x).expand_as(x)}


def measure_losses(
    lm: Predicts,
    store: StoredActivations,
    site: Site,
    replacements: Mapping[str, Replacement | FromSite],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    known: KnownLosses | None = None,
    progress: bool = False,
    watch: Callable[[dict[str, Tensor]], None] = lambda found: None,
) -> tuple[DocumentSums, dict[str, int]]:
    """Losses over the contexts of a store, summed within each document.

    Args:
        lm: A model with a next-token loss.
        store: Contexts; padding and special tokens are neither replaced nor predicted.
        site: Where to replace.
        replacements: Functions of the activations at counted tokens, by name.
        limit: About how many tokens to use, in contexts spread evenly; all when None.
        batch_size: Contexts in one forward pass.
        known: What earlier calls with the same model, contexts, site and limit found; what this one finds is added.
        progress: Show a bar on stderr.
        watch: Sees what `replaced_losses` found, batch by batch.
    Returns:
        Sums of each document, and the column of each name (and of `"clean"`): column 0 holds the predicted tokens, a
        name's column its loss, and the one after it its `KL(clean || replaced)`.
    Raises:
        ModelError: the model has no next-token loss.
        UndefinedMetric: no counted token is predicted from another.
    """
    names = ["clean", *replacements]
    columns = {name: 1 + 2 * i for i, name in enumerate(names)}
    documents = DocumentSums(1 + 2 * len(names))
    share = 1.0 if limit is None else min(1.0, limit / len(store))
    due = 1.0 - share  # so that the first batch is taken
    with reported("predicting", len(store), shown=progress) as advance:
        for i, batch in enumerate(store.context_batches(batch_size)):
            counted = batch.tokens.counted
            due += share
            if due >= 1 - 1e-9:
                due -= 1
                if known is None:
                    found = replaced_losses(lm, batch.tokens, site, replacements)
                else:
                    found = known.complete(i, lm, batch.tokens, site, replacements)
                watch(found)
                ids = batch.document_ids[:, None].expand(counted[:, 1:].shape)[counted[:, 1:]]
                terms = torch.cat([found[name].cpu() for name in names], dim=1)
                documents.add(ids, torch.cat([torch.ones(len(terms), 1, dtype=torch.float64), terms], dim=1))
            advance(int(counted.sum()))
    if len(documents) == 0:
        raise UndefinedMetric("loss is undefined: no stored token is predicted from another; use longer contexts")
    return documents, columns


def loss_added(
    lm: Predicts, tokens: Tokens, site: Site, reconstruct: Replacement, mean: Float[Tensor, " d"]
) -> LossAdded:
    """The losses of one batch of contexts, summed.

    Args:
        lm: A model with a next-token loss.
        tokens: Contexts; padding and special tokens are neither replaced nor predicted.
        site: Where the reconstruction is spliced in.
        reconstruct: From activations `[m, d]` to reconstructions.
        mean: Mean activation, for mean ablation.
    Raises:
        ModelError: the model has no next-token loss.
    """
    found = replaced_losses(lm, tokens, site, {"spliced": reconstruct, **ablations(mean)})
    return LossAdded(
        n=len(found["clean"]),
        sum_clean=found["clean"][:, 0].sum().item(),
        sum_spliced=found["spliced"][:, 0].sum().item(),
        sum_zero=found["zero"][:, 0].sum().item(),
        sum_mean=found["mean"][:, 0].sum().item(),
        sum_kl=found["spliced"][:, 1].sum().item(),
    )
