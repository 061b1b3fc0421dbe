"""Rules for the mean of a function over `[0, 1]`."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

Rule = Literal["midpoint", "left", "gauss"]
# More points than this in one Gauss rule gain nothing that two rules side by side do not.
GAUSS_POINTS = 16


def points(rule: Rule, steps: int) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Points and weights; weights add up to 1.

    * `midpoint`: `(i + 1/2) / n`, error of order `n^-2` where the function is smooth; symmetric: going from 1 to 0
      gives the same mean.
    * `left`: `i / n`, error `-(f(1) - f(0)) / 2n` to first order. In published code; here for comparison.
    * `gauss`: Gauss-Legendre, exact for polynomials of degree `2n - 1`: best where the function is smooth.

    Raises:
        ValueError: steps are fewer than 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if rule != "gauss":
        shift = 0.5 if rule == "midpoint" else 0.0
        where = (torch.arange(steps, dtype=torch.float64) + shift) / steps
        return where, torch.full_like(where, 1 / steps)
    panels = -(-steps // GAUSS_POINTS)
    sizes = [steps // panels + (i < steps % panels) for i in range(panels)]
    parts = []
    for i, size in enumerate(sizes):
        nodes, weights = np.polynomial.legendre.leggauss(size)
        parts.append(torch.from_numpy(np.stack([(i + (nodes + 1) / 2) / panels, weights / 2 / panels])))
    where, weight = torch.cat(parts, dim=1)
    return where, weight
