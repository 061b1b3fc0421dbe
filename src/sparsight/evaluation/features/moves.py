"""Moving a represented value along its shape: does the next token then speak of the class moved to?

With `m_c` the mean activation of class `c` (of each stratum), a shape writes it as `m_c = m + E z_c`: `z_c` is the
place of the class on the shape (on an axis, on a line, in the clades of a tree), `E` what a unit of each coordinate
adds. Class `a` is moved to class `b` at every token of the text that carries `a`:

    x' = x + t E (z_b - z_a),

with `t = 1`; what other `t` do is said beside it.

What the model then says is read off its next-token distribution `p`, by the class under whose own next-token
distribution `q_c` (counted on training documents) it is likeliest: `argmax_c sum_v p(v) log q_c(v)`. An axis, a line
and a plane of means predict class `b`; the clades of a tree predict a class of the same main branch as `b`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.class_means import ClassMeans
from sparsight.evaluation.features.labelled import Part
from sparsight.evaluation.features.mediation import StoredTexts
from sparsight.evaluation.features.scores import Resampling, share, share_over_documents
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import Predicts
from sparsight.evaluation.record import Estimate
from sparsight.models import Site, Tokens

N_PROMPTS = 40
TARGETS = 2
"""Other classes that each text is moved to."""

SMOOTHING = 1.0
"""Tokens' worth of the pooled next-token distribution that is added to each class's own."""

DOSES = (2.0, 4.0)
"""Multiples of the difference that are added besides the difference itself."""

_BATCH = 64


class Dose(Record):
    """What a multiple of the difference of class means does.

    Attributes:
        times: The multiple.
        moved: Share of moves after which the next token speaks of the class (of a tree: the main branch) moved to.
        random: The same for random differences as long.
    """

    times: float
    moved: float
    random: float


class MoveRecord(Record):
    """What moving the represented value does to the next token.

    Attributes:
        family: Shape whose directions were used.
        rank: Their number.
        moved: Share of moves after which the next token speaks of the class (of a tree: the main branch) moved to.
        by_means: The same when the whole difference of class means is added, whatever the shape.
        random: The same for random differences of the same lengths.
        doses: The same at multiples of the difference, all that were tried.
        before: How often the untouched text speaks of the class (the main branch) that others are moved to.
        unmoved: Share of untouched texts whose next token speaks of their own class.
        n_prompts: Held-out texts.
        tokens: Mean number of tokens changed in a text.
    """

    family: str
    rank: int
    moved: Estimate
    by_means: float
    random: float
    doses: list[Dose]
    before: float
    unmoved: float
    n_prompts: int
    tokens: float


@dataclass(frozen=True, eq=False)
class Places:
    """Classes on a shape.

    Attributes:
        family: Its name.
        design: Coordinates of each class.
        branch: Class of each class for the prediction: itself, or its main branch in a tree.
    """

    family: str
    design: Float64[Tensor, "c q"]
    branch: Int64[Tensor, " c"]

    def effects(self, means: Float64[Tensor, "s c d"]) -> Float64[Tensor, "s c d"]:
        """Class means as the shape has them: `E z_c` for each stratum."""
        design = self.design - self.design.mean(dim=0)
        basis, values, _ = torch.linalg.svd(design, full_matrices=False)
        basis = basis[:, values > 1e-9 * values.max()]
        placed: Float64[Tensor, "s c d"] = basis @ (basis.T @ means)
        return placed

    @property
    def rank(self) -> int:
        """Directions in which classes differ."""
        return int(torch.linalg.matrix_rank(self.design - self.design.mean(dim=0)))


def next_tokens(texts: StoredTexts, part: Part, n_classes: int, n_strata: int) -> Float64[Tensor, "s c v"]:
    """Logarithm of each class's next-token distribution in training documents, smoothed with the pooled one.

    `v` reaches to the largest token of any text; what the model gives to tokens beyond it tells no class.
    """
    following = texts.next_token(part.rows)
    there, n_tokens = following >= 0, texts.n_tokens
    counts = torch.zeros(n_strata, n_classes, n_tokens, dtype=torch.float64)
    where = (part.strata[there], part.y[there], following[there])
    counts.index_put_(where, torch.ones(int(there.sum()), dtype=torch.float64), accumulate=True)
    pooled = (counts.sum(dim=(0, 1)) + 1 / n_tokens) / (counts.sum() + 1)
    smoothed = counts + SMOOTHING * pooled
    return (smoothed / smoothed.sum(dim=2, keepdim=True)).log()


@dataclass(frozen=True, eq=False)
class Speakers:
    """Held-out texts, which of their tokens carry the class, and how the next token is understood.

    Attributes:
        tokens, places: Texts that end at the places where the next token is read.
        carries: Tokens that carry the class of the last one.
        y, strata, document_ids: Of the last token of each.
        told: Log next-token distributions of strata and classes.
    """

    tokens: Tokens
    places: Int64[Tensor, " m"]
    carries: Bool[Tensor, "m t"]
    y: Int64[Tensor, " m"]
    strata: Int64[Tensor, " m"]
    document_ids: Int64[Tensor, " m"]
    told: Float64[Tensor, "s c v"]

    @staticmethod
    def of(
        texts: StoredTexts,
        part: Part,
        classes: Int64[Tensor, " n"],
        told: Float64[Tensor, "s c v"],
        *,
        n: int = N_PROMPTS,
        seed: int = 0,
    ) -> "Speakers":
        """At most `n` held-out examples that something follows.

        Args:
            texts: Of the store.
            part: Held-out examples.
            classes: Class of every row of the store, numbered as the examples' are; -1 where there is none.
            told: As `next_tokens` gives it.
            n: Most texts.
            seed: Of the draw.
        Raises:
            UndefinedMetric: nothing follows any example.
        """
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        order = order[texts.next_token(part.rows[order]) >= 0][:n]
        if len(order) == 0:
            raise UndefinedMetric("no held-out example is followed by another token")
        tokens, places = texts.cut(part.rows[order], 0)
        carries = torch.zeros_like(tokens.mask)
        for i, row in enumerate(part.rows[order].tolist()):
            mine = texts.rows_up_to(row)
            carries[i, texts.place[mine]] = classes[mine] == part.y[order[i]]
        return Speakers(tokens, places, carries, part.y[order], part.strata[order], part.document_ids[order], told)

    def speak_of(
        self, lm: Predicts, site: Site, change: Float64[Tensor, "m d"] | None, *, chosen: Tensor | None = None
    ) -> Int64[Tensor, " m"]:
        """The class that each text's next token speaks of once `change` is added at every token that carries one."""
        rows = torch.arange(len(self.y)) if chosen is None else chosen
        found: list[Tensor] = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            at = torch.arange(len(part), device=lm.device)
            here = self.carries[part].to(lm.device)
            added = None if change is None else change[start : start + _BATCH]

            def edit(x: Tensor, here: Tensor = here, added: Tensor | None = added) -> Tensor:
                assert added is not None
                return x + here[..., None].to(x) * added.to(x)[:, None]

            with torch.no_grad():
                logits = lm.logits(self.tokens[part].to(lm.device), edits=None if added is None else {site: edit})
                p = logits[at, self.places[part].to(lm.device)].softmax(dim=-1).double().cpu()
            told = self.told[self.strata[part]]
            scores = torch.einsum("mv,mcv->mc", p[:, : told.shape[2]], told)
            found.append(scores.argmax(dim=1))
        return torch.cat(found)


def moves(
    lm: Predicts,
    speakers: Speakers,
    site: Site,
    means: ClassMeans,
    places: Places,
    resampling: Resampling,
    *,
    seed: int = 0,
) -> MoveRecord:
    """Move each text's class to other classes along the shape, along all means, and along nothing in particular.

    Args:
        lm: A model with a next token.
        speakers: Held-out texts.
        site: Where the means are from.
        means: Of classes of training documents.
        places: Of the classes on their shape.
        resampling: Of the interval over documents.
        seed: Of the classes moved to and of the random directions.
    Raises:
        UndefinedMetric: the next token of untouched texts does not tell the class, or no text has another branch.
    """
    n_classes = len(places.branch)
    said = speakers.speak_of(lm, site, None)
    unmoved = share(said == speakers.y)
    least = (1 + 1 / n_classes) / 2
    if unmoved < least:
        raise UndefinedMetric(
            f"the next token tells the class in {unmoved:.0%} of texts, expected at least {least:.0%}: no move of it "
            "could be seen"
        )
    generator = torch.Generator().manual_seed(seed)
    rows, to = _targets(speakers, means, places.branch, generator)
    start, strata = speakers.y[rows], speakers.strata[rows]

    def outcome(of: Float64[Tensor, "s c d"], times: float = 1.0) -> Bool[Tensor, " k"]:
        change = times * (of[strata, to] - of[strata, start])
        return places.branch[speakers.speak_of(lm, site, change, chosen=rows)] == places.branch[to]

    whole, shaped = means.means, places.effects(means.means)
    random = torch.randn(shaped.shape, generator=generator, dtype=torch.float64)
    random *= (shaped.norm(dim=2) / random.norm(dim=2).clamp_min(1e-12))[..., None]
    moved = outcome(shaped)
    # Where the shape has all the means' directions, the two are one and the same.
    by_means = moved if torch.allclose(whole, shaped, atol=1e-9 * float(whole.abs().max())) else outcome(whole)
    return MoveRecord(
        family=places.family,
        rank=places.rank,
        moved=share_over_documents(moved[:, None], speakers.document_ids[rows], resampling),
        by_means=share(by_means),
        random=share(outcome(random)),
        doses=[Dose(times=t, moved=share(outcome(shaped, t)), random=share(outcome(random, t))) for t in DOSES],
        before=share(places.branch[said[rows]] == places.branch[to]),
        unmoved=unmoved,
        n_prompts=len(speakers.y),
        tokens=float(speakers.carries.sum(dim=1).double().mean()),
    )


def _targets(
    speakers: Speakers, means: ClassMeans, branch: Int64[Tensor, " c"], generator: torch.Generator
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """For each text some classes of other branches that its stratum has: text and class of each move."""
    rows, to = [], []
    for i, (y, s) in enumerate(zip(speakers.y.tolist(), speakers.strata.tolist(), strict=True)):
        others = ((branch != branch[y]) & (means.counts[s] > 0)).nonzero()[:, 0]
        for c in others[torch.randperm(len(others), generator=generator)[:TARGETS]].tolist():
            rows.append(i)
            to.append(c)
    if not rows:
        raise UndefinedMetric("no text has another class to be moved to")
    return torch.tensor(rows), torch.tensor(to)
