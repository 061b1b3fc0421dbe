"""Dose-response of steering: what a latent or a direction does to what is written, and what it costs elsewhere."""

from collections.abc import Callable, Mapping, Sequence
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
    place, unit, edits_at, name = _steered(lm, what, latent, site, where, texts)
    with torch.no_grad():
        x = lm.activations(texts, [place])[place][texts.counted.to(lm.device)]
        loss = float(lm.loss(texts))
    generator = torch.Generator().manual_seed(seed)
    doses = []
    with reported("steering", len(strengths), shown=progress) as advance:
        for strength in strengths:
            edits = edits_at(strength)
            written = _continuations(lm, start, edits, max_new_tokens)
            with torch.no_grad():
                edited = lm.activations(texts, [place], edits=edits)[place][texts.counted.to(lm.device)]
                loss_now = float(lm.loss(texts, edits=edits))
            size = float((edited - x).double().norm(dim=1).mean())  # squares of large ones do not fit float32
            moved, reencoded = _other_latents(what, latent, x, edited, strength * unit)
            doses.append(
                Dose(
                    strength=strength,
                    value=strength * unit,
                    relative=size / float(x.norm(dim=1).mean()),
                    behaviour=_shown(written, score),
                    control=_controls(lm, start, place, size, n_controls, generator, score, max_new_tokens, where),
                    kl=mean_kl(lm, texts, edits),
                    loss=loss_now,
                    loss_added=loss_now / loss - 1,
                    repetition=sum(map(repetition, written)) / len(written),
                    moved=moved,
                    reencoded=reencoded,
                    example=" ".join(written[0]),
                )
            )
            advance(1)
    return Steering(
        model=lm.name,
        site=str(place),
        steered=name,
        unit=unit,
        n_prompts=len(start),
        n_neutral=len(x),
        baseline=_shown(_continuations(lm, start, {}, max_new_tokens), score),
        loss=loss,
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


def _steered(
    lm: LanguageModel,
    what: Direction | Tensor | AbstractDictionary,
    latent: int | None,
    site: Site | str | None,
    where: Where,
    texts: Tokens,
) -> tuple[Site, float, Callable[[float], Edits], str]:
    """The site, the unit of strength, the edits of a strength, and a name."""
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

        return place, most, clamped, f"latent {number}"
    if latent is not None:
        raise ValueError("a direction has no latents; leave latent out, or pass a dictionary")
    direction = as_direction(what)
    (place,) = add_direction(lm, direction, site)

    def added(strength: float) -> Edits:
        return add_direction(lm, direction, place, strength=strength, where=where)

    return place, direction.norm, added, direction.name


def _continuations(
    lm: LanguageModel, start: Tokens, edits: Mapping[Site, Edit], max_new_tokens: int
) -> list[list[str]]:
    written = lm.generate(start, max_new_tokens=max_new_tokens, edits=edits)
    before, after = start.mask.sum(dim=1), written.mask.sum(dim=1)
    return [
        [word.strip() for word in lm.tokens_to_strings(written.ids[i, int(before[i]) : int(after[i])].cpu())]
        for i in range(len(start))
    ]


def _shown(written: list[list[str]], score: Score) -> float:
    return sum(score(words) > 0.5 for words in written) / len(written)


def _controls(
    lm: LanguageModel,
    start: Tokens,
    place: Site,
    size: float,
    n: int,
    generator: torch.Generator,
    score: Score,
    max_new_tokens: int,
    where: Where,
) -> float | None:
    """The behaviour under random directions that change activations by as much."""
    if n == 0:
        return None
    shown = []
    for _ in range(n):
        drawn = torch.nn.functional.normalize(torch.randn(lm.width(place), generator=generator), dim=0)
        edits = add_direction(lm, drawn, place, strength=size, where=where)
        shown.append(_shown(_continuations(lm, start, edits, max_new_tokens), score))
    return sum(shown) / n


def _other_latents(
    what: Direction | Tensor | AbstractDictionary,
    latent: int | None,
    x: Float[Tensor, "n d"],
    edited: Float[Tensor, "n d"],
    value: float,
) -> tuple[float | None, float | None]:
    """Other latents that change much when the edited activations are coded again, and the latent's own value."""
    if not isinstance(what, AbstractDictionary) or latent is None:
        return None, None
    with torch.no_grad():
        before, after = (what.encode_dense(rows[:4096].to(what.atoms)) for rows in (x, edited))
    most = before.max(dim=0).values.clamp_min(1e-12)
    changed = (after - before).abs() > 0.1 * most
    changed[:, latent] = False
    found = float(after[:, latent].mean()) / value if value else None
    return float(changed.sum(dim=1).double().mean()), found
