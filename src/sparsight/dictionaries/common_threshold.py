"""What BatchTopK and Matryoshka share: one threshold for all latents, fitted when training has ended."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary
from sparsight.dictionaries.threshold import code_above, first_log_threshold, fit_log_threshold


class CommonThresholdDictionary(AbstractDictionary, ABC):
    """`pre = (x - b_dec) W_enc + b_enc`; `z = pre` where `pre > theta`, else 0, with one `theta` for all latents.

    The code of a token does not depend on its batch; only a training step selects over the batch. The threshold is
    held by its logarithm, so that it stays positive and JumpReLU can hold the same one to the last bit.

    Attributes:
        log_theta: Logarithm of the threshold. Not trained: `calibrate_` sets it.
        k_now: Latents that a step of training keeps in a token, on average.
    """

    needs_calibration: ClassVar[bool] = True

    def __init__(self, config: Any, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config = config
        self.k_now: int = config.k
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

    @abstractmethod
    def schedule_(self, progress: float) -> None:
        """Set `k_now`, and what else changes in the course of training."""

    @torch.no_grad()
    def calibrate_(self, batches: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Set the threshold so that `k` latents are active on average over these activations.

        Args:
            batches: Normalised activations that were not trained on.
        Raises:
            ValueError: no activation came.
        """
        self.log_theta.fill_(fit_log_threshold(batches, self.W_enc, self.b_enc, self.b_dec, self.config.k))
