"""Slow twin of the Gated objective: each term as a function of what it may change, and each gradient by hand."""

import torch
from torch import Tensor

TERMS = ("reconstruction", "sparsity", "gate_reconstruction")


def gated_term(name: str, moved: dict[str, Tensor], frozen: dict[str, Tensor], x: Tensor) -> Tensor:
    """One of the three terms, unweighted. `frozen` holds the values of the decoder that the third may not change."""
    gate = (x - moved["b_dec"]) @ moved["W_enc"] + moved["b_gate"]
    q = gate.clamp_min(0)
    if name == "sparsity":
        return q.sum(dim=1).mean()
    if name == "gate_reconstruction":
        return (x - q @ frozen["atoms"] - frozen["b_dec"]).square().sum(dim=1).mean()
    magnitude = ((x - moved["b_dec"]) @ moved["W_enc"]) * moved["r_mag"].exp() + moved["b_mag"]
    f = (gate > 0).to(x.dtype) * magnitude.clamp_min(0)
    return (x - f @ moved["atoms"] - moved["b_dec"]).square().sum(dim=1).mean()


def gated_gradients(name: str, parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The gradient of one term, entry by entry of the published table; a cell that is `none` there is 0 here."""
    p, n = parameters, len(x)
    gradients = {key: torch.zeros_like(value) for key, value in p.items()}
    centred = x - p["b_dec"]
    u = centred @ p["W_enc"]
    gate = u + p["b_gate"]
    if name == "reconstruction":
        scale = p["r_mag"].exp()
        magnitude = u * scale + p["b_mag"]
        on = (gate > 0) & (magnitude > 0)
        f = magnitude * on
        g = 2 * (f @ p["atoms"] + p["b_dec"] - x) / n
        to_magnitude = (g @ p["atoms"].T) * on
        gradients["atoms"] = f.T @ g
        gradients["b_mag"] = to_magnitude.sum(dim=0)
        gradients["r_mag"] = (to_magnitude * u * scale).sum(dim=0)
        to_u = to_magnitude * scale
        gradients["b_dec"] = g.sum(dim=0)
    elif name == "sparsity":
        to_u = (gate > 0).to(x.dtype) / n
        gradients["b_gate"] = to_u.sum(dim=0)
    else:
        g = 2 * (gate * (gate > 0) @ p["atoms"] + p["b_dec"] - x) / n
        to_u = (g @ p["atoms"].T) * (gate > 0)
        gradients["b_gate"] = to_u.sum(dim=0)
    gradients["W_enc"] = centred.T @ to_u
    gradients["b_dec"] = gradients["b_dec"] - p["W_enc"] @ to_u.sum(dim=0)
    return gradients
