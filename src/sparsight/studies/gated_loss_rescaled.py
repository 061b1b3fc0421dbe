"""Repair of a trained ReLU dictionary: a scale and a shift for each latent, the best there are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import ReLUDictionary

RIDGE = 1e-6  # of each latent's own weight: decides where data leave a scale open, in favour of no change


@dataclass(frozen=True)
class Rescaling:
    """`z_j -> relu(scale_j z_j + shift_j)` where `z_j > 0`, and 0 elsewhere.

    Attributes:
        scale: Of each latent, dimensionless.
        shift: Of each latent, in the units of the values.
    """

    scale: Float[Tensor, " n_latents"]
    shift: Float[Tensor, " n_latents"]

    def of(self, code: Float[Tensor, "n n_latents"]) -> Float[Tensor, "n n_latents"]:
        """The code with its values repaired; no latent is added."""
        repaired: Tensor = (code * self.scale + self.shift).relu() * (code > 0)
        return repaired


@torch.no_grad()
def fit_rescaling(dictionary: ReLUDictionary, x: Float[Tensor, "n d_in"], *, shift: bool) -> Rescaling:
    """Least squares over all rows: atoms, offset and which latents are active stay as they are.

    With `phi = [z, 1[z > 0]]` and the atoms `d_j` it solves `min sum |x - b - sum_j (a_j z_j + s_j 1[z_j > 0]) d_j|^2`,
    whose normal matrix is the Gram matrix of `phi` times, entry by entry, that of the atoms.

    Args:
        dictionary: Trained.
        x: Activations to fit on.
        shift: Fit shifts too; else scales alone.
    """
    code = dictionary.encode_dense(x).double()
    atoms, y = dictionary.atoms.double(), x.double() - dictionary.b_dec.double()
    columns = [code, (code > 0).double()] if shift else [code]
    phi = torch.cat(columns, dim=1)
    copies = len(columns)
    normal = (phi.T @ phi) * (atoms @ atoms.T).repeat(copies, copies)
    wanted = (phi * (y @ atoms.T).repeat(1, copies)).sum(dim=0)
    start = torch.zeros(len(wanted), dtype=torch.float64)
    start[: len(atoms)] = 1
    weight = RIDGE * normal.diagonal() + (normal.diagonal() == 0)
    found = torch.linalg.solve(normal + weight.diag(), wanted + weight * start)
    scale = found[: len(atoms)]
    offset = found[len(atoms) :] if shift else torch.zeros_like(scale)
    return Rescaling(scale.to(x), offset.to(x))
