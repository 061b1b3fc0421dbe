"""BatchTopK: trained on the largest pre-activations of a whole batch, used with one threshold."""

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.threshold import code_above, first_log_threshold, fit_log_threshold
from sparsight.dictionaries.topk import annealed, check_auxiliary, check_k


@dataclass(frozen=True)
class BatchTopK(DictionaryConfig):
    """Configuration of a BatchTopK dictionary.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in a token, on average: a batch of `b` tokens shares `k b`.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off. Dimensionless: the loss is a
            fraction of the residual's variance.
        k_aux: Dead latents that share the residual of one token. Default: half of the activation's width.
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


class BatchTopKDictionary(AbstractDictionary):
    """`pre = (x - b_dec) W_enc + b_enc`; `z = pre` where `pre > theta`, else 0, with one `theta` for all latents.

    The code of a token does not depend on its batch; only a training step selects over the batch. The threshold is
    held by its logarithm, so that it stays positive and JumpReLU can hold the same one to the last bit.

    Attributes:
        log_theta: Logarithm of the threshold. Not trained: `calibrate_` sets it.
        k_now: Latents that a step of training keeps in a token, on average.
    """

    needs_calibration: ClassVar[bool] = True

    def __init__(self, config: BatchTopK, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: BatchTopK = config
        self.k_now = config.k
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        start = first_log_threshold(config.k, atoms.shape[0], atoms.shape[1])
        self.log_theta = nn.Parameter(atoms.new_tensor(start), requires_grad=False)

    @property
    def theta(self) -> Float[Tensor, ""]:
        """The threshold, in the units of the pre-activations."""
        return self.log_theta.exp()

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        threshold = self.log_theta.repeat(self.n_latents).exp()
        return code_above(x - self.b_dec, self.W_enc, self.b_enc, threshold)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_enc.mul_(factor)
        self.log_theta.add_(math.log(factor))

    def schedule_(self, progress: float) -> None:
        """Set `k_now`."""
        self.k_now = annealed(self.config.k, self.config.k_start, self.config.k_anneal, progress)

    @torch.no_grad()
    def calibrate_(self, batches: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Set the threshold so that `k` latents are active on average over these activations.

        Args:
            batches: Normalised activations that were not trained on.
        Raises:
            ValueError: no activation came.
        """
        self.log_theta.fill_(fit_log_threshold(batches, self.W_enc, self.b_enc, self.b_dec, self.config.k))
