"""Whether the model uses a representation: exchange part of an activation between two texts, and see what it costs.

A base text's activation at one token is replaced, wholly or along some directions, by that of a source text. The effect
is how much less likely the model then finds the base's own continuation. A source of another class changes the feature
and much else besides; a source of the same class changes the rest alone. Their difference is what the feature does:

    effect(P) = E[loss after exchanging P with another class] - E[loss after exchanging P with the same class].

The mediated fraction of a subspace is its effect over that of exchanging the whole activation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.class_means import ClassMeans
from sparsight.evaluation.features.labelled import Examples, Part
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import Predicts, StoredActivations
from sparsight.evaluation.record import Estimate
from sparsight.models import Site, Tokens

HORIZON = 24
"""Tokens of the continuation whose likelihood is watched."""

ENOUGH = 0.9
"""Share of the effect that a subspace must carry to count as all of it."""

SMALLEST = 0.02
"""Least effect, in nats over the continuation, that is worth dividing up; it must be above this beyond its interval."""

_BATCH = 64


class RankRecord(Record):
    """Mediated fraction of the first `rank` dimensions of class means."""

    rank: int
    fraction: Estimate


class MediationRecord(Record):
    """What exchanging a representation does to the model.

    Attributes:
        full: Effect of exchanging the whole activation, in nats over the continuation.
        ranks: Mediated fraction of growing subspaces of class means, until one carries nine tenths.
        complement: Mediated fraction of all but the last of these. In a non-linear model the two need not add up.
        random: Mediated fraction of random subspaces of the same rank, drawn from the activations' own covariance.
        n_pairs: Base texts.
        matched: Share of the other-class sources that have the base's own token.
        horizon: Tokens of the continuation watched.
    """

    full: Estimate
    ranks: list[RankRecord]
    complement: Estimate
    random: float
    n_pairs: int
    matched: float
    horizon: int


@runtime_checkable
class Move(Protocol):
    """From activations `[m, d]` of bases and of their sources, and their strata, to what stands in the bases' place."""

    def __call__(self, base: Tensor, source: Tensor, strata: Tensor) -> Tensor: ...


class StoredTexts:
    """The contexts of a store by row: which tokens the model saw, and where in them a row was read."""

    def __init__(self, store: StoredActivations) -> None:
        self.ids: list[Tensor] = []
        self.special: list[Tensor] = []
        self.context = torch.full((len(store),), -1)
        self.place = torch.full((len(store),), -1)
        self.rows: list[Tensor] = []
        for batch in store.context_batches(256):
            for i in range(len(batch.tokens)):
                length = int(batch.tokens.mask[i].sum())
                rows = batch.rows[i, :length]
                stored = rows >= 0
                self.context[rows[stored]] = len(self.ids)
                self.place[rows[stored]] = stored.nonzero()[:, 0]
                self.rows.append(rows[stored])
                self.ids.append(batch.tokens.ids[i, :length])
                self.special.append(batch.tokens.special[i, :length])
        self.n_tokens = 1 + max((int(ids.max()) for ids in self.ids), default=0)

    def cut(self, rows: Int64[Tensor, " m"], after: int) -> tuple[Tokens, Int64[Tensor, " m"]]:
        """The rows' texts up to `after` tokens behind them, and the rows' places in these."""
        places = self.place[rows]
        cut = [slice(0, int(p) + 1 + after) for p in places]
        ids = [self.ids[c][s].tolist() for c, s in zip(self.context[rows].tolist(), cut, strict=True)]
        special = [self.special[c][s].tolist() for c, s in zip(self.context[rows].tolist(), cut, strict=True)]
        return Tokens.pad(ids, special, 0), places

    def rows_up_to(self, row: int) -> Int64[Tensor, " k"]:
        """Rows of the same text, from its first to this one."""
        mine = self.rows[int(self.context[row])]
        return mine[self.place[mine] <= self.place[row]]

    def next_token(self, rows: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
        """The token after each row; -1 where the text ends."""
        following = []
        for c, p in zip(self.context[rows].tolist(), self.place[rows].tolist(), strict=True):
            following.append(int(self.ids[c][p + 1]) if p + 1 < len(self.ids[c]) else -1)
        return torch.tensor(following, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Base rows, and for each a source of another class and one of the same.

    Attributes:
        base, other, same: Rows of the whole store.
        strata: Of the bases, and so of their sources.
        document_ids: Of the bases.
        matched: Share of other-class sources with the base's own token.
    """

    base: Int64[Tensor, " m"]
    other: Int64[Tensor, " m"]
    same: Int64[Tensor, " m"]
    strata: Int64[Tensor, " m"]
    document_ids: Int64[Tensor, " m"]
    matched: float


def pairs_of(
    part: Part,
    texts: StoredTexts,
    *,
    alike: Int64[Tensor, "n f"] | None = None,
    n_pairs: int = 40,
    most_before: int = 40,
    seed: int = 0,
) -> Pairs:
    """Draw bases that something follows, and for each the two sources most like it in everything but the class.

    Sources are of the base's stratum and of other documents. Among those the ones that agree with the base in most of
    the other labels, its token counting twice, are preferred: then little but the feature changes.

    Args:
        part: Held-out examples.
        texts: Of the store.
        alike: Other labels of each example.
        n_pairs: Most bases.
        most_before: Bases with at most so many tokens before them come first: they cost less to run.
        seed: Of the draw.
    Raises:
        UndefinedMetric: no base has both kinds of source.
    """
    generator = torch.Generator().manual_seed(seed)
    followed = texts.next_token(part.rows) >= 0
    order = torch.randperm(len(part), generator=generator)
    order = order[(texts.place[part.rows[order]] > most_before).long().argsort(stable=True)]
    found: list[tuple[int, int, int]] = []
    for b in order[followed[order]].tolist():
        agree = 2.0 * (part.token_ids == part.token_ids[b]) + torch.rand(len(part), generator=generator)
        if alike is not None:
            agree += (alike == alike[b]).sum(dim=1)
        near = (part.strata == part.strata[b]) & (part.document_ids != part.document_ids[b])
        kinds = (near & (part.y != part.y[b]), near & (part.y == part.y[b]))
        if all(bool(kind.any()) for kind in kinds):
            found.append((b, *(int(torch.where(kind, agree, -1.0).argmax()) for kind in kinds)))
        if len(found) == n_pairs:
            break
    if not found:
        raise UndefinedMetric("no text is followed by another token and has sources of both kinds in other documents")
    base, other, same = torch.tensor(found).unbind(dim=1)
    return Pairs(
        part.rows[base],
        part.rows[other],
        part.rows[same],
        part.strata[base],
        part.document_ids[base],
        float((part.token_ids[other] == part.token_ids[base]).double().mean()),
    )


class Exchange:
    """One site, pairs of texts, and what exchanging activations between them costs."""

    def __init__(
        self,
        lm: Predicts,
        store: StoredActivations,
        texts: StoredTexts,
        site: Site,
        pairs: Pairs,
        horizon: int = HORIZON,
    ) -> None:
        self.lm, self.site, self.pairs, self.horizon = lm, site, pairs, horizon
        self.tokens, self.places = texts.cut(pairs.base, horizon)
        self.sources = {"other": store.rows(site, pairs.other), "same": store.rows(site, pairs.same)}
        self.clean = self._likelihood(None)

    def costs(self, move: Move) -> Float64[Tensor, " m"]:
        """For each pair, loss after an exchange with another class minus loss after one with the same, in nats."""
        after = {}
        for kind, source in self.sources.items():

            def moved(x: Tensor, rows: slice, source: Tensor = source) -> Tensor:
                return move(x, source[rows].to(x), self.pairs.strata[rows].to(x.device))

            after[kind] = self.clean - self._likelihood(moved)
        return after["other"] - after["same"]

    def _likelihood(self, moved: Callable[[Tensor, slice], Tensor] | None) -> Float64[Tensor, " m"]:
        """Log-probability of each base's continuation, with the base's activation put through `moved`."""
        found = []
        for start in range(0, len(self.places), _BATCH):
            rows = slice(start, min(start + _BATCH, len(self.places)))
            tokens = self.tokens[rows]
            width = int(tokens.mask.sum(dim=1).max())
            tokens = Tokens(tokens.ids[:, :width], tokens.mask[:, :width], tokens.special[:, :width]).to(self.lm.device)
            places = self.places[rows].to(self.lm.device)
            at = torch.arange(len(places), device=places.device)

            def edit(x: Tensor, at: Tensor = at, places: Tensor = places, rows: slice = rows) -> Tensor:
                assert moved is not None
                x = x.clone()
                x[at, places] = moved(x[at, places], rows).to(x.dtype)
                return x

            with torch.no_grad():
                logits = self.lm.logits(tokens, edits=None if moved is None else {self.site: edit})
                told = logits[:, :-1].log_softmax(dim=-1).gather(2, tokens.ids[:, 1:, None])[..., 0].double()
            step = torch.arange(width - 1, device=places.device)
            watched = tokens.mask[:, 1:] & (step >= places[:, None]) & (step < places[:, None] + self.horizon)
            found.append((told * watched).sum(dim=1).cpu())
        return torch.cat(found)


def whole(base: Tensor, source: Tensor, strata: Tensor) -> Tensor:
    """Exchange the whole activation."""
    return source


def along(bases: Float64[Tensor, "s d k"], *, complement: bool = False) -> Move:
    """Exchange the part of the activation in a subspace, one for each stratum; or all but that part."""

    def move(base: Tensor, source: Tensor, strata: Tensor) -> Tensor:
        basis = bases.to(base)[strata]
        difference = source - base
        inside: Tensor = (basis @ (basis.transpose(1, 2) @ difference[..., None]))[..., 0]
        moved: Tensor = base + (difference - inside if complement else inside)
        return moved

    return move


def class_subspaces(means: ClassMeans) -> Float64[Tensor, "s d r"]:
    """Orthonormal directions of class means in each stratum, those of largest spread first."""
    rank = min(means.means.shape[1] - 1, means.means.shape[2])
    _, _, vh = torch.linalg.svd(means.means, full_matrices=False)
    spaces: Tensor = vh[:, :rank].transpose(1, 2).contiguous()
    return spaces


def fraction(part: Tensor, full: Tensor, pairs: Pairs, resampling: Resampling) -> Estimate:
    """Sum of the part's costs over that of the whole's, with its interval over the bases' documents.

    Raises:
        UndefinedMetric: the whole costs nothing on some draw of documents, so that nothing can be a share of it.
    """
    return resampling.of(by_document(torch.stack([part, full], dim=1), pairs), lambda sums: sums[..., 0] / sums[..., 1])


def by_document(terms: Float64[Tensor, "m k"], pairs: Pairs) -> Float64[Tensor, "documents k"]:
    """Sums of the terms of each document's bases."""
    ids, place = torch.unique(pairs.document_ids, return_inverse=True)
    return torch.zeros(len(ids), terms.shape[1], dtype=torch.float64).index_add_(0, place, terms)


def effect(costs: Tensor, pairs: Pairs, resampling: Resampling) -> Estimate:
    """Mean cost of an exchange in nats, with its interval over documents."""
    terms = torch.stack([costs, torch.ones_like(costs)], dim=1)
    return resampling.of(by_document(terms, pairs), lambda sums: sums[..., 0] / sums[..., 1])


def mediation(
    exchange: Exchange,
    means: ClassMeans,
    x: Float[Tensor, "n d"],
    strata: Int64[Tensor, " n"],
    resampling: Resampling,
    *,
    n_random: int = 2,
    seed: int = 0,
) -> tuple[MediationRecord, Float64[Tensor, " m"]]:
    """Exchange the whole activation, then growing subspaces of class means, their complement, and random ones.

    Args:
        exchange: The pairs of texts at a site.
        means: Class means of training documents.
        x, strata: Training activations, for random directions as large as real ones.
        resampling: Of the intervals.
        n_random: Random subspaces.
        seed: Of these.
    Returns:
        The record, and the costs of exchanging the whole activation.
    Raises:
        UndefinedMetric: exchanging the whole has no effect that is known to be above `SMALLEST`.
    """
    pairs = exchange.pairs
    full = exchange.costs(whole)
    whole_effect = effect(full, pairs, resampling)
    if (whole_effect.low if whole_effect.low is not None else whole_effect.value) <= SMALLEST:
        raise UndefinedMetric(
            f"exchanging the whole activation with another class costs {whole_effect} nats more than with the same "
            "class: no effect of the feature to divide up"
        )
    spaces = class_subspaces(means)
    ranks, basis = [], spaces
    for k in _growing(spaces.shape[2]):
        basis = spaces[:, :, :k]
        ranks.append(RankRecord(rank=k, fraction=fraction(exchange.costs(along(basis)), full, pairs, resampling)))
        if ranks[-1].fraction.value >= ENOUGH:
            break
    rest = fraction(exchange.costs(along(basis, complement=True)), full, pairs, resampling)
    generator = torch.Generator().manual_seed(seed)
    chance = [
        float(exchange.costs(along(random_subspaces(x, strata, basis, generator))).sum() / full.sum())
        for _ in range(n_random)
    ]
    return MediationRecord(
        full=whole_effect,
        ranks=ranks,
        complement=rest,
        random=sum(chance) / len(chance),
        n_pairs=len(pairs.base),
        matched=pairs.matched,
        horizon=exchange.horizon,
    ), full


def random_subspaces(
    x: Float[Tensor, "n d"],
    strata: Int64[Tensor, " n"],
    like: Float64[Tensor, "s d k"],
    generator: torch.Generator,
) -> Float64[Tensor, "s d k"]:
    """For each stratum a subspace spanned by random mixtures of activations about their mean."""
    found = []
    for s in range(len(like)):
        mine = x[strata == s].double() if bool((strata == s).any()) else x.double()
        mine = mine - mine.mean(dim=0)
        mixed = torch.randn(like.shape[2], len(mine), generator=generator, dtype=torch.float64) @ mine
        found.append(torch.linalg.qr(mixed.T).Q)
    return torch.stack(found)


def _growing(most: int) -> Sequence[int]:
    """1, 2, 3, 4, 6, 8, 16, ... and the last."""
    steps = [k for k in (1, 2, 3, 4, 6, 8, 16, 32, 64) if k < most]
    return [*steps, most]


def joined(examples: Examples) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Rows, classes and strata of all training examples, those to fit on and those to choose on."""
    fit, choose = examples.fit, examples.choose
    return (
        torch.cat([fit.rows, choose.rows]),
        torch.cat([fit.y, choose.y]),
        torch.cat([fit.strata, choose.strata]),
    )
