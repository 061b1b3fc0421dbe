"""MatchingPursuit: matching pursuit over rows of any norm, with two ways to stop early; published weights only."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, check_positive, unit_rows
from sparsight.dictionaries.blocks import code_where
from sparsight.dictionaries.selection import block_rows


@dataclass(frozen=True)
class MatchingPursuit(DictionaryConfig):
    """Configuration of a matching pursuit as others publish it. It is not trained: `Pursuit` is.

    Attributes:
        n_latents: Width of the dictionary.
        k: Steps, at most. A row may be taken again, so there can be more than latents.
        stop_on_repeat: A token is finished by a step that activates no new latent.

    Raises:
        ValueError: a number is out of its range.
    """

    k: int
    _: KW_ONLY
    stop_on_repeat: bool = True

    architecture: ClassVar[Literal["matching_pursuit"]] = "matching_pursuit"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, k=self.k)

    @property
    def trainable(self) -> bool:
        return False

    @property
    def run_name(self) -> str:
        return f"matching_pursuit-{self.n_latents}-k{self.k}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "MatchingPursuitDictionary":
        """Random unit atoms, norms 1, offset 0, no limit on the residual.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return MatchingPursuitDictionary(self, unit_rows(self.n_latents, d_in, generator))


class MatchingPursuitDictionary(AbstractDictionary):
    """`r = x - b_dec`; then, k times: with `j` of the largest `c = <r, w_j>`, rectified, `r -= c w_j`.

    `w_j` is the atom times its norm. With rows of norm 1 that is matching pursuit. With others a step takes away too
    little or too much, and which row comes next depends on the norms, so they belong to the code. A value is the sum of
    a latent's `c`, times its norm.

    Attributes:
        norm: `[n_latents]`, not negative.
        residual_limit: A token is finished once the norm of its residual is below this, in units of the activations.
    """

    def __init__(self, config: MatchingPursuit, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: MatchingPursuit = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))
        self.norm = nn.Parameter(atoms.new_ones(atoms.shape[0]), requires_grad=False)
        self.residual_limit = nn.Parameter(atoms.new_zeros(()), requires_grad=False)

    @property
    def rows(self) -> Float[Tensor, "n_latents d_in"]:
        """Atoms times their norms."""
        return self.atoms * self.norm[:, None]

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        rows = self.rows
        blocks = []
        for block in torch.split(x - self.b_dec, block_rows(self.n_latents, x.device)):
            values = self._pursue(block, rows) * self.norm
            blocks.append(code_where(values, values > 0))
        return SparseCode.cat(blocks)

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)
        self.residual_limit.mul_(factor)

    def _pursue(self, residual: Float[Tensor, "b d"], rows: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
        """How much of each row is taken."""
        taken = residual.new_zeros(len(residual), len(rows))
        going = torch.ones(len(residual), 1, dtype=torch.bool, device=residual.device)
        for _ in range(self.config.k):
            best = (residual @ rows.T).max(dim=1, keepdim=True)
            amount = best.values.relu() * going
            is_new = (taken.gather(1, best.indices) == 0) & (amount > 0)
            taken = taken.scatter_add(1, best.indices, amount)
            residual = residual - amount * rows[best.indices[:, 0]]
            if self.config.stop_on_repeat:
                going = going & is_new
            going = going & (residual.norm(dim=1, keepdim=True) >= self.residual_limit)
            if not bool(going.any()):
                break
        return taken
