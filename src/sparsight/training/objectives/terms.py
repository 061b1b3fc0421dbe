"""What the objectives of all architectures share: their record, the reconstruction term and the revival of the dead."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.training.parallel.processes import over_batch
from sparsight.training.sparse_map import sparse_map


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
    """Fraction of the residual's variance that dead latents leave unexplained: `unexplained_by_dead` of one width."""
    return unexplained_by_dead(
        x - dictionary.b_dec.detach(),
        dictionary.W_enc,
        dictionary.b_enc,
        dictionary.atoms,
        residual,
        dead,
        k_aux,
    )


def revived_at_once(k_aux: int | None, n_dead: int, d_out: int) -> int:
    """Dead latents that share the residual of one token.

    Were they all, each would hear of every token: what the gradient then sees is the linear part of the residual, which
    is small (none, where a skip takes it away).
    """
    return min(k_aux or max(1, min(d_out // 2, -(-n_dead // 4))), n_dead)


def unexplained_by_dead(
    centred: Float[Tensor, "b d_in"],
    W_enc: Float[Tensor, "d_in m"],
    b_enc: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d_out"],
    residual: Float[Tensor, "b d_out"],
    dead: Bool[Tensor, " m"],
    k_aux: int | None,
) -> Float[Tensor, ""]:
    """Fraction of the residual's variance that the dead latents leave unexplained.

    In each token the `k_aux` dead latents of largest pre-activation reconstruct the residual, rectified and without
    offset. The gradient passes through the rectifier as if it were not there: a latent whose pre-activation is negative
    everywhere would never hear from the loss otherwise. Residual and offset are constants here: reviving the dead does
    not bend the living.

    Args:
        centred: What the encoder reads, less its offset; a constant.
        W_enc, b_enc, atoms: Of all latents.
        residual: What the living leave of what is reconstructed.
        dead: Latents to revive.
        k_aux: Dead latents in a token. Default: a quarter of them, at most half of `d_out`.
    Source:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024, appendix A.2. The value is theirs; we depart
        from it by the gradient.
    """
    latents = dead.nonzero()[:, 0]
    W_enc, b_enc, atoms = W_enc[:, latents], b_enc[latents], atoms[latents]
    residual = residual.detach()
    k = revived_at_once(k_aux, len(latents), residual.shape[1])
    if k == len(latents):
        pre = torch.addmm(b_enc, centred, W_enc)
        explained = (pre + (pre.relu() - pre).detach()) @ atoms
    else:
        explained, _, _ = sparse_map(centred, W_enc, b_enc, atoms, k=k, exact=False)
    variance = over_batch((residual - over_batch(residual.mean(dim=0))).square().sum())
    # An exact reconstruction leaves nothing to explain: 0 / tiny = 0.
    return (residual - explained).square().sum() / variance.clamp_min(torch.finfo(residual.dtype).tiny)
