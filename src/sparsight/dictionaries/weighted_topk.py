"""WeightedTopK: the k latents whose weighted pre-activations are largest; published weights only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, check_positive, unit_rows
from sparsight.dictionaries.selection import weighted_top_k_latents
from sparsight.dictionaries.topk import check_k


@dataclass(frozen=True)
class WeightedTopK(DictionaryConfig):
    """Configuration of a TopK dictionary whose ranking and values have different units.

    Where rows of a decoder differ in norm and latents were ranked by `f_j`, the value of a unit atom is `f_j |row_j|`,
    and its k largest are other ones. Files of bfloat16 hold such rows: their norms are 1 to three digits only. It is
    not trained: `TopK` is.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in each token, at most.

    Raises:
        ValueError: a number is out of its range.
    """

    k: int

    architecture: ClassVar[Literal["weighted_topk"]] = "weighted_topk"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents)
        check_k(self.n_latents, self.k, None, 1.0)

    @property
    def trainable(self) -> bool:
        return False

    @property
    def run_name(self) -> str:
        return f"weighted_topk-{self.n_latents}-k{self.k}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "WeightedTopKDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0, weights 1.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return WeightedTopKDictionary(self, unit_rows(self.n_latents, d_in, generator))


class WeightedTopKDictionary(AbstractDictionary):
    """`pre = (x - b_dec) W_enc + b_enc`; the k largest of `pre * selection` are kept; their `pre`, rectified.

    Attributes:
        selection: `[n_latents]`, positive.
    """

    def __init__(self, config: WeightedTopK, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: WeightedTopK = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        self.selection = nn.Parameter(atoms.new_ones(atoms.shape[0]), requires_grad=False)

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        values, indices = weighted_top_k_latents(x - self.b_dec, self.W_enc, self.b_enc, self.selection, self.config.k)
        return SparseCode(indices, values, self.n_latents)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_enc.mul_(factor)
