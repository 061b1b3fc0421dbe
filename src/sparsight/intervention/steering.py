"""Dose-response of steering: what a latent or a direction does to what is written, and what it costs elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.reading import reported
from sparsight.intervention.behaviour import mean_kl
from sparsight.intervention.direction import Direction, as_direction
from sparsight.intervention.direction_edits import add_direction
from sparsight.intervention.edits import Edits
from sparsight.intervention.latent_edits import clamp, latent_values
from sparsight.intervention.positions import Where
from sparsight.intervention.steering_record import Dose, Steering
from sparsight.models import Edit, LanguageModel, Site, Tokens

Score: TypeAlias = Callable[[list[str]], float]
"""From the words of one continuation to how much of the wanted behaviour it shows, 0 to 1."""


def steer(
    lm: LanguageModel,
    what: Direction | Tensor | AbstractDictionary,
    prompts: Sequence[str],
    neutral: Sequence[str],
    score: Score,
    strengths: Sequence[float] = (-4, -2, -1, 0, 1, 2, 4, 8),
    *,
    latent: int | None = None,
    site: Site | str | None = None,
    where: Where = None,
    max_new_tokens: int = 12,
    n_controls: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Steering:
    """Clamp a latent, or add a direction, at several strengths, also while the model writes.

    A latent is set to the strength times its largest value on the neutral text, at every token, with the error of the
    reconstruction kept. Controls are random directions whose change of the neutral text's activations is as long.

    Args:
        lm: A causal model.
        what: A direction, or a dictionary whose `latent` is clamped.
        prompts: Texts to go on from.
        neutral: Texts on which the side effects are measured.
        score: From the words of a continuation to 0 (not shown) ... 1.
        strengths: Multiples.
        latent: Which one, with a dictionary.
        site: Where; the direction's or dictionary's own when None.
        where: Positions; all when None.
        max_new_tokens: Length of continuations.
        n_controls: Random directions tried at each strength.
        seed: Of the controls.
        progress: Show a bar on stderr.
    Raises:
        ValueError: no latent or one too many was named, no strength came, or what is steered does not fit.
        UndefinedMetric: the latent is never active on the neutral text, so that its largest value is no unit.
    Source:
        Templeton et al., "Scaling Monosemanticity", 2024, for clamping at multiples of the largest activation.
    """
    strengths = [float(strength) for strength in strengths]
    if not strengths:
        raise ValueError("expected at least one strength")
    texts, start = lm.tokenize(list(neutral)), lm.tokenize(list(prompts))
    trial = _Trial(lm, start, texts, score, max_new_tokens, _steered(lm, what, latent, site, where, texts))
    generator = torch.Generator().manual_seed(seed)
    doses = []
    with reported("steering", len(strengths), shown=progress) as advance:
        for strength in strengths:
            doses.append(trial.dose(strength, n_controls, generator))
            advance(1)
    return Steering(
        model=lm.name,
        site=str(trial.steered.site),
        steered=trial.steered.name,
        unit=trial.steered.unit,
        n_prompts=len(start),
        n_neutral=len(trial.x),
        baseline=trial.shown(trial.continuations({})),
        loss=trial.loss,
        doses=doses,
    )


def words_score(words: Sequence[str], against: Sequence[str] = ()) -> Score:
    """Share of a continuation's words that are of one set, among those of either; 0 where none is.

    With no other set: 1 if any word of the set occurs.
    """
    ours, theirs = frozenset(words), frozenset(against)

    def score(written: list[str]) -> float:
        mine = sum(word in ours for word in written)
        others = sum(word in theirs for word in written)
        if not theirs:
            return float(mine > 0)
        return mine / (mine + others) if mine + others else 0.0

    return score


def repetition(words: Sequence[str]) -> float:
    """Share of pairs of neighbouring words that came before in the same text; 0 for fewer than two pairs."""
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if len(pairs) > 1 else 0.0


def largest_value(dictionary: AbstractDictionary, x: Float[Tensor, "n d"], latent: int) -> float:
    """The largest value of a latent on some activations.

    Raises:
        UndefinedMetric: it is never active there.
    """
    with torch.no_grad():
        most = float(latent_values(dictionary.encode(x.to(dictionary.atoms)), [latent]).max())
    if most <= 0:
        raise UndefinedMetric(
            f"latent {latent} is never active on the neutral text, so its largest value is no unit; "
            "give texts on which it is"
        )
    return most


@dataclass(frozen=True)
class _Steered:
    """What is steered.

    Attributes:
        site: Where.
        name: Of the latent or the direction.
        unit: What a strength of 1 is, in the units of the activations.
        where: Positions; all when None.
        edits: From a strength to the edits that give it.
        dictionary, latent: The latent; None for a direction.
    """

    site: Site
    name: str
    unit: float
    where: Where
    edits: Callable[[float], Edits]
    dictionary: AbstractDictionary | None = None
    latent: int | None = None


def _steered(
    lm: LanguageModel,
    what: Direction | Tensor | AbstractDictionary,
    latent: int | None,
    site: Site | str | None,
    where: Where,
    texts: Tokens,
) -> _Steered:
    if isinstance(what, AbstractDictionary):
        if latent is None:
            raise ValueError("name the latent to clamp, with latent=")
        dictionary, number = what, latent
        (place,) = clamp(dictionary, number, to=0.0, site=site, lm=lm)
        with torch.no_grad():
            x = lm.activations(texts, [place])[place][texts.counted.to(lm.device)]
        most = largest_value(dictionary, x, number)

        def clamped(strength: float) -> Edits:
            return clamp(dictionary, number, to=strength * most, site=place, where=where)

        return _Steered(place, f"latent {number}", most, where, clamped, dictionary, number)
    if latent is not None:
        raise ValueError("a direction has no latents; leave latent out, or pass a dictionary")
    direction = as_direction(what)
    (place,) = add_direction(lm, direction, site)

    def added(strength: float) -> Edits:
        return add_direction(lm, direction, place, strength=strength, where=where)

    return _Steered(place, direction.name, direction.norm, where, added)


class _Trial:
    """What every strength is tried on.

    Attributes:
        x: Activations of the neutral text's counted tokens, unedited.
        loss: On the neutral text, unedited, nats per token.
    """

    def __init__(
        self, lm: LanguageModel, start: Tokens, texts: Tokens, score: Score, max_new_tokens: int, steered: _Steered
    ) -> None:
        self.lm, self.start, self.texts, self.score, self.steered = lm, start, texts, score, steered
        self.max_new_tokens = max_new_tokens
        self.x, self.loss = self._neutral({})

    @torch.no_grad()
    def _neutral(self, edits: Mapping[Site, Edit]) -> tuple[Float[Tensor, "n d"], float]:
        """The neutral text's activations at the steered site, and its loss."""
        at, counted = self.steered.site, self.texts.counted.to(self.lm.device)
        x = self.lm.activations(self.texts, [at], edits=edits)[at][counted]
        return x, float(self.lm.loss(self.texts, edits=edits))

    def dose(self, strength: float, n_controls: int, generator: torch.Generator) -> Dose:
        """What one strength does to what is written and to the neutral text."""
        edits, value = self.steered.edits(strength), strength * self.steered.unit
        written = self.continuations(edits)
        edited, loss = self._neutral(edits)
        size = float((edited - self.x).double().norm(dim=1).mean())  # squares of large ones do not fit float32
        moved, reencoded = _other_latents(self.steered, self.x, edited, value)
        return Dose(
            strength=strength,
            value=value,
            relative=size / float(self.x.norm(dim=1).mean()),
            behaviour=self.shown(written),
            control=self._controls(size, n_controls, generator),
            kl=mean_kl(self.lm, self.texts, edits),
            loss=loss,
            loss_added=loss / self.loss - 1,
            repetition=sum(map(repetition, written)) / len(written),
            moved=moved,
            reencoded=reencoded,
            example=" ".join(written[0]),
        )

    def continuations(self, edits: Mapping[Site, Edit]) -> list[list[str]]:
        """The words that the model writes after each prompt."""
        written = self.lm.generate(self.start, max_new_tokens=self.max_new_tokens, edits=edits)
        before, after = self.start.mask.sum(dim=1), written.mask.sum(dim=1)
        return [
            [word.strip() for word in self.lm.tokens_to_strings(written.ids[i, int(before[i]) : int(after[i])].cpu())]
            for i in range(len(self.start))
        ]

    def shown(self, written: list[list[str]]) -> float:
        """Share of continuations that show the behaviour."""
        return sum(self.score(words) > 0.5 for words in written) / len(written)

    def _controls(self, size: float, n: int, generator: torch.Generator) -> float | None:
        """The behaviour under random directions that change activations by as much."""
        if n == 0:
            return None
        shown = []
        for _ in range(n):
            drawn = torch.randn(self.lm.width(self.steered.site), generator=generator)
            drawn = torch.nn.functional.normalize(drawn, dim=0)
            edits = add_direction(self.lm, drawn, self.steered.site, strength=size, where=self.steered.where)
            shown.append(self.shown(self.continuations(edits)))
        return sum(shown) / n


def _other_latents(
    steered: _Steered, x: Float[Tensor, "n d"], edited: Float[Tensor, "n d"], value: float
) -> tuple[float | None, float | None]:
    """Other latents that change much when the edited activations are coded again, and the latent's own value."""
    dictionary, latent = steered.dictionary, steered.latent
    if dictionary is None:
        return None, None
    with torch.no_grad():
        before, after = (dictionary.encode_dense(rows[:4096].to(dictionary.atoms)) for rows in (x, edited))
    most = before.max(dim=0).values.clamp_min(1e-12)
    changed = (after - before).abs() > 0.1 * most
    changed[:, latent] = False
    found = float(after[:, latent].mean()) / value if value else None
    return float(changed.sum(dim=1).double().mean()), found
