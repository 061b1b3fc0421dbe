"""Matryoshka: every prefix of the latents is a dictionary of its own."""

from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from random import Random
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries.base import DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.common_threshold import CommonThresholdDictionary
from sparsight.dictionaries.topk import annealed, check_auxiliary, check_k


@dataclass(frozen=True)
class Matryoshka(DictionaryConfig):
    """Configuration of a Matryoshka dictionary. Give exactly one of `widths` and `sampled`.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in a token, on average, over the whole width; a prefix has those of them that lie in it.
        widths: Prefixes that must reconstruct by themselves, ascending; the whole width is always one, named or not.
        sampled: Number of prefixes, the whole width counted, that each step draws anew. Inner widths `w` are drawn
            without replacement with chances proportional to `1 / w`: as many between 1 and 2 as between 512 and 1024.
        weights: Weight of each inner prefix in the loss, the whole width having 1: one for each of `widths`, or for
            each of the `sampled - 1` that are drawn, the narrowest first. Default: 1 for each.
        seed: Of the sampled prefixes.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            activation's width.
        dead_after: A latent is dead when it has been silent for this many tokens.
        k_start: Mean number of active latents at the start of training; `k` from the first step on when not given.
        k_anneal: Fraction of the training in which it goes from `k_start` to `k`, along a straight line.

    Raises:
        ValueError: a number is out of its range, or not exactly one of `widths` and `sampled` is given.
    Source:
        Bussmann, Nabeshima, Karvonen & Nanda, "Learning multi-level features with Matryoshka sparse autoencoders",
        2025. The distribution of sampled prefixes is ours.
    """

    k: int
    widths: tuple[int, ...] | None = None
    _: KW_ONLY
    sampled: int | None = None
    weights: tuple[Number, ...] | None = None
    seed: int = 0
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000
    k_start: int | None = None
    k_anneal: Number = 0.2

    architecture: ClassVar[Literal["matryoshka"]] = "matryoshka"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        check_k(self.n_latents, self.k, self.k_start, self.k_anneal)
        check_auxiliary(self.aux, self.k_aux)
        if (self.widths is None) == (self.sampled is None):
            raise ValueError(
                f"give exactly one of widths (fixed prefixes) and sampled (how many to draw in each step), got "
                f"widths={self.widths} and sampled={self.sampled}"
            )
        if self.sampled is not None and not 2 <= self.sampled <= self.n_latents:
            raise ValueError(f"sampled must be between 2 and n_latents={self.n_latents}, got sampled={self.sampled}")
        self._check_widths()

    def _check_widths(self) -> None:
        widths = () if self.widths is None else self.widths
        if any(a >= b for a, b in pairwise(widths)) or any(not 1 <= w <= self.n_latents for w in widths):
            raise ValueError(
                f"widths must ascend and lie between 1 and n_latents={self.n_latents}, got widths={self.widths}"
            )
        if self.weights is None:
            return
        n_inner = len(self.inner_widths) if self.sampled is None else self.sampled - 1
        if len(self.weights) != n_inner:
            raise ValueError(
                f"weights must be one for each of the {n_inner} inner prefixes, got weights={self.weights}"
            )
        for weight in self.weights:
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights must be 0 or positive numbers, got weights={self.weights}")

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """The fixed prefixes but the whole width."""
        return tuple(w for w in self.widths or () if w < self.n_latents)

    @property
    def run_name(self) -> str:
        prefixes = f"sampled{self.sampled}" if self.widths is None else f"{len(self.inner_widths) + 1}prefixes"
        return f"matryoshka-{self.n_latents}-k{self.k}-{prefixes}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "MatryoshkaDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0, the threshold where `k` are active at the start.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return MatryoshkaDictionary(self, unit_rows(self.n_latents, d_in, generator))


class MatryoshkaDictionary(CommonThresholdDictionary):
    """Codes like `BatchTopKDictionary`; its latents are in order, those of small prefixes first.

    Attributes:
        widths_now: Prefixes of the present step of training, ascending, the last one the whole width.
    """

    config: Matryoshka

    def __init__(self, config: Matryoshka, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__(config, atoms)
        self.widths_now = _widths(config, 0.0)

    def schedule_(self, progress: float) -> None:
        """Set `k_now` and, where prefixes are sampled, draw `widths_now`.

        The draw depends on the seed and on `progress` alone: a resumed run and every process of a parallel one draw the
        same, and nothing has to be stored.
        """
        self.k_now = annealed(self.config.k, self.config.k_start, self.config.k_anneal, progress)
        self.widths_now = _widths(self.config, progress)


def _widths(config: Matryoshka, progress: float) -> tuple[int, ...]:
    """The fixed prefixes, or those of this moment of training."""
    if config.sampled is None:
        return (*config.inner_widths, config.n_latents)
    # Python hashes a text into a seed; torch would use the last 32 bits of a number only.
    generator = torch.Generator().manual_seed(Random(f"{config.seed} {progress!r}").getrandbits(32))
    chances = 1 / torch.arange(1, config.n_latents, dtype=torch.float64)
    drawn = torch.multinomial(chances, config.sampled - 1, replacement=False, generator=generator) + 1
    return (*sorted(drawn.tolist()), config.n_latents)
