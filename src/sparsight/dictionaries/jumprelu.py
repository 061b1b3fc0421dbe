"""JumpReLU: a latent is active where its pre-activation exceeds the latent's own threshold."""

import math
from dataclasses import KW_ONLY, dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.threshold import code_above
from sparsight.dictionaries.topk import check_auxiliary


@dataclass(frozen=True)
class JumpReLU(DictionaryConfig):
    """Configuration of a JumpReLU dictionary. Give exactly one of `l0` and `target_l0`.

    Attributes:
        n_latents: Width of the dictionary.
        l0: Weight of the mean number of active latents in the loss; the rest of the loss is the FVU, so 1e-3 says that
            one more active latent is worth 0.1 % of the variance.
        target_l0: Mean number of active latents to reach: the loss gets `4 (L0 / target_l0 - 1)^2` instead.
        bandwidth: Width of the window around the threshold in which pre-activations say how the threshold should move;
            in units of normalised activations (unit total variance). Default: `1 / sqrt(d_in)`, the standard deviation
            of a pre-activation at the start.
        threshold: Threshold that every latent starts with, same units. Default: where `target_l0` latents (with `l0`:
            one in 50) exceed it at the start, random atoms having pre-activations of variance `1 / d_in`.
        threshold_rate: How much faster than other parameters the logarithm of the threshold moves.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            activation's width.
        dead_after: A latent is dead when it has been silent for this many tokens.

    Raises:
        ValueError: a number is out of its range, or not exactly one of `l0` and `target_l0` is given.
    Source:
        Rajamanoharan et al., "Jumping ahead", 2024. We depart from it by an input offset, the optional target, the
        auxiliary loss (Gao et al., 2024), and the defaults of bandwidth and threshold (docs/dictionaries.md says why).
    """

    _: KW_ONLY
    l0: Number | None = None
    target_l0: Number | None = None
    bandwidth: Number | None = None
    threshold: Number | None = None
    threshold_rate: Number = 10.0
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000

    architecture: ClassVar[Literal["jumprelu"]] = "jumprelu"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        check_positive(threshold_rate=self.threshold_rate)
        for name in ("bandwidth", "threshold"):
            if (value := getattr(self, name)) is not None:
                check_positive(**{name: value})
        if (self.l0 is None) == (self.target_l0 is None):
            raise ValueError(
                f"give exactly one of l0 (a weight) and target_l0 (a number of latents), "
                f"got l0={self.l0} and target_l0={self.target_l0}"
            )
        if self.l0 is not None and not 0 <= self.l0 < float("inf"):
            raise ValueError(f"l0 must be 0 or a positive number, got l0={self.l0}")
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.n_latents:
            raise ValueError(
                f"target_l0 must be above 0 and at most n_latents={self.n_latents}, got target_l0={self.target_l0}"
            )
        check_auxiliary(self.aux, self.k_aux)

    @property
    def run_name(self) -> str:
        sparsity = f"l0_{self.l0:g}" if self.target_l0 is None else f"target{self.target_l0:g}"
        return f"jumprelu-{self.n_latents}-{sparsity}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "JumpReLUDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0, one threshold for all.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return JumpReLUDictionary(self, unit_rows(self.n_latents, d_in, generator))


def _first_threshold(config: JumpReLU, d_in: int) -> float:
    """The configured threshold, or the quantile of a normal distribution of variance `1 / d_in` that it stands for."""
    if config.threshold is not None:
        return config.threshold
    active = 0.02 if config.target_l0 is None else config.target_l0 / config.n_latents
    # More than a third active would put the threshold near or below 0, where a logarithm cannot start.
    return NormalDist().inv_cdf(1 - min(active, 1 / 3)) / math.sqrt(d_in)


class JumpReLUDictionary(AbstractDictionary):
    """`pre = (x - b_dec) W_enc + b_enc`; `z = pre` where `pre > threshold`, else 0.

    The threshold is learned through its logarithm: it stays positive, a step of the optimiser moves it by a fraction of
    itself, and a change of units shifts it without touching what training does next.
    """

    def __init__(self, config: JumpReLU, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: JumpReLU = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        self.log_threshold = nn.Parameter(
            atoms.new_full((atoms.shape[0],), math.log(_first_threshold(config, atoms.shape[1])))
        )

    @property
    def threshold(self) -> Float[Tensor, " n_latents"]:
        """Threshold of every latent, in the units of its pre-activation."""
        return self.log_threshold.exp()

    @property
    def bandwidth(self) -> float:
        """Width of the window in which thresholds learn, in the units of normalised activations."""
        return 1 / math.sqrt(self.d_in) if self.config.bandwidth is None else self.config.bandwidth

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        return code_above(x - self.b_dec, self.W_enc, self.b_enc, self.threshold)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_enc.mul_(factor)
        self.log_threshold.add_(math.log(factor))


class _Jump(torch.autograd.Function):
    """`J(z) = z H(z - theta)`, with `dJ/dz = H(z - theta)` and `dJ/dtheta = -(theta / e) K((z - theta) / e)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: Number) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        (gradient,) = gradients
        near = (z - threshold).abs() < ctx.bandwidth / 2
        to_threshold = (gradient * near).sum(dim=0) * (-threshold / ctx.bandwidth)
        return gradient * (z > threshold), to_threshold, None


class _Step(torch.autograd.Function):
    """`H(z - theta)`, with `dH/dz = 0` and `dH/dtheta = -(1 / e) K((z - theta) / e)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: Number) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        (gradient,) = gradients
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return None, (gradient * near).sum(dim=0) / -ctx.bandwidth, None


def jump(
    z: Float[Tensor, "n n_latents"], threshold: Float[Tensor, " n_latents"], bandwidth: Number
) -> Float[Tensor, "n n_latents"]:
    """`z` where it exceeds its threshold, else 0, with a pseudo-derivative for the threshold.

    The rectangle kernel `K(u) = 1[|u| < 1/2]` makes the gradient of the threshold a kernel estimate, over the batch, of
    the derivative of the *expected* loss. It must see the pre-activations on both sides of the threshold.

    Args:
        z: Pre-activations (not the values after the jump), float32 or wider: bfloat16 cannot resolve the window.
        threshold: One per latent, positive, same units.
        bandwidth: Width of the window, same units.
    Source:
        Rajamanoharan et al., "Jumping ahead", 2024, equations 11 and 12.
    """
    return _Jump.apply(z, threshold, bandwidth)  # type: ignore[no-any-return,no-untyped-call]


def step(
    z: Float[Tensor, "n n_latents"], threshold: Float[Tensor, " n_latents"], bandwidth: Number
) -> Float[Tensor, "n n_latents"]:
    """1 where `z` exceeds its threshold, else 0; arguments, kernel and source as in `jump`.

    Summed over latents it is L0. Its threshold gradient over a batch is `-(1/e) P(|z - theta| < e/2)`, an estimate of
    minus the density of the pre-activation at the threshold.
    """
    return _Step.apply(z, threshold, bandwidth)  # type: ignore[no-any-return,no-untyped-call]
