"""How often, how strongly and how much: one pass over a store for every latent at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.interpretation.reading import Encodes, StoredActivations, codes_of


@dataclass(frozen=True)
class LatentStatistics:
    """Sums over `n_tokens` activations, per latent. A latent is active where its value is not 0.

    Attributes:
        n_tokens: Activations looked at.
        count: Activations in which the latent is active.
        energy: Sum of squared values. Atoms have unit norm, so this is the squared length of what the latent wrote.
        maximum: Largest value; 0 for a latent that was never active.
    """

    n_tokens: int
    count: Int64[Tensor, " n_latents"]
    energy: Float[Tensor, " n_latents"]
    maximum: Float[Tensor, " n_latents"]

    @property
    def density(self) -> Float[Tensor, " n_latents"]:
        """Share of the activations in which each latent is active: 0 silent, 1 always on."""
        return self.count.double() / self.n_tokens

    @property
    def energy_share(self) -> Float[Tensor, " n_latents"]:
        """Each latent's part of all the energy written, in [0, 1]; the parts add up to 1, or are all 0."""
        return self.energy / self.energy.sum().clamp_min(torch.finfo(torch.float64).tiny)


@torch.no_grad()
def latent_statistics(dictionary: Encodes, store: StoredActivations, *, batch_size: int = 4096) -> LatentStatistics:
    """Count, energy and largest value of every latent, in one pass over the store.

    Args:
        dictionary: Codes the activations.
        store: Activations; pass `store.split("heldout")` for text the dictionary was not trained on.
        batch_size: Activations coded at once.
    Raises:
        UndefinedMetric: the store is empty.
    """
    if len(store) == 0:
        raise UndefinedMetric("latent statistics need at least one activation, the store has none")
    count = torch.zeros(dictionary.n_latents, dtype=torch.int64)
    energy = torch.zeros(dictionary.n_latents, dtype=torch.float64)
    maximum = torch.zeros(dictionary.n_latents, dtype=torch.float64)
    for _, code in codes_of(dictionary, store, batch_size=batch_size):
        used = code.values != 0
        latents, values = code.indices[used], code.values[used].double()
        count += torch.bincount(latents, minlength=code.n_latents)
        energy.scatter_add_(0, latents, values.square())
        maximum.scatter_reduce_(0, latents, values, "amax")
    return LatentStatistics(len(store), count, energy, maximum)


@torch.no_grad()
def value_histograms(
    dictionary: Encodes,
    store: StoredActivations,
    latents: Sequence[int],
    statistics: LatentStatistics,
    *,
    n_bins: int = 24,
    batch_size: int = 4096,
) -> dict[int, list[int]]:
    """How the values above 0 of each chosen latent are spread between 0 and its maximum.

    Args:
        dictionary: Codes the activations.
        store: The activations that `statistics` were taken from.
        latents: Latents to look at.
        statistics: Their largest values set the range of the bins.
        n_bins: Bins of equal width; the last one holds the maximum.
        batch_size: Activations coded at once.
    Returns:
        `n_bins` counts for each latent; they add up to the number of activations in which its value is above 0.
    """
    slot = torch.full((dictionary.n_latents,), -1)
    slot[list(latents)] = torch.arange(len(latents))
    counts = torch.zeros(len(latents) * n_bins, dtype=torch.int64)
    for _, code in codes_of(dictionary, store, batch_size=batch_size):
        kept = (code.values > 0) & (slot[code.indices] >= 0)
        chosen, values = code.indices[kept], code.values[kept].double()
        bins = (values / statistics.maximum[chosen] * n_bins).long().clamp_max(n_bins - 1)
        counts += torch.bincount(slot[chosen] * n_bins + bins, minlength=len(counts))
    return {latent: counts[i * n_bins : (i + 1) * n_bins].tolist() for i, latent in enumerate(latents)}
