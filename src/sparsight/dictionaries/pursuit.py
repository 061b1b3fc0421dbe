"""Pursuit: atoms and nothing else; a code is whatever a pursuit over the atoms finds."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit, refit
from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Number, check_positive, unit_rows

CODERS = ("gradient_pursuit", "matching_pursuit", "orthogonal_matching_pursuit")
UPDATES = ("mod", "ksvd", "online", "gradient")


@dataclass(frozen=True)
class Pursuit(DictionaryConfig):
    """Configuration of a dictionary without an encoder.

    Attributes:
        n_latents: Width of the dictionary.
        k: Latents active in each token, at most (fewer where the residual vanishes or no atom points along it).
        coder: Which pursuit writes the codes.
        polish: Solve non-negative least squares on the support that the pursuit chose. Orthogonal matching pursuit
            does so in any case. Without it codes have no gradient.
        update: How training moves the atoms, given codes: `"mod"` solves the running normal equations, `"online"`
            sweeps once over them, `"ksvd"` fits one atom with its values at a time, `"gradient"` takes a step of Adam.
            `docs/pursuit-dictionaries.md` compares them.
        forgetting: How fast sums over past batches fade: when `t` batches have come, the `s`-th counts
            `(s / t)^forgetting` times the last. 0 forgets nothing. Not used by `"gradient"`.
        dead_after: A latent silent for this many tokens is given the direction of a badly reconstructed one.
        renewal: Share of the atoms, those that reconstruct least, that start anew from badly reconstructed tokens,
            twenty times in the first 85 % of training, falling linearly to none; 0 renews silent ones alone.

    Raises:
        ValueError: a number is out of its range, or a name is unknown.
    Source:
        Engan, Aase & Husoy, "Method of optimal directions", 1999; Aharon, Elad & Bruckstein, "K-SVD", 2006; Mairal et
        al., "Online learning for matrix factorization and sparse coding", 2010.
    """

    k: int
    _: KW_ONLY
    coder: str = "gradient_pursuit"
    polish: bool = True
    update: str = "online"
    forgetting: Number = 6.0
    dead_after: int = 100_000
    renewal: Number = 0.1

    architecture: ClassVar[Literal["pursuit"]] = "pursuit"

    def __post_init__(self) -> None:
        check_positive(n_latents=self.n_latents, dead_after=self.dead_after)
        if not 1 <= self.k <= self.n_latents:
            raise ValueError(
                f"k must be between 1 and n_latents={self.n_latents}, got k={self.k}; lower k or widen the dictionary"
            )
        for name, known in (("coder", CODERS), ("update", UPDATES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.renewal <= 1:
            raise ValueError(f"renewal is a share of the atoms, between 0 and 1, got renewal={self.renewal}")
        if not 0 <= self.forgetting < float("inf"):
            raise ValueError(f"forgetting must be 0 or a positive number, got forgetting={self.forgetting}")

    @property
    def run_name(self) -> str:
        return f"pursuit-{self.n_latents}-k{self.k}"

    def build(self, d_in: int, generator: torch.Generator | None = None) -> "PursuitDictionary":
        """Random unit atoms, offset 0.

        Raises:
            ValueError: `d_in` is not positive.
        """
        check_positive(d_in=d_in)
        return PursuitDictionary(self, unit_rows(self.n_latents, d_in, generator))


class PursuitDictionary(AbstractDictionary):
    """`z = coder(x - b_dec, atoms, k)`, non-negative."""

    def __init__(self, config: Pursuit, atoms: Float[Tensor, "n_latents d_in"]) -> None:
        super().__init__()
        self.config: Pursuit = config
        self.provenance = {}
        self.atoms = nn.Parameter(atoms)
        self.b_dec = nn.Parameter(atoms.new_zeros(atoms.shape[1]))

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """The code of the pursuit. Where autograd asks, its values are differentiated at a fixed support.

        That is the derivative of a code by least squares: which latents are active changes at a null set of
        activations only. A backward pass through an unpolished code is refused with a `ValueError`.
        """
        centred = x - self.b_dec
        code = self._pursue(centred)
        if not (torch.is_grad_enabled() and (centred.requires_grad or self.atoms.requires_grad)):
            return code
        if self.fits_least_squares:
            values = _least_squares_values(centred, self.atoms, code)
        else:
            values = _Undifferentiable.apply(code.values, centred, self.atoms)  # type: ignore[no-untyped-call]
        return SparseCode(code.indices, values, self.n_latents)

    @property
    def fits_least_squares(self) -> bool:
        """Whether values solve non-negative least squares on their support."""
        return self.config.polish or self.config.coder == "orthogonal_matching_pursuit"

    @torch.no_grad()
    def rescale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)

    def _pursue(self, centred: Float[Tensor, "n d_in"]) -> SparseCode:
        k, polish = self.config.k, self.config.polish
        if self.config.coder == "gradient_pursuit":
            return gradient_pursuit(centred, self.atoms, k, polish=polish)
        if self.config.coder == "orthogonal_matching_pursuit":
            return orthogonal_matching_pursuit(centred, self.atoms, k)
        code = matching_pursuit(centred, self.atoms, k)
        return refit(centred, self.atoms, code.support()) if polish else code


def _least_squares_values(
    x: Float[Tensor, "n d"], atoms: Float[Tensor, "n_latents d"], code: SparseCode
) -> Float[Tensor, "n k"]:
    """The values of `code` once more, as the solution of linear equations that autograd can follow."""
    used = code.values > 0
    chosen = atoms[code.indices] * used.unsqueeze(-1)
    # Unused slots: a unit diagonal and a zero right-hand side, hence the value 0.
    gram = chosen @ chosen.transpose(1, 2) + torch.diag_embed((~used).to(x.dtype))
    solved: Tensor = torch.linalg.solve(gram, (chosen @ x.unsqueeze(-1)).squeeze(-1))
    return solved.relu()


class _Undifferentiable(torch.autograd.Function):
    """The identity, with a backward pass that refuses."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *depends_on: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ValueError(
            "codes of an unpolished pursuit have no gradient; use polish=True or coder='orthogonal_matching_pursuit', "
            "or encode under torch.no_grad()"
        )
