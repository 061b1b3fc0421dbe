"""Slow twins of the training objectives: the formulae, dense, one term at a time."""

from typing import Any

import torch
from torch import Tensor


def topk_loss(parameters: dict[str, Tensor], x: Tensor, dead: Tensor, *, k: int, aux: float, k_aux: int) -> Tensor:
    """FVU + aux * (residual variance that the dead leave), by dense products and autograd."""
    atoms, W_enc, b_enc, b_dec = (parameters[name] for name in ("atoms", "W_enc", "b_enc", "b_dec"))
    pre = (x - b_dec) @ W_enc + b_enc
    chosen = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)
    x_hat = (pre * chosen).relu() @ atoms + b_dec
    loss = (x - x_hat).square().sum() / len(x)
    if dead.any():
        loss = loss + aux * revival(parameters, x, (x - x_hat).detach(), dead, k_aux)
    return loss


class Through(torch.autograd.Function):
    """A rectifier whose gradient is that of no rectifier."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def revival(parameters: dict[str, Tensor], x: Tensor, residual: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    pre = (x - parameters["b_dec"].detach()) @ parameters["W_enc"] + parameters["b_enc"]
    of_dead = pre.masked_fill(~dead, -torch.inf)
    chosen = of_dead.topk(min(k_aux, int(dead.sum())), dim=1).indices
    z = Through.apply(torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen)))
    explained = z @ parameters["atoms"]
    return (residual - explained).square().sum() / (residual - residual.mean(dim=0)).square().sum()


def jumprelu_loss_and_gradients(
    parameters: dict[str, Tensor],
    x: Tensor,
    *,
    bandwidth: float,
    l0: float | None,
    target_l0: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every gradient written out by hand, entry by entry for the thresholds."""
    atoms, W_enc, b_enc, b_dec = (parameters[name] for name in ("atoms", "W_enc", "b_enc", "b_dec"))
    theta = parameters["log_threshold"].exp()
    n = len(x)
    pre = (x - b_dec) @ W_enc + b_enc
    z = torch.where(pre > theta, pre, 0.0)
    error = z @ atoms + b_dec - x
    active = float((pre > theta).sum()) / n
    if target_l0 is None:
        assert l0 is not None
        penalty, per_latent = l0 * active, l0
    else:
        penalty, per_latent = 4 * (active / target_l0 - 1) ** 2, 8 * (active / target_l0 - 1) / target_l0
    g = 2 * error / n
    to_z = g @ atoms.T
    to_pre = to_z * (pre > theta)
    to_theta = torch.zeros_like(theta)
    for t in range(n):
        for i in range(len(theta)):
            if abs(float(pre[t, i] - theta[i])) < bandwidth / 2:
                to_theta[i] += -theta[i] / bandwidth * to_z[t, i] - per_latent / n / bandwidth
    gradients = {
        "atoms": z.T @ g,
        "W_enc": (x - b_dec).T @ to_pre,
        "b_enc": to_pre.sum(dim=0),
        "b_dec": g.sum(dim=0) - W_enc @ to_pre.sum(dim=0),
        "log_threshold": theta * to_theta,
    }
    return error.square().sum() / n + penalty, gradients
