"""Crosscoder: one code for several sites, or for two models, with a decoder for each."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import (
    AbstractDictionary,
    AnyNormalization,
    DictionaryConfig,
    JointNormalization,
    Normalization,
    Number,
    Place,
    check_positive,
    columns_of,
    unit_rows,
)
from sparsight.dictionaries.selection import block_rows, weighted_top_k_latents
from sparsight.dictionaries.topk import check_auxiliary


@dataclass(frozen=True)
class Crosscoder(DictionaryConfig):
    """Configuration of a crosscoder. Give exactly one of `k` (TopK) and `l1` (rectifier with a penalty).

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in each token, at most.
        l1: Weight of the mean, over tokens and sites, of `sum_j z_j |atom of j at the site|`; the rest of the loss is
            the mean FVU of the sites. Dimensionless. For copies of one site the loss is that of a dictionary of it.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the width
            of all sites together.
        dead_after: A latent is dead when it has been silent for this many tokens.

    Raises:
        ValueError: a number is out of its range, or not exactly one of `k` and `l1` is given.
    Source:
        Lindsey et al., "Sparse crosscoders for cross-layer features and model diffing", 2024 (`l1`). Minder et al.,
        "Overcoming sparsity artifacts in crosscoders to interpret chat-tuning", 2025: the penalty pushes a latent that
        both models have to the norms of one of them, which selection by rank does not; so prefer `k` for two models.
    """

    k: int | None = None
    _: KW_ONLY
    l1: Number | None = None
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000

    architecture: ClassVar[Literal["crosscoder"]] = "crosscoder"
    n_sites: ClassVar[tuple[int, int | None]] = (2, None)

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        if (self.k is None) == (self.l1 is None):
            raise ValueError(
                f"give exactly one of k (a number of latents) and l1 (a weight), got k={self.k} and l1={self.l1}"
            )
        if self.k is not None and not 1 <= self.k <= self.n_latents:
            raise ValueError(
                f"k must be between 1 and n_latents={self.n_latents}, got k={self.k}; lower k or widen the dictionary"
            )
        if self.l1 is not None and not 0 <= self.l1 < float("inf"):
            raise ValueError(f"l1 must be 0 or a positive number, got l1={self.l1}")
        check_auxiliary(self.aux, self.k_aux)

    @property
    def run_name(self) -> str:
        sparsity = f"l1_{self.l1:g}" if self.k is None else f"k{self.k}"
        return f"crosscoder-{self.n_latents}-{sparsity}"

    def build(self, d_in: int | Sequence[int], generator: torch.Generator | None = None) -> "CrosscoderDictionary":
        """Random atoms of equal norm at every site, the encoder their transpose, offsets 0.

        Args:
            d_in: Widths of the sites, in their order; one number is halved between two sites.
            generator: What is random follows from it.
        Raises:
            ValueError: a width is not positive, or there are fewer than two.
        """
        widths = (d_in // 2, d_in - d_in // 2) if isinstance(d_in, int) else tuple(d_in)
        if len(widths) < 2:
            raise ValueError(f"a crosscoder reads two sites or more, got widths {list(widths)}")
        for width in widths:
            check_positive(d_in=width)
        blocks = [unit_rows(self.n_latents, width, generator) for width in widths]
        return CrosscoderDictionary(self, torch.cat(blocks, dim=1) / len(widths) ** 0.5, widths)


class CrosscoderDictionary(AbstractDictionary):
    """`pre = (x - b_dec) W_enc + b_enc` for `x` with all sites side by side, hence a sum over sites; TopK or rectifier.

    An atom holds the direction of a latent at every site, one after the other, and has norm 1 as a whole.

    Attributes:
        selection: `[n_latents]`, not trained: the k largest are those of `pre * selection`. All 1 until a normalisation
            is folded in; sites of unequal scale then change the norm of each atom, and this keeps the choice as it was.
    """

    def __init__(self, config: Crosscoder, atoms: Float[Tensor, "n_latents d_total"], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.config: Crosscoder = config
        self.provenance = {}
        self.places = tuple(Place(width) for width in widths)
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        self.selection = nn.Parameter(atoms.new_ones(atoms.shape[0]), requires_grad=False)

    @property
    def columns(self) -> list[slice]:
        """The columns of each site in a row of all."""
        return columns_of([place.width for place in self.places])

    @property
    def atom_norms_by_site(self) -> Float[Tensor, "n_latents n_sites"]:
        """Share of each atom's norm at each site, in normalised units; a row sums to 1.

        With two sites 0.5 says that a latent is written alike to both, 0 and 1 that it belongs to one. Norms of raw
        units would say which site is the longer one.
        """
        scales = (1.0,) * len(self.places)
        if isinstance(self.normalization, JointNormalization):
            scales = self.normalization.scale
        norms = [scale * self.atoms[:, at].norm(dim=1) for at, scale in zip(self.columns, scales, strict=True)]
        by_site = torch.stack(norms, dim=1)
        return by_site / by_site.sum(dim=1, keepdim=True)

    def encode(self, x: Float[Tensor, "n d_total"]) -> SparseCode:
        centred = x - self.b_dec
        if self.config.k is not None:
            values, indices = weighted_top_k_latents(centred, self.W_enc, self.b_enc, self.selection, self.config.k)
            return SparseCode(indices, values, self.n_latents)
        blocks = [
            SparseCode.from_dense(torch.addmm(self.b_enc, rows, self.W_enc).relu())
            for rows in torch.split(centred, block_rows(self.n_latents, x.device))
        ]
        return SparseCode.cat(blocks)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_enc.mul_(factor)

    @torch.no_grad()
    def absorb_(self, normalization: AnyNormalization) -> None:
        """Give every site its own units. Atoms keep norm 1 as a whole, so a value is the length of what is written.

        Raises:
            ValueError: there is not one normalisation for each site.
        """
        if isinstance(normalization, Normalization) or len(normalization.parts) != len(self.places):
            raise ValueError(f"a crosscoder of {len(self.places)} sites is folded with as many normalizations")
        for at, part in zip(self.columns, normalization.parts, strict=True):
            self.atoms[:, at].div_(part.scale)
            self.W_enc[at].mul_(part.scale)
            self.b_dec[at] = self.b_dec[at] / part.scale + part.mean.to(self.b_dec)
        norms = self.atoms.norm(dim=1)
        self.atoms.div_(norms[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)
        self.selection.div_(norms)
