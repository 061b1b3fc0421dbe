"""Slow twins of the ReLU objective: the formulae of its sources, one line each."""

import torch
from torch import Tensor


def unit_loss_and_gradients(
    parameters: dict[str, Tensor], x: Tensor, *, l1: float, p: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Unit-norm rows, penalty `l1 * mean sum f^p`; every gradient by hand."""
    atoms, W_enc, b_enc, b_dec = (parameters[name] for name in ("atoms", "W_enc", "b_enc", "b_dec"))
    n = len(x)
    pre = (x - b_dec) @ W_enc + b_enc
    f = torch.where(pre > 0, pre, 0.0)
    error = f @ atoms + b_dec - x
    penalty = sum(float(v) ** p for v in f.flatten() if v > 0) / n
    slope = torch.zeros_like(f)
    slope[f > 0] = p * f[f > 0] ** (p - 1) / n
    g = 2 * error / n
    to_pre = (g @ atoms.T + l1 * slope) * (pre > 0)
    gradients = {
        "atoms": f.T @ g,
        "W_enc": (x - b_dec).T @ to_pre,
        "b_enc": to_pre.sum(dim=0),
        "b_dec": g.sum(dim=0) - W_enc @ to_pre.sum(dim=0),
    }
    return error.square().sum() / n + l1 * penalty, gradients


def free_loss(
    W_dec: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, x: Tensor, *, l1: float, p: float = 1.0
) -> Tensor:
    """Rows of any norm: `mean |x - x_hat|^2 + l1 * mean sum_j (f_j |row_j|)^p`."""
    f = ((x - b_dec) @ W_enc + b_enc).relu()
    x_hat = f @ W_dec + b_dec
    weighted = f * W_dec.norm(dim=1)
    penalty = torch.stack([value**p for value in weighted[f > 0]]).sum()
    return (x - x_hat).square().sum(dim=1).mean() + l1 * penalty / len(x)
