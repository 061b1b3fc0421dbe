"""Turning a circle: a cyclic feature's value moved by some steps, and whether the model's answer moves by as many.

On a circle of period `T` the class `c` lies at the angle `2 pi c / T`. Each stratum has its own circles: their planes
are spanned by what a unit of cosine and of sine adds to the activation (`effects`), and where an activation is on them
is read by least squares (`readouts`). A step of `k` turns every circle by `2 pi k / T`:

    x' = x + effects (R(k) - 1) readouts (x - mean).

Only where the next token follows from the class can the answer be read: that is found out from training documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.geometry import circle_design
from sparsight.evaluation.features.labelled import Part
from sparsight.evaluation.features.mediation import StoredTexts
from sparsight.evaluation.features.scores import Resampling, share, share_over_documents
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import Predicts
from sparsight.evaluation.record import Estimate
from sparsight.models import Site, Tokens

PURITY = 0.9
"""Least share of a class's tokens that must be followed by the class's own answer."""

N_PROMPTS = 60
_FEW = 30  # prompts for controls and for the curve over the number of circles
_RIDGE = 1e-3
_BATCH = 64


class RotationRecord(Record):
    """What turning the circles does to the answer.

    Attributes:
        moved: Share of held-out prompts, over all steps but 0, whose answer moved by exactly as many steps.
        by_steps: The same for each number of steps, from 1.
        by_circles: The same for the first circle alone, the first two, ... up to all harmonics, on fewer prompts.
        unmoved: Share answered rightly when nothing is turned.
        random: Share that moved as predicted when random planes are turned as far, readouts and all.
        shuffled: Share that moved by as many steps *of another order of the classes*, when as many circles of that
            order are turned. Circles enough can turn any order; where this is low, the classes' own order is special.
        periods: Of the circles turned, the strongest first.
        n_prompts: Held-out prompts.
    """

    moved: Estimate
    by_steps: list[float]
    by_circles: list[float]
    unmoved: float
    random: float
    shuffled: float
    periods: list[float]
    n_prompts: int


@dataclass(frozen=True, eq=False)
class Circles:
    """The circles of a cyclic feature, one set for each stratum.

    Attributes:
        mean: Of the stratum's training activations.
        effects: What each circle's cosine and sine add to the activation.
        readouts: Where an activation is on them.
        periods: Of the circles, in classes.
    """

    mean: Float64[Tensor, "s d"]
    effects: Float64[Tensor, "s d p"]
    readouts: Float64[Tensor, "s p d"]
    periods: tuple[float, ...]

    @staticmethod
    def of(
        x: Float[Tensor, "n d"],
        values: Float64[Tensor, " n"],
        strata: Int64[Tensor, " n"],
        n_strata: int,
        periods: tuple[float, ...],
    ) -> "Circles":
        """Fit by least squares within each stratum.

        Args:
            x: Training activations.
            values: Place of each in the order of classes.
            strata: Of each.
            n_strata: How many; each needs more tokens than the circles have coordinates.
            periods: Of the circles.
        Raises:
            UndefinedMetric: a stratum has too few tokens.
        """
        means, effects, readouts = [], [], []
        for s in range(n_strata):
            mine = strata == s
            n, p = int(mine.sum()), 2 * len(periods)
            if n <= p:
                raise UndefinedMetric(f"circles need more than {p} tokens in each stratum, got {n}")
            activations = x[mine].double()
            design = torch.cat([circle_design(values[mine], t) for t in periods], dim=1)
            mean = activations.mean(dim=0)
            dx, dz = activations - mean, design - design.mean(dim=0)
            effects.append(torch.linalg.lstsq(dz, dx, driver="gelsd").solution.T)
            covariance = dx.T @ dx / n
            ridge = _RIDGE * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.float64)
            readouts.append(torch.linalg.solve(covariance + ridge, dx.T @ dz / n).T)
            means.append(mean)
        return Circles(torch.stack(means), torch.stack(effects), torch.stack(readouts), periods)

    def turned(self, x: Float[Tensor, "m d"], strata: Int64[Tensor, " m"], steps: int) -> Float[Tensor, "m d"]:
        """Activations with every circle turned by `steps` classes."""
        turn = []
        for period in self.periods:
            angle = torch.tensor(2 * torch.pi * steps / period, dtype=torch.float64)
            c, s = torch.cos(angle), torch.sin(angle)
            # Angles grow with the class, so cosine and sine turn the usual way.
            turn.append(torch.stack([torch.stack([c, -s]), torch.stack([s, c])]))
        change = _diagonal(turn) - torch.eye(2 * len(self.periods), dtype=torch.float64)
        strata = strata.cpu()
        where = (self.readouts[strata] @ (x.cpu().double() - self.mean[strata])[..., None])[..., 0]
        moved = (self.effects[strata] @ (where @ change.T)[..., None])[..., 0]
        turned: Tensor = (x.double() + moved.to(x.device)).to(x.dtype)
        return turned

    def at_random(self, x: Float[Tensor, "n d"], generator: torch.Generator) -> "Circles":
        """Planes of random mixtures of activations, as long as the circles' own, read along themselves."""
        dx = x.double() - x.double().mean(dim=0)
        effects = []
        for own in self.effects:
            mixed = (torch.randn(own.shape[1], len(dx), generator=generator, dtype=torch.float64) @ dx).T
            effects.append(mixed / mixed.norm(dim=0) * own.norm(dim=0))
        stacked = torch.stack(effects)
        return Circles(self.mean, stacked, torch.linalg.pinv(stacked), self.periods)


def _diagonal(blocks: list[Tensor]) -> Float64[Tensor, "p p"]:
    """Blocks of two along the diagonal."""
    whole = torch.zeros(2 * len(blocks), 2 * len(blocks), dtype=torch.float64)
    for i, block in enumerate(blocks):
        whole[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    return whole


def answers(texts: StoredTexts, part: Part, n_classes: int, n_strata: int) -> Int64[Tensor, "s c"]:
    """The token that follows each class in each stratum, as training documents have it.

    Raises:
        UndefinedMetric: what follows does not follow from the class, or two classes are followed by one token.
    """
    following = texts.next_token(part.rows)
    found = torch.full((n_strata, n_classes), -1)
    for s in range(n_strata):
        for c in range(n_classes):
            mine = following[(part.strata == s) & (part.y == c)]
            if len(mine) == 0:
                raise UndefinedMetric(f"class {c} of stratum {s} is never seen in training: its answer is not known")
            tokens, counts = torch.unique(mine, return_counts=True)
            if counts.max() < PURITY * len(mine):
                raise UndefinedMetric(
                    f"the next token does not follow from the class: the commonest comes "
                    f"{counts.max() / len(mine):.0%} of the time, expected at least {PURITY:.0%}"
                )
            found[s, c] = tokens[counts.argmax()]
        if len(torch.unique(found[s])) < n_classes:
            raise UndefinedMetric("two classes are followed by the same token: the answer does not tell them apart")
    return found


@dataclass(frozen=True, eq=False)
class Prompts:
    """Held-out texts that end where the answer comes next.

    Attributes:
        tokens, places: The texts, and where in them the activation is changed and the answer read.
        y, strata, document_ids: Class, stratum and document of each.
        answers: Token of each stratum and class.
    """

    tokens: Tokens
    places: Int64[Tensor, " m"]
    y: Int64[Tensor, " m"]
    strata: Int64[Tensor, " m"]
    document_ids: Int64[Tensor, " m"]
    answers: Int64[Tensor, "s c"]

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def of(texts: StoredTexts, judge: Part, answer_tokens: Int64[Tensor, "s c"], n: int, seed: int) -> "Prompts":
        """At most `n` of the held-out examples."""
        order = torch.randperm(len(judge), generator=torch.Generator().manual_seed(seed))[:n]
        tokens, places = texts.cut(judge.rows[order], 0)
        return Prompts(tokens, places, judge.y[order], judge.strata[order], judge.document_ids[order], answer_tokens)

    def first(self, n: int) -> "Prompts":
        """The first `n`; they were drawn in no order."""
        rest = (self.places[:n], self.y[:n], self.strata[:n], self.document_ids[:n])
        return Prompts(self.tokens[:n], *rest, self.answers)

    def answered(self, lm: Predicts, site: Site, circles: Circles | None, steps: int) -> Int64[Tensor, " m"]:
        """The class whose token the model finds likeliest once the circles are turned."""
        found = []
        for start in range(0, len(self), _BATCH):
            part = slice(start, min(start + _BATCH, len(self)))
            here, at = self.places[part].to(lm.device), torch.arange(len(self.y[part]), device=lm.device)

            def edit(x: Tensor, at: Tensor = at, here: Tensor = here, part: slice = part) -> Tensor:
                assert circles is not None
                x = x.clone()
                x[at, here] = circles.turned(x[at, here], self.strata[part], steps)
                return x

            with torch.no_grad():
                logits = lm.logits(
                    self.tokens[part].to(lm.device),
                    edits=None if circles is None else {site: edit},
                )
            found.append(logits[at, here].cpu().gather(1, self.answers[self.strata[part]]).argmax(dim=1))
        return torch.cat(found)

    def moved(
        self, lm: Predicts, site: Site, circles: Circles, steps: Sequence[int], order: Int64[Tensor, " c"]
    ) -> Bool[Tensor, "m k"]:
        """Whether each answer moved by each number of steps, in some order of the classes (place of each)."""
        n = len(order)
        after = [order.argsort()[(order[self.y] + k) % n] for k in steps]
        return torch.stack(
            [self.answered(lm, site, circles, k) == to for k, to in zip(steps, after, strict=True)], dim=1
        )


def rotation(
    lm: Predicts,
    prompts: Prompts,
    site: Site,
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    strata: Int64[Tensor, " n"],
    periods: tuple[float, ...],
    resampling: Resampling,
    *,
    harmonics: Sequence[float] = (),
    seed: int = 0,
) -> RotationRecord:
    """Turn circles under held-out prompts by every number of steps, and read the answer among the classes' tokens.

    Args:
        lm: A model with a next token.
        prompts: Held-out.
        site: Where the circles are.
        x, y, strata: Training activations, their classes and strata, to which circles are fitted.
        periods: Of the circles, the strongest first.
        resampling: Of the interval over documents.
        harmonics: Periods of all circles that there may be, for the curve over their number.
        seed: Of random planes and of the other order.
    """
    n_strata, n_classes = prompts.answers.shape
    generator = torch.Generator().manual_seed(seed)
    own, other = torch.arange(n_classes), torch.randperm(n_classes, generator=generator)
    steps = range(1, n_classes)
    few, some = prompts.first(_FEW), steps[:: max(1, len(steps) // 4)]

    def circles(of: tuple[float, ...], order: Tensor) -> Circles:
        return Circles.of(x, order[y].double(), strata, n_strata, of)

    found = circles(periods, own)
    moved = prompts.moved(lm, site, found, steps, own)
    every = (*periods, *(t for t in harmonics if t not in periods))
    return RotationRecord(
        moved=share_over_documents(moved, prompts.document_ids, resampling),
        by_steps=moved.double().mean(dim=0).tolist(),
        by_circles=[share(few.moved(lm, site, circles(every[: i + 1], own), some, own)) for i in range(len(every))],
        unmoved=share(prompts.answered(lm, site, None, 0) == prompts.y),
        random=share(few.moved(lm, site, found.at_random(x, generator), steps, own)),
        shuffled=share(few.moved(lm, site, circles(periods, other), steps, other)),
        periods=list(periods),
        n_prompts=len(prompts),
    )
