"""What every coder asks of its arguments, checked once and in one wording."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode

# Atoms read from half-precision files are this far from unit norm at most.
UNIT_NORM_TOLERANCE = 2e-3
# What bounds may take the norm of any atom for.
LONGEST_ATOM = 1.003


def check_arrays(x: Tensor, atoms: Tensor) -> None:
    """Refuse activations and atoms that no coder can use.

    Args:
        x: Activations, `[n, d]`, finite.
        atoms: Unit rows, `[n_latents, d]`, of the dtype and device of `x`.
    Raises:
        ValueError: shapes, dtypes or devices disagree; a row of `x` is not finite; an atom is not of unit norm.
    """
    if x.dim() != 2 or atoms.dim() != 2 or x.shape[1] != atoms.shape[1]:
        raise ValueError(
            f"x must be [n, d] and atoms [n_latents, d] with one d, got {list(x.shape)} and {list(atoms.shape)}"
        )
    if x.dtype not in (torch.float32, torch.float64) or x.dtype != atoms.dtype:
        raise ValueError(
            f"x and atoms must both be float32 or both float64, got {x.dtype} and {atoms.dtype}; cast one with .to()"
        )
    if x.device != atoms.device:
        raise ValueError(f"x and atoms must be on one device, got {x.device} and {atoms.device}")
    if atoms.shape[0] < 1 or atoms.shape[1] < 1:
        raise ValueError(f"atoms must hold at least one atom of one dimension, got {list(atoms.shape)}")
    _check_finite(x)
    _check_unit_norm(atoms)


def check_code(x: Tensor, code: SparseCode, atoms: Tensor) -> None:
    """Refuse a code that is not of these activations over these atoms, and whatever `check_arrays` refuses."""
    check_arrays(x, atoms)
    if len(code) != x.shape[0] or code.n_latents != atoms.shape[0]:
        raise ValueError(
            f"the code must be of these {x.shape[0]} activations over these {atoms.shape[0]} atoms, "
            f"got {len(code)} rows over n_latents={code.n_latents}"
        )


def check_k(k: int, n_latents: int) -> None:
    """Refuse a sparsity outside `[0, n_latents]`; 0 asks for the empty code."""
    if not 0 <= k <= n_latents:
        raise ValueError(f"k must be between 0 and n_latents={n_latents}, got k={k}; lower k or use a wider dictionary")


def check_tolerance(tol: float) -> None:
    """Refuse a relative tolerance outside `[0, 1)`."""
    if not 0 <= tol < 1:
        raise ValueError(f"tol must be in [0, 1): a fraction of the norm of each activation, got tol={tol}")


def _check_finite(x: Tensor) -> None:
    finite = x.isfinite()
    if not bool(finite.all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise ValueError(
            f"activations must be finite, got {x[row, column].item()} in row {row}, column {column}; "
            "drop the row or repair what wrote it"
        )


def _check_unit_norm(atoms: Tensor) -> None:
    norms = torch.linalg.vector_norm(atoms.detach(), dim=1)
    worst = int((norms - 1).abs().nan_to_num(nan=math.inf).argmax())
    # Written so that a NaN norm is refused too.
    if not abs(float(norms[worst]) - 1) <= UNIT_NORM_TOLERANCE:
        raise ValueError(
            f"atoms must have unit norm, got norm {float(norms[worst]):.4g} for atom {worst}; "
            "divide each atom by its norm and multiply its latent's values by it"
        )


def balanced(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """Rows divided by a power of two near their largest entry, and those powers; zero rows by 1.

    Squares of rows near 1e-30 or 1e30 leave the range of float32; a power of two costs no accuracy.
    """
    if x.shape[0] == 0:
        return x, x.new_ones(0, 1)
    limit = 120  # 2**-limit and 2**limit are both normal numbers of float32
    exponent = torch.frexp(x.abs().amax(dim=1, keepdim=True)).exponent.clamp(-limit, limit)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=x.dtype), exponent)
    return x / scale, scale


def rounding_floor(dtype: torch.dtype) -> float:
    """Correlation with the residual, relative to the norm of the activation, below which only rounding is left."""
    return 16 * torch.finfo(dtype).eps
