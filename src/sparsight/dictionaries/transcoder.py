"""Transcoder: a sparse code of what a module reads, decoded into what it writes."""

import math
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
    Normalization,
    Number,
    Place,
    check_positive,
    unit_rows,
)
from sparsight.dictionaries.selection import top_k_latents, weighted_top_k_latents
from sparsight.dictionaries.threshold import code_above
from sparsight.dictionaries.topk import check_auxiliary

# Thresholds of a transcoder with `jump` before a file has filled them in.
FIRST_THRESHOLD = 0.1


@dataclass(frozen=True)
class Transcoder(DictionaryConfig):
    """Configuration of a TopK transcoder.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in each token, at most. Without it a latent is active wherever its pre-activation is positive,
            or above its threshold with `jump`: so are transcoders that others published. Training needs a `k`.
        jump: Without `k` only: every latent has a threshold of its own.
        weighted: With `k` only, and not trained: the k largest are those of `pre * selection`. Published transcoders
            rank latents without the norms of their decoder's rows, which differ.
        skip: Also learn an affine map from the input straight to the output: latents then explain what is not linear.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            output's width.
        dead_after: A latent is dead when it has been silent for this many tokens.

    Raises:
        ValueError: a number is out of its range.
    Source:
        Dunefsky, Chlenski & Nanda, "Transcoders find interpretable LLM feature circuits", 2024; the skip: Paulo,
        Shabalin & Belrose, "Transcoders beat sparse autoencoders for interpretability", 2025. We depart from the first
        by TopK in place of an L1 penalty, from both by unit atoms and an input offset.
    """

    k: int | None = None
    _: KW_ONLY
    jump: bool = False
    weighted: bool = False
    skip: bool = False
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000

    architecture: ClassVar[Literal["transcoder"]] = "transcoder"
    n_sites: ClassVar[tuple[int, int | None]] = (2, 2)

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        if self.jump and self.k is not None:
            raise ValueError(f"jump goes with k=None: thresholds choose the active latents, not k={self.k}")
        if self.weighted and self.k is None:
            raise ValueError("weighted goes with a k: without one no latents are ranked")
        if self.k is not None and not 1 <= self.k <= self.n_latents:
            raise ValueError(
                f"k must be between 1 and n_latents={self.n_latents}, got k={self.k}; lower k or widen the dictionary"
            )
        check_auxiliary(self.aux, self.k_aux)

    @property
    def trainable(self) -> bool:
        return self.k is not None and not self.weighted

    @property
    def run_name(self) -> str:
        sparsity = f"k{self.k}" if self.k is not None else ("jump" if self.jump else "relu")
        extras = f"{'-weighted' if self.weighted else ''}{'-skip' if self.skip else ''}"
        return f"transcoder-{self.n_latents}-{sparsity}{extras}"

    def build(self, d_in: int | Sequence[int], generator: torch.Generator | None = None) -> "TranscoderDictionary":
        """Random unit atoms, a random encoder, offsets and skip 0.

        Args:
            d_in: Widths of the input and of the output; one number when they are equal.
            generator: What is random follows from it.
        Raises:
            ValueError: a width is not positive, or there are not two.
        """
        widths = (d_in, d_in) if isinstance(d_in, int) else tuple(d_in)
        if len(widths) != 2:
            raise ValueError(f"a transcoder has one input and one output, got widths {list(widths)}")
        check_positive(d_in=widths[0], d_out=widths[1])
        encoder = unit_rows(self.n_latents, widths[0], generator)
        return TranscoderDictionary(self, encoder, unit_rows(self.n_latents, widths[1], generator))


class TranscoderDictionary(AbstractDictionary):
    """`pre = (x - b_in) W_enc + b_enc`; the k largest, rectified; `y_hat = z atoms + b_dec [+ (x - b_in) W_skip]`.

    Without k the code is `pre` where it exceeds 0, or the latent's threshold, and 0 elsewhere.

    Attributes:
        log_threshold: `[n_latents]`, with `jump` only.
        selection: `[n_latents]`, positive, with `weighted` only.
        W_skip: `[d_in, d_out]`, or None without a skip.
    """

    def __init__(
        self, config: Transcoder, encoder: Float[Tensor, "n_latents d_in"], atoms: Float[Tensor, "n_latents d_out"]
    ) -> None:
        super().__init__()
        self.config: Transcoder = config
        self.provenance = {}
        d_in, d_out = encoder.shape[1], atoms.shape[1]
        self.places = (Place(d_in), Place(d_out))
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(d_out))
        self.W_enc = nn.Parameter(encoder.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        self.b_in = nn.Parameter(atoms.new_zeros(d_in))
        self.W_skip = nn.Parameter(atoms.new_zeros(d_in, d_out)) if config.skip else None
        if config.jump:
            self.log_threshold = nn.Parameter(atoms.new_full((atoms.shape[0],), math.log(FIRST_THRESHOLD)))
        if config.weighted:
            self.selection = nn.Parameter(atoms.new_ones(atoms.shape[0]), requires_grad=False)

    @property
    def d_in(self) -> int:
        return int(self.W_enc.shape[0])

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        if self.config.k is None:
            threshold = self.log_threshold.exp() if self.config.jump else torch.zeros_like(self.b_enc)
            return code_above(x - self.b_in, self.W_enc, self.b_enc, threshold)
        if self.config.weighted:
            values, indices = weighted_top_k_latents(
                x - self.b_in, self.W_enc, self.b_enc, self.selection, self.config.k
            )
            return SparseCode(indices, values, self.n_latents)
        values, indices = top_k_latents(x - self.b_in, self.W_enc, self.b_enc, self.config.k)
        return SparseCode(indices, values.relu(), self.n_latents)

    def reconstruct(self, x: Float[Tensor, "n d_in"], code: SparseCode) -> Float[Tensor, "n d_out"]:
        """The decoded code, plus the skip of `x` where there is one."""
        decoded = self.decode(code)
        return decoded if self.W_skip is None else decoded + (x - self.b_in) @ self.W_skip

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        for offset in (self.b_in, self.b_dec, self.b_enc):
            offset.mul_(factor)
        if self.config.jump:
            self.log_threshold.add_(math.log(factor))

    @torch.no_grad()
    def absorb_(self, normalization: AnyNormalization) -> None:
        """Give the input its units and the values those of the output: `W_enc` and `W_skip` carry their ratio.

        Raises:
            ValueError: the normalisation is not of an input and an output.
        """
        if isinstance(normalization, Normalization) or len(normalization.parts) != 2:
            raise ValueError("a transcoder is folded with two normalizations, of its input and of its output")
        source, target = normalization.parts
        ratio = source.scale / target.scale
        self.W_enc.mul_(ratio)
        if self.W_skip is not None:
            self.W_skip.mul_(ratio)
        self.b_enc.div_(target.scale)
        if self.config.jump:
            self.log_threshold.sub_(math.log(target.scale))
        self.b_in.div_(source.scale).add_(source.mean.to(self.b_in))
        self.b_dec.div_(target.scale).add_(target.mean.to(self.b_dec))
