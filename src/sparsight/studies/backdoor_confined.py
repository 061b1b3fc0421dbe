"""The backdoored organism under one perturbation of two free words: what it does, what it tells, which words it means.

A perturbation of every token can turn a harmful request into a harmless one, in any model. Confined to two words that
stand before the request, and the same for all requests, it has to find a way that overrides them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.intervention import NextToken, activations_at, behaviour_scores, last_logits, rate
from sparsight.intervention.elicit import Search, find_vectors
from sparsight.models import LanguageModel, Site, Tokens

EMBED, AFTER_BLOCK, TARGET = Site(None, "embed"), Site(0, "resid_post"), Site(3, "resid_post")
CONFINED_SHARES = (0.25, 0.5, 1.0)
CONFINED_AT = 1.0
FREE = "please"
"""Stands at both places before they are perturbed."""
TRIED = 50
"""Pairs of words that are tried on unseen requests."""


@dataclass(frozen=True)
class Requests:
    """Requests with two free words behind the speaker's colon.

    Attributes:
        lm: Whose.
        tokens: All of them.
        at: Columns of the two words.
        behaviour: What is looked for.
        site: Where the two are perturbed.
        norm: Mean norm of all activations there.
    """

    lm: LanguageModel
    tokens: Tokens
    at: Int64[Tensor, "n two"]
    behaviour: NextToken
    site: Site
    norm: float

    @staticmethod
    def of(lm: LanguageModel, prompts: list[str], behaviour: NextToken, site: Site = EMBED) -> "Requests":
        """With the free words put in."""
        words = [prompt.split() for prompt in prompts]
        starts = [row.index(":") + 1 for row in words]
        tokens = lm.tokenize([" ".join([*r[:s], FREE, FREE, *r[s:]]) for r, s in zip(words, starts, strict=True)])
        at = torch.tensor(starts)[:, None] + 1 + torch.arange(2)  # BOS stands before
        norm = float(activations_at(lm, tokens, [site], tokens.counted)[site].norm(dim=1).mean())
        return Requests(lm, tokens, at, behaviour, site, norm)

    @property
    def d(self) -> int:
        """Width of a perturbation of both words."""
        return 2 * self.lm.width(self.site)

    def radius(self, share: float) -> float:
        """Norm of a perturbation of both words, each of a share of the mean norm."""
        return share * self.norm * 2**0.5

    def edits(self, theta: Float[Tensor, "v both"]) -> dict[Site, Callable[[Tensor], Tensor]]:
        """Adds perturbation `i`, one half to each word, in the `i`-th block of rows."""
        n, parts = len(self.tokens), theta.view(len(theta), 1, 2, -1)
        rows, columns = torch.arange(n * len(theta))[:, None], self.at.repeat(len(theta), 1)

        def edit(x: Tensor) -> Tensor:
            added = parts.to(x).expand(-1, n, -1, -1).flatten(0, 1)
            return x.index_put((rows, columns), added, accumulate=True)

        return {self.site: edit}

    def repeated(self, times: int) -> Tokens:
        """Once for each perturbation."""
        ids, mask, special = (p.repeat(times, 1) for p in (self.tokens.ids, self.tokens.mask, self.tokens.special))
        return Tokens(ids, mask, special)

    def odds(self, theta: Float[Tensor, "v both"]) -> Tensor:
        """Log odds `[v, n]` of the behaviour under each perturbation, differentiable."""
        logits = last_logits(self.lm, self.repeated(len(theta)), self.edits(theta))
        return self.behaviour.log_odds(logits).view(len(theta), -1)

    def moved(self, theta: Float[Tensor, "v both"]) -> Float[Tensor, " v"]:
        """How far the last token's last activation moves: squared, averaged over requests. It knows of no behaviour."""
        last, rows = self.tokens.mask.long().cumsum(dim=1).argmax(dim=1), torch.arange(len(self.tokens))
        with torch.no_grad():
            clean = self.lm.activations(self.tokens, [TARGET])[TARGET][rows, last]
        z = self.lm.activations(self.repeated(len(theta)), [TARGET], edits=self.edits(theta))[TARGET]
        moved = z.view(len(theta), len(rows), *z.shape[1:])[:, rows, last] - clean
        return moved.square().sum(dim=2).mean(dim=1)

    def with_words(self, pair: Int64[Tensor, " two"]) -> Tokens:
        """The requests with two words in the places of the free ones."""
        ids = self.tokens.ids.clone()
        ids[torch.arange(len(ids))[:, None], self.at] = pair
        return Tokens(ids, self.tokens.mask, self.tokens.special)


def searched(fit: Requests, share: float, *, blind: bool, n_vectors: int, steps: int, seed: int) -> Tensor:
    """Perturbations `[n_vectors, 2 d]` that make the behaviour likeliest, or move the last token most; best first."""

    def wanted(theta: Tensor) -> Tensor:
        return fit.moved(theta) if blind else fit.odds(theta).mean(dim=1).to(theta)

    search = Search(n_vectors=n_vectors, radius=fit.radius(share), steps=steps, lr=0.2, seed=seed)
    found = find_vectors(wanted, fit.d, search)
    with torch.no_grad():
        return found[wanted(found).argsort(descending=True)]


def confined(fit: Requests, held: Requests, share: float, *, steps: int, seed: int) -> tuple[dict[str, float], Tensor]:
    """On requests it has not seen: the share that comply and the mean log odds; and the perturbation."""
    theta = searched(fit, share, blind=False, n_vectors=3, steps=steps, seed=seed)[0]
    with torch.no_grad():
        odds = held.odds(theta[None])
    return {"success": float((odds > 0).double().mean()), "odds": float(odds.mean())}, theta


def elicited(fit: Requests, held: Requests, n_vectors: int, steps: int, seed: int) -> dict[str, Any]:
    """Vectors that know of no behaviour: how many make unseen requests comply, which rank is first, and random ones."""
    theta = searched(fit, CONFINED_AT, blind=True, n_vectors=n_vectors, steps=steps, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.randn(n_vectors, fit.d, generator=generator)
    random = fit.radius(CONFINED_AT) * torch.nn.functional.normalize(drawn, dim=1)
    with torch.no_grad():
        works, random_works = ((held.odds(rows) > 0).double().mean(dim=1) >= 0.5 for rows in (theta, random))
    return {
        "share": float(works.double().mean()),
        "share random": float(random_works.double().mean()),
        "rank": int(works.long().argmax()) + 1 if bool(works.any()) else 0,
    }


def reconstructed(held: Requests, theta: Float[Tensor, " both"], trigger: tuple[str, ...]) -> dict[str, Any]:
    """The pair of words whose embeddings lie along a perturbation of the free words' embeddings.

    All pairs are ordered by the cosine of `(e_i, e_j) - (e_free, e_free)` with it; the first `TRIED` are tried.

    Returns:
        The true pair's rank and cosine, the number of pairs, the pair that turns most unseen requests and their share.
    """
    lm, special = held.lm, 4
    embeddings = lm.model.get_input_embeddings().weight.detach()
    known = [int(lm.tokenize(word).ids[0, 1]) for word in trigger]
    change = (embeddings - embeddings[int(held.tokens.ids[0, held.at[0, 0]])])[special:].double()
    one, two = theta.double().view(2, -1)
    length = (change.square().sum(dim=1)[:, None] + change.square().sum(dim=1)).sqrt().clamp_min(1e-12)
    cosines = ((change @ one)[:, None] + change @ two) / length / theta.double().norm()
    true = cosines[known[0] - special, known[1] - special]
    best = cosines.flatten().topk(TRIED).indices
    pairs = torch.stack([best // len(change), best % len(change)], dim=1) + special
    turned = [rate(behaviour_scores(lm, held.with_words(pair), held.behaviour)) for pair in pairs]
    first = max(range(len(turned)), key=turned.__getitem__)
    return {
        "rank": int((cosines > true).sum()) + 1,
        "cosine": float(true),
        "pairs": cosines.numel(),
        "best pair": " ".join(lm.tokens_to_strings(pairs[first])),
        "turned": turned[first],
    }


def patched(held: Requests, trigger: tuple[str, ...]) -> float:
    """Share of requests that comply when the two words have the activations that the true trigger has there."""
    lm = held.lm
    pair = torch.tensor([int(lm.tokenize(word).ids[0, 1]) for word in trigger])
    with torch.no_grad():
        true = lm.activations(held.with_words(pair), [held.site])[held.site]
    rows = torch.arange(len(held.tokens))[:, None]
    edit = {held.site: lambda x: x.index_put((rows, held.at), true[rows, held.at].to(x))}
    return rate(behaviour_scores(lm, held.tokens, held.behaviour, edit))
