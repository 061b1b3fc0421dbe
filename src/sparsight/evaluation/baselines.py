"""What is no trained dictionary, measured like one: the floor under every reconstruction score."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.coding import gradient_pursuit
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.core_records import BaselineRecord
from sparsight.evaluation.pairs import float64_pair
from sparsight.evaluation.reading import Predicts, StoredActivations
from sparsight.evaluation.record_values import Estimate, Resampling, ratio
from sparsight.evaluation.splice import Replacement, measure_losses
from sparsight.models import Site

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From activations `[n, d]` to reconstructions `[n, d]` and how many numbers each uses `[n]`."""

_RANDOM_ATOMS = 0xBA5E  # says what a generator is for, beside the seed
DESCRIPTIONS = {
    "dictionary": "the dictionary measured, on the tokens of the baselines",
    "mean": "the mean of training tokens, whatever the token",
    "principal components": "the mean and as many leading principal components of training tokens: dense, of any sign",
    "neurons": "the mean and the coordinates of the site that are farthest from it, as many as the dictionary's L0",
    "random atoms": "random unit atoms, as many as the dictionary has, coded by gradient pursuit at its L0",
}


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and principal components of training tokens.

    Attributes:
        mean: `[d]`.
        components: Orthonormal rows `[d, d]`, the one of largest variance first.
    """

    mean: Float[Tensor, " d"]
    components: Float[Tensor, "d d"]

    @staticmethod
    def of(x: Float[Tensor, "n d"]) -> "Moments":
        """Of some activations, in double precision."""
        exact = x.double()
        mean = exact.mean(dim=0)
        centred = exact - mean
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors
        return Moments(mean.to(x), vectors.flip(1).T.to(x))


def mean_of(moments: Moments) -> Reconstruct:
    """The mean, 0 numbers."""
    return lambda x: (moments.mean.to(x).expand_as(x), torch.zeros(len(x)))


def principal_components(moments: Moments, k: int) -> Reconstruct:
    """The mean and the projection on the `k` leading components: the best `k` dense numbers of a linear code."""

    def reconstruct(x: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        basis, mean = moments.components[:k].to(x), moments.mean.to(x)
        return mean + ((x - mean) @ basis.T) @ basis, torch.full((len(x),), float(len(basis)))

    return reconstruct


def neurons(moments: Moments, k: int) -> Reconstruct:
    """The mean but for the `k` coordinates that are farthest from it."""

    def reconstruct(x: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        mean = moments.mean.to(x)
        centred = x - mean
        kept = centred.abs().topk(min(k, x.shape[1]), dim=1).indices
        some = torch.zeros_like(centred).scatter_(1, kept, centred.gather(1, kept))
        return mean + some, torch.full((len(x),), float(kept.shape[1]))

    return reconstruct


def random_atoms(moments: Moments, n_latents: int, k: int, seed: int = 0) -> Reconstruct:
    """The mean and `k` of `n_latents` random unit atoms, chosen by gradient pursuit."""
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM_ATOMS))
    atoms = torch.nn.functional.normalize(torch.randn(n_latents, len(moments.mean), generator=generator), dim=1)

    @torch.no_grad()
    def reconstruct(x: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        mean, here = moments.mean.to(x), atoms.to(x)
        code = gradient_pursuit(x - mean, here, min(k, n_latents))
        return mean + code.decode(here), code.l0().double()

    return reconstruct


def baselines_of(moments: Moments, n_latents: int, l0: float, seed: int = 0) -> dict[str, Reconstruct]:
    """Every baseline, with as many numbers per token as the dictionary's mean L0 (rounded, at least 1)."""
    k = max(1, round(l0))
    return {
        "mean": mean_of(moments),
        "principal components": principal_components(moments, k),
        "neurons": neurons(moments, k),
        "random atoms": random_atoms(moments, n_latents, k, seed),
    }


def fvu_sums(
    x: Float[Tensor, "n d"], document_ids: Tensor, reconstruct: Reconstruct, mean: Float64[Tensor, " d"]
) -> tuple[DocumentSums, float]:
    """Residual and variance about `mean`, summed within each document; and the numbers used per token."""
    sums, used = DocumentSums(2), 0.0
    for rows in torch.split(torch.arange(len(x)), 2048):
        x_hat, numbers = reconstruct(x[rows])
        exact, exact_hat = float64_pair(x[rows], x_hat)
        residual = (exact - exact_hat).square().sum(dim=1)
        variance = (exact - mean).square().sum(dim=1)
        sums.add(document_ids[rows.to(document_ids.device)], torch.stack([residual, variance], dim=1))
        used += float(numbers.sum())
    return sums, used / len(x)


def measure_baselines(
    arms: Mapping[str, Reconstruct],
    x: Float[Tensor, "n d"],
    document_ids: Tensor,
    resampling: Resampling,
    *,
    model: Predicts | None = None,
    part: StoredActivations | None = None,
    site: Site | None = None,
    loss_tokens: int = 4096,
) -> list[BaselineRecord]:
    """Every arm on the same tokens: FVU about their own mean, and the loss added if there is a model.

    Args:
        arms: Ways to reconstruct, by name.
        x: Activations to judge them on.
        document_ids: Document of each.
        resampling: How intervals are drawn.
        model: For the loss; with `part` and `site`.
        part: Contexts for the loss.
        site: Where reconstructions are put.
        loss_tokens: About how many tokens to use for it.
    """
    mean = x.double().mean(dim=0)
    added: dict[str, Estimate] = {}
    if model is not None and part is not None and site is not None:
        replacements = {name: _as_replacement(arm) for name, arm in arms.items()}
        documents, columns = measure_losses(model, part, site, replacements, limit=loss_tokens)
        drawn = resampling.over(documents)
        for name in arms:
            added[name] = drawn.estimate(_added(columns[name], columns["clean"]))
    found = []
    for name, arm in arms.items():
        sums, l0 = fvu_sums(x, document_ids, arm, mean)
        found.append(
            BaselineRecord(
                baseline=name,
                what=DESCRIPTIONS[name],
                n_tokens=len(x),
                l0=l0,
                fvu=resampling.estimate(sums, ratio(0, 1)),
                loss_added=added.get(name),
            )
        )
    return found


def _as_replacement(arm: Reconstruct) -> Replacement:
    return lambda x: arm(x)[0]


def _added(column: int, clean: int) -> Callable[[Tensor], Tensor]:
    return lambda s: (s[..., column] - s[..., clean]) / s[..., 0]
