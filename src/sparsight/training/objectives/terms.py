"""What the objectives of all architectures share: their record, the reconstruction term and the revival of the dead."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.training.parallel.processes import over_batch
from sparsight.training.sparse_step import sparse_top_k


@dataclass(frozen=True)
class Objective:
    """The loss of one batch, and what it was made of.

    Attributes:
        loss: To be minimised; the sum of `parts`.
        parts: Its terms, weighted as in the loss, detached.
        l0: Mean number of active latents in a token.
        fired: Latents active in at least one token.
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    l0: Float[Tensor, ""]
    fired: Bool[Tensor, " n_latents"]


def objective_of(terms: dict[str, Tensor], l0: Tensor, fired: Tensor) -> Objective:
    """The objective whose terms are these, already weighted."""
    loss = torch.stack(list(terms.values())).sum()
    return Objective(loss, {name: term.detach() for name, term in terms.items()}, l0, fired)


def squared_error(x: Float[Tensor, "b d"], x_hat: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Squared error summed over dimensions, averaged over tokens."""
    return (x - x_hat).square().sum(dim=1).mean()


def revival(
    dictionary: Any,
    x: Tensor,
    residual: Tensor,
    dead: Tensor,
    k_aux: int | None,
) -> Tensor:
    """Fraction of the residual's variance that dead latents leave unexplained.

    In each token the `k_aux` dead latents of largest pre-activation reconstruct the residual, without offset. Values
    are *not* rectified: a latent whose pre-activation is negative everywhere would never hear from the loss. Residual
    and offset are constants here: reviving the dead does not bend the living.

    Source:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024, appendix A.2 (they rectify).
    """
    latents = dead.nonzero()[:, 0]
    W_enc, b_enc = dictionary.W_enc[:, latents], dictionary.b_enc[latents]
    atoms = dictionary.atoms[latents]
    centred = x - dictionary.b_dec.detach()
    residual = residual.detach()
    k = min(k_aux or max(1, dictionary.d_in // 2), len(latents))
    explained: Tensor
    if k == len(latents):
        explained = torch.addmm(b_enc, centred, W_enc) @ atoms
    else:
        no_offset = torch.zeros_like(dictionary.b_dec)
        explained, _, _ = sparse_top_k(centred, W_enc, b_enc, atoms, no_offset, k=k, rectify=False)
    variance = over_batch((residual - over_batch(residual.mean(dim=0))).square().sum())
    # An exact reconstruction leaves nothing to explain: 0 / tiny = 0.
    return (residual - explained).square().sum() / variance.clamp_min(torch.finfo(x.dtype).tiny)
