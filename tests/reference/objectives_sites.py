"""Slow twins of the objectives of dictionaries that read several sites: dense, one term at a time."""

import torch
from reference.objectives import Through
from torch import Tensor


def transcoder_loss(
    p: dict[str, Tensor], x: Tensor, y: Tensor, dead: Tensor, *, k: int, aux: float, k_aux: int
) -> Tensor:
    """FVU of y + aux * (share of the residual's variance that the dead leave)."""
    pre = (x - p["b_in"]) @ p["W_enc"] + p["b_enc"]
    chosen = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)
    y_hat = (pre * chosen).relu() @ p["atoms"] + p["b_dec"]
    if "W_skip" in p:
        y_hat = y_hat + (x - p["b_in"]) @ p["W_skip"]
    loss = (y - y_hat).square().sum() / len(y)
    if dead.any():
        of_dead = (x - p["b_in"].detach()) @ p["W_enc"] + p["b_enc"]
        loss = loss + aux * unexplained(of_dead, p["atoms"], (y - y_hat).detach(), dead, k_aux)
    return loss


def crosscoder_loss(
    p: dict[str, Tensor],
    sites: list[Tensor],
    dead: Tensor,
    *,
    k: int | None,
    l1: float | None,
    aux: float,
    k_aux: int,
) -> Tensor:
    """Site by site: a sum of encoders, a decoder each, and the norms of each decoder."""
    widths = [x.shape[1] for x in sites]
    blocks = {name: torch.split(p[name], widths, dim=dim) for name, dim in (("W_enc", 0), ("atoms", 1), ("b_dec", 0))}
    pre = p["b_enc"] + sum((x - b) @ W for x, b, W in zip(sites, blocks["b_dec"], blocks["W_enc"], strict=True))
    if k is None:
        z = pre.relu()
    else:
        z = (pre * torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)).relu()
    residuals = [x - z @ a - b for x, a, b in zip(sites, blocks["atoms"], blocks["b_dec"], strict=True)]
    loss = sum(r.square().sum() / len(r) for r in residuals) / len(sites)
    if l1 is not None:
        loss = loss + l1 * sum((z * a.norm(dim=1)).sum() / len(z) for a in blocks["atoms"]) / len(sites)
    if dead.any():
        x = torch.cat(sites, dim=1)
        of_dead = (x - p["b_dec"].detach()) @ p["W_enc"] + p["b_enc"]
        loss = loss + aux * unexplained(of_dead, p["atoms"], torch.cat(residuals, dim=1).detach(), dead, k_aux)
    return loss


def unexplained(pre: Tensor, atoms: Tensor, residual: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    chosen = pre.masked_fill(~dead, -torch.inf).topk(min(k_aux, int(dead.sum())), dim=1).indices
    z = Through.apply(torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen)))
    return (residual - z @ atoms).square().sum() / (residual - residual.mean(dim=0)).square().sum()
