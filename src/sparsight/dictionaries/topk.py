"""TopK: the k largest pre-activations of each token, rectified."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.selection import top_k_latents


@dataclass(frozen=True)
class TopK(DictionaryConfig):
    """Configuration of a TopK dictionary.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in each token, at most (fewer where fewer than k pre-activations are positive).
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off. Dimensionless: the loss is a
            fraction of the residual's variance.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            activation's width.
        dead_after: A latent is dead when it has been silent for this many tokens.
        k_start: Latents active in each token at the start of training; `k` from the first step on when not given.
        k_anneal: Fraction of the training in which they go from `k_start` to `k`, along a straight line.

    Raises:
        ValueError: a number is out of its range.
    Source:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024 (dead_after is 10 million tokens there: their
        runs see billions).
    """

    k: int
    _: KW_ONLY
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000
    k_start: int | None = None
    k_anneal: Number = 0.2

    architecture: ClassVar[Literal["topk"]] = "topk"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        check_k(self.n_latents, self.k, self.k_start, self.k_anneal)
        check_auxiliary(self.aux, self.k_aux)

    @property
    def run_name(self) -> str:
        return f"topk-{self.n_latents}-k{self.k}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "TopKDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return TopKDictionary(self, unit_rows(self.n_latents, d_in, generator))


class TopKDictionary(AbstractDictionary):
    """`pre = (x - b_dec) W_enc + b_enc`; the k largest are kept, then rectified; the rest are silent.

    Attributes:
        k_now: Latents that a step of training keeps in each token. Coding always keeps `config.k`.
    """

    def __init__(self, config: TopK, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: TopK = config
        self.k_now = config.k
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        values, indices = top_k_latents(x - self.b_dec, self.W_enc, self.b_enc, self.config.k)
        return SparseCode(indices, values.relu(), self.n_latents)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_enc.mul_(factor)

    def schedule_(self, progress: float) -> None:
        """Set `k_now`."""
        self.k_now = annealed(self.config.k, self.config.k_start, self.config.k_anneal, progress)


def annealed(k: int, k_start: int | None, k_anneal: Number, progress: float) -> int:
    """`k_start` at progress 0, `k` from progress `k_anneal` on, on a straight line between, rounded."""
    if k_start is None or progress >= k_anneal:
        return k
    return round(k_start + (k - k_start) * progress / k_anneal)


def check_k(n_latents: int, k: int, k_start: int | None, k_anneal: Number) -> None:
    """Refuse numbers of active latents that a dictionary cannot have, and an annealing that is no part of training."""
    for name, value in (("k", k), ("k_start", k_start)):
        if value is not None and not 1 <= value <= n_latents:
            raise ValueError(
                f"{name} must be between 1 and n_latents={n_latents}, got {name}={value}; lower {name} or widen the "
                "dictionary"
            )
    if not 0 < k_anneal <= 1:
        raise ValueError(f"k_anneal is a fraction of the training, above 0 and at most 1, got k_anneal={k_anneal}")


def check_auxiliary(aux: Number, k_aux: int | None) -> None:
    """Refuse a weight or a size that the auxiliary loss cannot have."""
    if not 0 <= aux < float("inf"):
        raise ValueError(f"aux must be 0 (off) or a positive number, got aux={aux}")
    if k_aux is not None and k_aux < 1:
        raise ValueError(f"k_aux must be at least 1, got k_aux={k_aux}; set aux=0 to switch the auxiliary loss off")
