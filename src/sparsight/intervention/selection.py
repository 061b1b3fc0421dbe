"""Choosing one direction among many layers and positions, by what ablating and adding it does."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from sparsight.errors import DataError
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import reported
from sparsight.intervention.behaviour import NextToken, behaviour_scores, mean_kl
from sparsight.intervention.difference import activations_at, difference_in_means
from sparsight.intervention.direction import Direction
from sparsight.intervention.direction_edits import ablate_direction, add_direction
from sparsight.intervention.positions import last_tokens
from sparsight.models import LanguageModel, Site, Tokens

MAX_DEPTH, MAX_KL, LEAST_INDUCED = 0.8, 0.1, 0.0
"""The published filters: layers below this share of the depth, divergence on harmless prompts, score after adding."""


class Candidate(Record):
    """One direction and what it does on validation prompts.

    Attributes:
        site: Where the means were taken, and where the direction is added.
        back: At which token, counted back from the last (0).
        norm: Length of the difference in means.
        ablated: Mean score (log odds, nats) of positive prompts with the direction ablated at every write.
        induced: Mean score of negative prompts with it added once.
        kl: Mean divergence of the next token on negative prompts under ablation, nats.
        rejected: Why it is out, or "".
    """

    site: str
    back: int
    norm: float
    ablated: float
    induced: float
    kl: float
    rejected: str


class Selection(Record):
    """All candidates, and which was chosen.

    Attributes:
        candidates: In the order of sites, then of tokens.
        chosen: Index of the one with the lowest score under ablation among those not rejected.
        baseline_positive, baseline_negative: Mean scores without any edit.
    """

    candidates: list[Candidate]
    chosen: int
    baseline_positive: float
    baseline_negative: float


def select_direction(
    lm: LanguageModel,
    positive: Tokens,
    negative: Tokens,
    validation_positive: Tokens,
    validation_negative: Tokens,
    behaviour: NextToken,
    *,
    sites: list[Site] | None = None,
    n_tokens: int = 3,
    max_depth: float | int = MAX_DEPTH,
    max_kl: float | int = MAX_KL,
    least_induced: float | int = LEAST_INDUCED,
    progress: bool = False,
) -> tuple[Direction, Selection]:
    """The difference in means, over sites and last tokens, that best removes a behaviour when it is ablated.

    For each site and each of the last tokens of the prompts: the difference in means of the training prompts; on
    validation prompts the score with it ablated everywhere (wanted low), the score with it added to negative prompts
    (wanted above `least_induced`), and the divergence on negative prompts under ablation. Candidates too deep, too
    divergent or that do not induce are out; of the rest the lowest score under ablation wins.

    Args:
        lm: A causal model.
        positive: Training prompts that show the behaviour.
        negative: Training prompts that do not.
        validation_positive, validation_negative: Prompts to choose on; not those to report on.
        behaviour: What is counted.
        sites: Where to look; the stream before every block when None.
        n_tokens: How many of the last tokens.
        max_depth: Sites at or beyond this share of the layers are out.
        max_kl: Largest divergence, nats.
        least_induced: Smallest score after adding, nats.
        progress: Show a bar on stderr.
    Returns:
        The direction, with its length, and the record of all candidates.
    Raises:
        DataError: every candidate is rejected; the reasons are counted.
    Source:
        Arditi et al., 2024, section 2.3. The divergence here is a true one, without a constant inside the logarithms.
    """
    places = [Site(layer, "resid_pre") for layer in range(lm.n_layers)] if sites is None else sites
    base = behaviour_scores(lm, validation_positive, behaviour), behaviour_scores(lm, validation_negative, behaviour)
    found: list[tuple[Candidate, Direction | None]] = []
    with reported("scoring directions", len(places) * n_tokens, shown=progress) as advance:
        for back in range(n_tokens):
            ours = activations_at(lm, positive, places, last_tokens(positive, back))
            theirs = activations_at(lm, negative, places, last_tokens(negative, back))
            for site in places:
                try:
                    direction = difference_in_means(ours[site], theirs[site], site=site, model=lm.name)
                except DataError:  # one token, the same in all prompts: nothing is known of the rest of them yet
                    direction = None
                scores = (
                    None
                    if direction is None
                    else _scores(lm, direction, validation_positive, validation_negative, behaviour)
                )
                depth = (site.layer or 0) / lm.n_layers
                found.append(
                    (_candidate(site, back, direction, scores, depth, max_depth, max_kl, least_induced), direction)
                )
                advance(1)
    found.sort(key=lambda pair: (Site.parse(pair[0].site), pair[0].back))
    kept = [i for i, (candidate, _) in enumerate(found) if not candidate.rejected]
    if not kept:
        reasons = [candidate.rejected for candidate, _ in found]
        counted = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
        raise DataError(f"no direction passes the filters ({counted}); relax one, or look at other sites")
    best = min(kept, key=lambda i: found[i][0].ablated)
    chosen = found[best][1]
    assert chosen is not None
    record = Selection(
        candidates=[candidate for candidate, _ in found],
        chosen=best,
        baseline_positive=float(base[0].mean()),
        baseline_negative=float(base[1].mean()),
    )
    return chosen, record


def _scores(
    lm: LanguageModel, direction: Direction, positive: Tokens, negative: Tokens, behaviour: NextToken
) -> Float64[Tensor, " 3"]:
    ablation = ablate_direction(lm, direction)
    ablated = behaviour_scores(lm, positive, behaviour, ablation).mean()
    induced = behaviour_scores(lm, negative, behaviour, add_direction(lm, direction)).mean()
    kl = mean_kl(lm, negative, ablation, last_only=True)
    return torch.tensor([float(ablated), float(induced), kl], dtype=torch.float64)


def _candidate(
    site: Site,
    back: int,
    direction: Direction | None,
    scores: Float64[Tensor, " 3"] | None,
    depth: float,
    max_depth: float | int,
    max_kl: float | int,
    least_induced: float | int,
) -> Candidate:
    if direction is None or scores is None:
        return Candidate(site=str(site), back=back, norm=0, ablated=0, induced=0, kl=0, rejected="equal means")
    ablated, induced, kl = scores.tolist()
    reasons = {
        "not finite": not all(map(math.isfinite, (ablated, induced, kl))),
        "too deep": depth >= max_depth,
        "too divergent": kl > max_kl,
        "does not induce": induced < least_induced,
    }
    rejected = next((reason for reason, holds in reasons.items() if holds), "")
    return Candidate(
        site=str(site), back=back, norm=direction.norm, ablated=ablated, induced=induced, kl=kl, rejected=rejected
    )
