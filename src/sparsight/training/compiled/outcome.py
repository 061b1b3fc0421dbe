"""What a batch has come to, before anything moves."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64
from torch import Tensor

from sparsight.training.compiled.terms import Terms


@dataclass(frozen=True)
class More:
    """Gradients of some latents that do not come from the batch's slots.

    Attributes:
        latents: Which.
        rows: Row of each latent of the dictionary in the next two, -1 for others.
        to_atoms, to_encoder, to_offset: One row for each of `latents`.
    """

    latents: Int64[Tensor, " r"]
    rows: Int32[Tensor, " m"]
    to_atoms: Float[Tensor, "r d"]
    to_encoder: Float[Tensor, "r d"]
    to_offset: Float[Tensor, " r"]


@dataclass(frozen=True)
class Slopes:
    """Gradients of both matrices, to be added up, and what has to be known of them beforehand.

    Attributes:
        of_atoms, of_encoder: What they are added up from.
        along: The component of each atom's gradient along the atom.
        squares: Of what remains of each latent's gradients.
        to_offset: By every latent's product with the encoder, summed over the batch.
    """

    of_atoms: Terms
    of_encoder: Terms
    along: Float[Tensor, " m"]
    squares: Float64[Tensor, " m"]
    to_offset: Float[Tensor, " m"]


@dataclass(frozen=True)
class Outcome:
    """What a batch has come to.

    Attributes:
        names: Of the objective's terms.
        numbers: These terms, and the mean number of active latents in a token.
        fired: Latents active in at least one token.
        slopes: Of the matrices.
        vectors: The other parameters with their gradients.
        norm: Of all gradients.
    """

    names: tuple[str, ...]
    numbers: Float[Tensor, " t1"]
    fired: Bool[Tensor, " m"]
    slopes: Slopes
    vectors: list[tuple[torch.nn.Parameter, Tensor]]
    norm: Float[Tensor, ""]
