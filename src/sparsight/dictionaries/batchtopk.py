"""BatchTopK: trained on the largest pre-activations of a whole batch, used with one threshold."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch

from sparsight.dictionaries.base import DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.common_threshold import CommonThresholdDictionary
from sparsight.dictionaries.topk import annealed, check_auxiliary, check_k


@dataclass(frozen=True)
class BatchTopK(DictionaryConfig):
    """Configuration of a BatchTopK dictionary.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in a token, on average: a batch of `b` tokens shares `k b`.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off. Dimensionless: the loss is a
            fraction of the residual's variance.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            activation's width.
        dead_after: A latent is dead when it has been silent for this many tokens.
        k_start: Mean number of active latents at the start of training; `k` from the first step on when not given.
        k_anneal: Fraction of the training in which it goes from `k_start` to `k`, along a straight line.

    Raises:
        ValueError: a number is out of its range.
    Source:
        Bussmann, Leask & Nanda, "BatchTopK sparse autoencoders", 2024. We depart from it by the threshold, which is
        fitted after training; they average the smallest active pre-activation of the batches.
    """

    k: int
    _: KW_ONLY
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000
    k_start: int | None = None
    k_anneal: Number = 0.2

    architecture: ClassVar[Literal["batchtopk"]] = "batchtopk"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        check_k(self.n_latents, self.k, self.k_start, self.k_anneal)
        check_auxiliary(self.aux, self.k_aux)

    @property
    def run_name(self) -> str:
        return f"batchtopk-{self.n_latents}-k{self.k}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "BatchTopKDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0, the threshold where `k` are active at the start.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return BatchTopKDictionary(self, unit_rows(self.n_latents, d_in, generator))


class BatchTopKDictionary(CommonThresholdDictionary):
    """Codes with the one threshold of `CommonThresholdDictionary`."""

    config: BatchTopK

    def schedule_(self, progress: float) -> None:
        """Set `k_now`."""
        self.k_now = annealed(self.config.k, self.config.k_start, self.config.k_anneal, progress)
