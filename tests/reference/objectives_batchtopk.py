"""Slow twins of the BatchTopK and Matryoshka objectives: the formulae, dense, by autograd."""

import torch
from reference.objectives import revival
from torch import Tensor


def batch_code(parameters: dict[str, Tensor], x: Tensor, n_kept: int) -> Tensor:
    """Dense pre-activations with all but the `n_kept` largest of the batch, and all negative ones, set to 0."""
    pre = (x - parameters["b_dec"]) @ parameters["W_enc"] + parameters["b_enc"]
    order = pre.detach().flatten().sort(descending=True, stable=True).indices
    kept = torch.zeros(pre.numel(), dtype=pre.dtype).index_fill(0, order[:n_kept], 1.0).view_as(pre)
    return (pre * kept).relu()


def batchtopk_loss(
    parameters: dict[str, Tensor], x: Tensor, dead: Tensor, *, n_kept: int, aux: float, k_aux: int
) -> Tensor:
    x_hat = batch_code(parameters, x, n_kept) @ parameters["atoms"] + parameters["b_dec"]
    loss = (x - x_hat).square().sum() / len(x)
    return loss + aux * revival(parameters, x, (x - x_hat).detach(), dead, k_aux) if dead.any() else loss


def matryoshka_loss(
    parameters: dict[str, Tensor],
    x: Tensor,
    dead: Tensor,
    *,
    n_kept: int,
    prefixes: dict[int, float],
    aux: float,
    k_aux: int,
) -> Tensor:
    """`prefixes` gives each width its weight, the whole width too."""
    z = batch_code(parameters, x, n_kept)
    loss = torch.zeros((), dtype=x.dtype)
    x_hat = x
    for width, weight in prefixes.items():
        x_hat = z[:, :width] @ parameters["atoms"][:width] + parameters["b_dec"]
        loss = loss + weight * (x - x_hat).square().sum() / len(x)
    return loss + aux * revival(parameters, x, (x - x_hat).detach(), dead, k_aux) if dead.any() else loss
