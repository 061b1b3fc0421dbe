"""Gated: one half of the encoder says which latents are active, the other how strongly."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Number, check_positive, unit_rows
from sparsight.dictionaries.blocks import code_where
from sparsight.dictionaries.relu import FIRST_L1, check_l1, sparsity_name
from sparsight.dictionaries.selection import block_rows
from sparsight.dictionaries.topk import check_auxiliary


@dataclass(frozen=True)
class Gated(DictionaryConfig):
    """Configuration of a Gated dictionary. Give exactly one of `l1` and `target_l0`.

    With `q = relu(pre_gate)` the loss is the FVU, plus `l1 * mean sum_j q_j`, plus `gate_aux` times the FVU of a
    reconstruction from `q` through a decoder held constant. The defaults are the paper's; other values of the fields
    from `gate_aux` to `heaviside` are for experiments on the loss. All are dimensionless.

    Attributes:
        n_latents: Width of the dictionary.
        l1: Weight of the penalty on `q`, in units of normalised activations.
        target_l0: Mean number of active latents that training should reach by adjusting the weight, from 0.1 on.
        gate_aux: Weight of the reconstruction from `q`. At 0 gates hear from the penalty alone, and close.
        freeze_aux_decoder: Hold `atoms` and `b_dec` constant where they decode `q`.
        detach_aux_input: Hold also the `b_dec` that is subtracted from the input constant in that term.
        untied: Weights of their own for the magnitudes, in place of `W_enc exp(r_mag)`.
        fixed_r_mag: No `r_mag`: magnitudes have the gate's weights.
        shared_bias: No `b_mag`: magnitudes have the gate's offset. With `fixed_r_mag` the code is that of a ReLU
            dictionary.
        heaviside: Multiply magnitudes by the step function of the gate. Without it the gate shapes the weights, by its
            two terms of the loss, and never the code.
        aux: Weight of the auxiliary loss that revives dead latents (through their gates); 0 switches it off, as in the
            paper.
        k_aux: Dead latents that share the residual of one token. Default: a quarter of them, at most half of the
            activation's width.
        dead_after: A latent is dead when it has been silent for this many tokens.

    Raises:
        ValueError: a number is out of its range, fields contradict each other, or not exactly one of `l1` and
            `target_l0` is given.
    Source:
        Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders", arXiv 2404.16014, 2024,
        equation 8. We depart from it by the auxiliary loss for dead latents in place of resampling.
    """

    l1: Number | None = None
    _: KW_ONLY
    target_l0: Number | None = None
    gate_aux: Number = 1.0
    freeze_aux_decoder: bool = True
    detach_aux_input: bool = False
    untied: bool = False
    fixed_r_mag: bool = False
    shared_bias: bool = False
    heaviside: bool = True
    aux: Number = 1 / 32
    k_aux: int | None = None
    dead_after: int = 100_000

    architecture: ClassVar[Literal["gated"]] = "gated"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        check_l1(self.l1, self.target_l0, self.n_latents)
        if not 0 <= self.gate_aux < float("inf"):
            raise ValueError(f"gate_aux must be 0 (off) or a positive number, got gate_aux={self.gate_aux}")
        if self.untied and self.fixed_r_mag:
            raise ValueError("untied magnitudes have no r_mag to fix; give one of untied and fixed_r_mag")
        check_auxiliary(self.aux, self.k_aux)

    @property
    def coefficient(self) -> Number:
        """Weight of the penalty before any schedule or controller."""
        return FIRST_L1 if self.l1 is None else self.l1

    @property
    def run_name(self) -> str:
        changes = {
            f"aux{self.gate_aux:g}": self.gate_aux != 1,
            "unfrozen": not self.freeze_aux_decoder,
            "detached": self.detach_aux_input,
            "untied": self.untied,
            "r0": self.fixed_r_mag,
            "onebias": self.shared_bias,
            "nostep": not self.heaviside,
        }
        suffix = "".join(f"-{name}" for name, changed in changes.items() if changed)
        return f"gated-{self.n_latents}-{sparsity_name(self.l1, self.target_l0)}{suffix}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "GatedDictionary":
        """Random unit atoms, the encoder their transpose, `r_mag` and all offsets 0.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return GatedDictionary(self, unit_rows(self.n_latents, d_in, generator))


class GatedDictionary(AbstractDictionary):
    """`u = (x - b_dec) W_enc`; `z = H(u + b_gate) relu(exp(r_mag) u + b_mag)`."""

    def __init__(self, config: Gated, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: Gated = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.W_enc = nn.Parameter(atoms.T.clone(memory_format=torch.contiguous_format))
        self.b_gate = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        if config.untied:
            self.W_mag = nn.Parameter(self.W_enc.detach().clone())
        elif not config.fixed_r_mag:
            self.r_mag = nn.Parameter(atoms.new_zeros(atoms.shape[0]))
        if not config.shared_bias:
            self.b_mag = nn.Parameter(atoms.new_zeros(atoms.shape[0]))

    @property
    def magnitude_scale(self) -> Float[Tensor, " n_latents"]:
        """`exp(r_mag)`: by what tied magnitude weights are the gate's."""
        if self.config.untied or self.config.fixed_r_mag:
            return torch.ones_like(self.b_gate)
        return self.r_mag.exp()

    @property
    def magnitude_bias(self) -> Float[Tensor, " n_latents"]:
        """Offset of the magnitudes, in the units of the values."""
        return self.b_gate if self.config.shared_bias else self.b_mag

    def paths(
        self, x: Float[Tensor, "n d_in"]
    ) -> tuple[Float[Tensor, "n n_latents"], Float[Tensor, "n n_latents"], Bool[Tensor, "n n_latents"]]:
        """Pre-activations of the gate, rectified magnitudes, and which latents the gate lets through."""
        centred = x - self.b_dec
        u = centred @ self.W_enc
        gate = u + self.b_gate
        pre = centred @ self.W_mag if self.config.untied else u * self.magnitude_scale
        is_open = gate > 0 if self.config.heaviside else torch.ones_like(gate, dtype=torch.bool)
        return gate, (pre + self.magnitude_bias).relu(), is_open

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        blocks = []
        for rows in torch.split(x, block_rows(self.n_latents, x.device)):
            _, values, is_open = self.paths(rows)
            blocks.append(code_where(values, is_open & (values > 0)))
        return SparseCode.cat(blocks)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.b_gate.mul_(factor)
        if not self.config.shared_bias:
            self.b_mag.mul_(factor)
