"""Removing one atom at one token, and what that does to the predictions that follow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.loss import next_token_kl, next_token_loss
from sparsight.evaluation.reading import Predicts, StoredActivations, reported
from sparsight.models import Site, Tokens

DOSES = ("projection", "constant")
Encode: TypeAlias = Callable[[Tensor], SparseCode]
"""From activations `[n, d]` to their codes over the dictionary's atoms."""


@dataclass(frozen=True)
class Pairs:
    """Sampled (token, latent) pairs.

    Attributes:
        rows, positions, latents: Context within its batch, position in it, latent.
        documents: Document of each.
        projection: `<x - mean, d_j>`.
        values: Latent value according to each coder, by name; `projection` is the positive part of the projection.
        first_order: Change of loss for each unit of dose, `-<gradient, d_j>`.
        size, loss: The measured effect; 0 until it is measured.
    """

    rows: Int64[Tensor, " p"]
    positions: Int64[Tensor, " p"]
    latents: Int64[Tensor, " p"]
    documents: Int64[Tensor, " p"]
    projection: Float64[Tensor, " p"]
    values: dict[str, Tensor]
    first_order: Float64[Tensor, " p"]
    size: Float64[Tensor, " p"]
    loss: Float64[Tensor, " p"]


class Sampler:
    """Draws tokens of a context and latents of a token; one generator, so that equal seeds draw equally."""

    def __init__(
        self,
        dictionary: AbstractDictionary,
        coders: Mapping[str, Encode],
        mean: Float[Tensor, " d"],
        latents_per_token: int,
        tokens_per_context: int,
        seed: int,
    ) -> None:
        self.atoms = dictionary.atoms.detach()
        self.coders, self.mean = coders, mean
        self.latents_per_token, self.tokens_per_context = latents_per_token, tokens_per_context
        self.generator = torch.Generator().manual_seed(seed)

    def draw(
        self,
        x: Float[Tensor, "b t d"],
        slope_at: Float[Tensor, "b t d"],
        tokens: Tokens,
        documents: Int64[Tensor, " b"],
    ) -> Pairs:
        """Pairs of one batch, effects still 0."""
        eligible = (tokens.counted[:, :-1] & tokens.counted[:, 1:]).cpu()  # a later counted token is predicted
        chance = torch.rand(eligible.shape, generator=self.generator).masked_fill(~eligible, -1.0)
        best = chance.topk(min(self.tokens_per_context, chance.shape[1]), dim=1)
        rows, slots = (best.values >= 0).nonzero(as_tuple=True)
        positions = best.indices[rows, slots]
        there = x[rows, positions].to(self.atoms)
        with torch.no_grad():
            dense = torch.stack([encode(there).to_dense() for encode in self.coders.values()])
        active = (dense > 0).any(dim=0).cpu()
        chance = torch.rand(active.shape, generator=self.generator).masked_fill(~active, -1.0)
        best = chance.topk(min(self.latents_per_token, chance.shape[1]), dim=1)
        token, slot = (best.values >= 0).nonzero(as_tuple=True)
        latents = best.indices[token, slot]
        chosen = self.atoms[latents].double().cpu()
        projection = ((there[token].cpu() - self.mean.cpu()).double() * chosen).sum(dim=1)
        slopes = slope_at[rows, positions][token].double().cpu()
        values = {name: dense[i, token, latents].double().cpu() for i, name in enumerate(self.coders)}
        return Pairs(
            rows=rows[token],
            positions=positions[token],
            latents=latents,
            documents=documents.cpu()[rows[token]],
            projection=projection,
            values={**values, "projection": projection.clamp_min(0)},
            first_order=-(slopes * chosen).sum(dim=1),
            size=torch.zeros_like(projection),
            loss=torch.zeros_like(projection),
        )


def measure(
    lm: Predicts,
    part: StoredActivations,
    site: Site,
    sampler: Sampler,
    dose: str,
    n_tokens: int,
    batch_size: int,
    progress: bool,
) -> Pairs:
    """Sampled pairs with their effects.

    Args:
        lm: A model with a next-token loss, differentiable in its activations.
        part: Its contexts.
        site: Where atoms are removed.
        sampler: Draws tokens and latents.
        dose: The activation's component along the atom, or the root mean square of these components, for all pairs.
        n_tokens: About how many tokens to sample, in contexts spread evenly.
        batch_size: Contexts in one forward pass.
        progress: Show a bar on stderr.
    Raises:
        UndefinedMetric: no pair could be drawn.
    """
    n_contexts = sum(len(batch.tokens) for batch in part.context_batches(batch_size))
    share = min(1.0, n_tokens / sampler.tokens_per_context / n_contexts)
    drawn: list[tuple[Pairs, Tokens]] = []
    seen = 0
    with reported("sampling", n_contexts, shown=progress) as advance:
        for batch in part.context_batches(batch_size):
            numbers = torch.arange(seen, seen + len(batch.tokens))
            kept = ((numbers + 1) * share).floor() > (numbers * share).floor()
            seen += len(batch.tokens)
            if bool(kept.any()):
                tokens = batch.tokens[kept].to(lm.device)
                x, gradient = _clean_pass(lm, tokens, site)
                pairs = sampler.draw(x, gradient, tokens, batch.document_ids[kept])
                if len(pairs.latents) > 0:
                    drawn.append((pairs, tokens))
            advance(len(batch.tokens))
    if not drawn:
        raise UndefinedMetric("no pair to judge: no sampled token has an active latent and a later predicted token")
    projections = torch.cat([pairs.projection for pairs, _ in drawn])
    constant = float(projections.square().mean().sqrt())
    measured = []
    with reported("ablating", len(projections), shown=progress) as advance, torch.no_grad():
        for pairs, tokens in drawn:
            clean = lm.logits(tokens)
            amounts = pairs.projection if dose == "projection" else torch.full_like(pairs.projection, constant)
            effects = []
            for chunk in torch.split(torch.arange(len(amounts)), batch_size):
                effects.append(_ablated(lm, tokens, clean, site, pairs, sampler.atoms, amounts, chunk))
                advance(len(chunk))
            size, loss = torch.cat(effects, dim=1)
            measured.append(replace(pairs, size=size, loss=loss))
    return _joined(measured)


def _clean_pass(lm: Predicts, tokens: Tokens, site: Site) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
    """Activations, and the gradient of the summed loss of counted tokens by the activations."""
    leaves: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad():
        logits = lm.logits(tokens, edits={site: watched})
        loss = next_token_loss(logits, tokens.ids)[tokens.counted[:, 1:]].sum()
        (gradient,) = torch.autograd.grad(loss, leaves[0])
    return leaves[0].detach(), gradient


def _ablated(
    lm: Predicts,
    tokens: Tokens,
    clean: Float[Tensor, "b t vocab"],
    site: Site,
    pairs: Pairs,
    atoms: Float[Tensor, "m d"],
    amounts: Float64[Tensor, " p"],
    chunk: Int64[Tensor, " c"],
) -> Float64[Tensor, "2 c"]:
    """Size and change of loss for some pairs: one copy of the context for each."""
    rows, positions = pairs.rows[chunk], pairs.positions[chunk]
    removed = amounts[chunk].to(atoms).unsqueeze(1) * atoms[pairs.latents[chunk]]
    copies = tokens[rows]

    def ablate(x: Float[Tensor, "c t d"]) -> Float[Tensor, "c t d"]:
        edited = x.clone()
        edited[torch.arange(len(x)), positions] -= removed.to(x)
        return edited

    logits = lm.logits(copies, edits={site: ablate})
    before = clean[rows.to(clean.device)]
    later = torch.arange(copies.ids.shape[1] - 1) >= positions.unsqueeze(1)
    judged = later.to(logits.device) & copies.counted[:, 1:]
    divergence = (next_token_kl(before, logits).double() * judged).sum(dim=1)
    change = next_token_loss(logits, copies.ids) - next_token_loss(before, copies.ids)
    # Rounding can leave a divergence of nothing slightly below 0.
    size = (2 * divergence).clamp_min(0).sqrt()
    return torch.stack([size, (change.double() * judged).sum(dim=1)]).cpu()


def _joined(parts: list[Pairs]) -> Pairs:
    columns = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("rows", "positions", "latents", "documents", "projection", "first_order", "size", "loss")
    }
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    return Pairs(**columns, values=values)
