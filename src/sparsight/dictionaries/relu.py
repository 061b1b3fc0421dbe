"""ReLU: positive pre-activations are the code; a penalty on their size makes it sparse."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.blocks import code_where
from sparsight.dictionaries.selection import block_rows
from sparsight.dictionaries.topk import check_auxiliary

# Where a controller of L0 starts: the coefficient in use at unit total variance, whatever the width of the site.
FIRST_L1 = 0.1
# Batches over which two powers of the penalty are compared when the power changes.
MATCHED_BATCHES = 10


@dataclass(frozen=True)
class ReLU(DictionaryConfig):
    """Configuration of a ReLU dictionary. Give exactly one of `l1` and `target_l0`.

    Attributes:
        n_latents: Width of the dictionary.
        l1: Weight of `mean over tokens of sum_j f_j |row_j|`, in units of normalised activations; the rest of the loss
            is the FVU.
        target_l0: Mean number of active latents that training should reach by adjusting the weight, from 0.1 on.
        norms: `"unit"`: rows of the decoder have norm 1, kept so by projected gradients. `"free"`: rows have norms of
            their own, trained; the penalty is weighted by them, so no norm makes it cheaper.
        p_end: Where given, the penalty becomes `sum_j (f_j |row_j|)^p` with p falling from 1 to this.
        anneal_start: Share of training after which p falls.
        anneal_end: Share of training at which it has reached `p_end`.
        n_powers: Equal falls of p between the two.
        aux: Weight of the auxiliary loss that revives dead latents; 0 switches it off.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            activation's width.
        dead_after: A latent is dead when it has been silent for this many tokens.

    Raises:
        ValueError: a number is out of its range, or not exactly one of `l1` and `target_l0` is given.
    Source:
        Bricken et al., "Towards Monosemanticity", 2023 (unit norms); Conerly et al., "Update on how we train SAEs",
        Transformer Circuits, April 2024 (free norms); Karvonen et al., "Measuring Progress in Dictionary Learning for
        Language Model Interpretability with Board Game Models", 2024 (annealing p). We depart from them by the
        auxiliary loss in place of resampling, and from the second by an input offset.
    """

    l1: Number | None = None
    _: KW_ONLY
    target_l0: Number | None = None
    norms: str = "unit"
    p_end: Number | None = None
    anneal_start: Number = 0.2
    anneal_end: Number = 0.9
    n_powers: int = 10
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000

    architecture: ClassVar[Literal["relu"]] = "relu"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after, n_powers=self.n_powers)
        check_l1(self.l1, self.target_l0, self.n_latents)
        if self.norms not in ("unit", "free"):
            raise ValueError(f"norms must be 'unit' or 'free', got {self.norms!r}")
        if self.p_end is not None and not 0 < self.p_end < 1:
            raise ValueError(
                f"p_end must lie between 0 and 1 (at 0 the penalty has no gradient), got p_end={self.p_end}; "
                "leave it out for an L1 penalty"
            )
        if not 0 <= self.anneal_start < self.anneal_end <= 1:
            raise ValueError(
                "anneal_start and anneal_end are shares of training, the first below the second, "
                f"got anneal_start={self.anneal_start} and anneal_end={self.anneal_end}"
            )
        check_auxiliary(self.aux, self.k_aux)

    @property
    def coefficient(self) -> Number:
        """Weight of the penalty before any schedule or controller."""
        return FIRST_L1 if self.l1 is None else self.l1

    @property
    def run_name(self) -> str:
        free = "-free" if self.norms == "free" else ""
        power = "" if self.p_end is None else f"-p{self.p_end:g}"
        return f"relu-{self.n_latents}-{sparsity_name(self.l1, self.target_l0)}{free}{power}"

    def power(self, stage: int) -> float:
        """Exponent of the penalty after `stage` of its `n_powers` falls."""
        return 1.0 if self.p_end is None else 1 - (1 - self.p_end) * stage / self.n_powers

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "ReLUDictionary":
        """Random unit atoms, the encoder their transpose, offsets 0, norms 1.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return ReLUDictionary(self, unit_rows(self.n_latents, d_in, generator))


class ReLUDictionary(AbstractDictionary):
    """`z = norm * relu((x - b_dec) W_enc + b_enc)`, where `norm` is 1 with unit norms.

    A decoder with rows of any norm, `sum_j f_j row_j`, is written here as unit atoms with `z_j = f_j |row_j|`: values
    carry the norm, and the weighted penalty is the plain sum of the values.
    """

    def __init__(self, config: ReLU, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: ReLU = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        if config.norms == "free":
            self.log_norm = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        if config.p_end is not None:
            # Where annealing stands. Not needed to code, but a checkpoint must carry it.
            self.anneal_stage = nn.Parameter(atoms.new_zeros(()), requires_grad=False)
            self.anneal_factor = nn.Parameter(atoms.new_ones(()), requires_grad=False)
            self.anneal_recent = nn.Parameter(atoms.new_zeros(MATCHED_BATCHES, 2), requires_grad=False)

    @property
    def scaled_encoder(self) -> tuple[Float[Tensor, "d_in n_latents"], Float[Tensor, " n_latents"]]:
        """Weights and offsets whose rectified product is the value itself, norms included."""
        if self.config.norms == "unit":
            return self.W_enc, self.b_enc
        norm = self.log_norm.exp()
        return self.W_enc * norm, self.b_enc * norm

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        W_enc, b_enc = self.scaled_encoder
        blocks = []
        for rows in torch.split(x, block_rows(self.n_latents, x.device)):
            values = torch.addmm(b_enc, rows - self.b_dec, W_enc).relu()
            blocks.append(code_where(values, values > 0))
        return SparseCode.cat(blocks)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_enc.mul_(factor)

    @torch.no_grad()
    def schedule_(self, progress: float) -> None:
        """Lower p when its time has come, at most once a step, and match the weight so that the penalty goes on.

        At a fall from p to q the weight is multiplied by `mean S_p / mean S_q`, means over the last batches, where
        `S_p = mean over tokens of sum_j z_j^p`.
        """
        config = self.config
        if config.p_end is None:
            return
        share = (progress - config.anneal_start) / (config.anneal_end - config.anneal_start)
        due = int(config.n_powers * min(1.0, max(0.0, share)))
        if int(self.anneal_stage) >= due:
            return
        now, following = self.anneal_recent.sum(dim=0).tolist()
        if now > 0 and following > 0:
            self.anneal_factor.mul_(now / following)
        self.anneal_stage.add_(1)
        self.anneal_recent.zero_()

    @torch.no_grad()
    def remember_penalties_(self, now: Float[Tensor, ""], following: Float[Tensor, ""]) -> None:
        """Keep the penalty of a batch under the present and under the next power, for the next fall."""
        self.anneal_recent.copy_(torch.cat([self.anneal_recent[1:], torch.stack([now, following]).unsqueeze(0)]))


def check_l1(l1: Number | None, target_l0: Number | None, n_latents: int) -> None:
    """Refuse anything but exactly one of a weight and a reachable target."""
    if (l1 is None) == (target_l0 is None):
        raise ValueError(
            "give exactly one of l1 (a weight) and target_l0 (a number of latents), "
            f"got l1={l1} and target_l0={target_l0}"
        )
    if l1 is not None and not 0 <= l1 < float("inf"):
        raise ValueError(f"l1 must be 0 or a positive number, got l1={l1}")
    if target_l0 is not None and not 0 < target_l0 <= n_latents:
        raise ValueError(f"target_l0 must be above 0 and at most n_latents={n_latents}, got target_l0={target_l0}")


def sparsity_name(l1: Number | None, target_l0: Number | None) -> str:
    """The part of a run's name that says how sparse."""
    return f"l1_{l1:g}" if target_l0 is None else f"target{target_l0:g}"
