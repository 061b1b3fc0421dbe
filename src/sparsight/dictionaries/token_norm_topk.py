"""TokenNormTopK: TopK of activations, each standardised by its own mean and deviation; published weights only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, check_positive, unit_rows
from sparsight.dictionaries.selection import weighted_top_k_latents
from sparsight.dictionaries.topk import check_k

# Added to the deviation before a file has filled it in.
FIRST_EPSILON = 1e-5


@dataclass(frozen=True)
class TokenNormTopK(DictionaryConfig):
    """Configuration of a TopK dictionary behind a standardisation of each token. It is not trained: `TopK` is.

    A mean and a deviation that change with each token cannot be folded into weights, so the architecture keeps them.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in each token, at most.

    Raises:
        ValueError: a number is out of its range.
    Source:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024, whose published weights are of this kind.
    """

    k: int

    architecture: ClassVar[Literal["token_norm_topk"]] = "token_norm_topk"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents)
        check_k(self.n_latents, self.k, None, 1.0)

    @property
    def trainable(self) -> bool:
        return False

    @property
    def run_name(self) -> str:
        return f"token_norm_topk-{self.n_latents}-k{self.k}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "TokenNormTopKDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0, weights 1.

        Raises:
            ValueError: `d_in` is less than 2: one number has no deviation.
        """
        check_positive(d_in=d_in)
        if d_in < 2:
            raise ValueError(f"d_in must be at least 2, got d_in={d_in}: one number has no deviation")
        return TokenNormTopKDictionary(self, unit_rows(self.n_latents, d_in, generator))


class TokenNormTopKDictionary(AbstractDictionary):
    """`u = (y - m) / s` with `y = x - b_dec`; TopK of `(u - b_norm) W_enc + b_enc`; values times `s`.

    `m` is the mean of the numbers in `y`, `s` their deviation (unbiased) plus `epsilon`. The reconstruction is
    `z atoms + s b_norm + m + b_dec`: the code alone does not hold `m` and `s`, which pass beside it.

    Attributes:
        b_norm: `[d_in]`, offset in units of the standardised activation.
        selection: `[n_latents]`, positive: the k largest are those of the pre-activation times this.
        epsilon: In units of the activations.
    """

    def __init__(self, config: TokenNormTopK, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: TokenNormTopK = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.b_norm = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        self.selection = nn.Parameter(atoms.new_ones(atoms.shape[0]), requires_grad=False)
        self.epsilon = nn.Parameter(atoms.new_full((), FIRST_EPSILON), requires_grad=False)

    def _statistics(self, x: Float[Tensor, "n d_in"]) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"]]:
        y = x - self.b_dec
        mean = y.mean(dim=1, keepdim=True)
        # Where all numbers are equal a norm has a gradient of 0, and `std` none.
        return mean, (y - mean).norm(dim=1, keepdim=True) / (y.shape[1] - 1) ** 0.5 + self.epsilon

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        mean, deviation = self._statistics(x)
        centred = (x - self.b_dec - mean) / deviation - self.b_norm
        values, indices = weighted_top_k_latents(centred, self.W_enc, self.b_enc, self.selection, self.config.k)
        return SparseCode(indices, values * deviation, self.n_latents)

    def reconstruct(self, x: Float[Tensor, "n d_in"], code: SparseCode) -> Float[Tensor, "n d_in"]:
        """The decoded code, plus the token's mean and its share of `b_norm`."""
        mean, deviation = self._statistics(x)
        return self.decode(code) + deviation * self.b_norm + mean

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.epsilon.mul_(factor)
