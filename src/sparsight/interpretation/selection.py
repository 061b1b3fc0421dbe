"""Which latents to look at: the ones that carry most, and a fair sample of the rest."""

from dataclasses import dataclass

import torch

from sparsight.interpretation.statistics import LatentStatistics

DENSE = 0.1  # a latent active in more than one token of ten seldom has contexts worth reading one by one


@dataclass(frozen=True)
class PickedLatents:
    """Latents to look at, in two lists that may share members: `best`, strongest first, and `random`, by index."""

    best: tuple[int, ...]
    random: tuple[int, ...]

    @property
    def all(self) -> list[int]:
        """Every picked latent once, by index."""
        return sorted({*self.best, *self.random})


def pick_latents(
    statistics: LatentStatistics, *, n_best: int = 50, n_random: int = 50, max_density: float = DENSE, seed: int = 0
) -> PickedLatents:
    """The latents that explain most without being always on, and random live ones.

    "Best" is the share of the code's energy (the sum of squared values; atoms have unit norm), among the latents active
    in at most `max_density` of the tokens. It is chosen without looking at any label or context, so it cannot flatter
    what the contexts show. "Random" are drawn evenly from all latents that were active at least once, without
    replacement: they, not the best, say what a typical latent looks like.

    Args:
        statistics: From `latent_statistics`.
        n_best: Latents in the first list; all that qualify when there are fewer.
        n_random: Latents in the second list; all live ones when there are fewer.
        max_density: Largest share of tokens in which a "best" latent may be active, in (0, 1].
        seed: Of the random draw.
    Raises:
        ValueError: a count is negative or `max_density` is outside (0, 1].
    """
    if n_best < 0 or n_random < 0:
        raise ValueError(f"n_best and n_random must be at least 0, got {n_best} and {n_random}")
    if not 0 < max_density <= 1:
        raise ValueError(f"max_density must be in (0, 1], got {max_density}")
    eligible = ((statistics.count > 0) & (statistics.density <= max_density)).nonzero().flatten()
    order = statistics.energy[eligible].sort(descending=True, stable=True).indices
    best = eligible[order[:n_best]].tolist()
    live = (statistics.count > 0).nonzero().flatten()
    drawn = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))[:n_random]
    return PickedLatents(tuple(best), tuple(sorted(live[drawn].tolist())))
