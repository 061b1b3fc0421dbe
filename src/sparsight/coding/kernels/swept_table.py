"""Inner products between all atoms in sixteen bits, for compiled code to sweep over."""

import torch
from jaxtyping import Float, Float32, Float64, Int16
from torch import Tensor

from sparsight.coding.arguments import LONGEST_ATOM

# Atoms whose scores are first looked at together, by their maximum.
GROUP = 64
SINGLE_ROUNDING = 2.0**-24


class SweptTable:
    """Inner products as multiples of one unit: `2 n_latents^2` bytes, 34 MB at 4,096 latents, 540 MB at 16,384.

    Entries are off by at most half a unit and what summing `d` products in float32 rounds, in whatever order: 6e-5 at
    d = 768, whatever their size. (bfloat16 is off by 2e-3 of an entry and costs as much to read.)

    Attributes:
        low: The atoms in float32, for scans.
        high: The atoms in float64, for scores that decide and for weights.
        products: Multiples of `unit`; columns padded with zeros to whole groups.
        coherence: Bound on the magnitude of each atom's inner product with any other one in each group.
        unit: What 1 in `products` stands for.
        error: Most that an entry is off.
    """

    def __init__(self, atoms: Float[Tensor, "n_latents d"]) -> None:
        n_latents, d = atoms.shape
        groups = -(-n_latents // GROUP)
        self.low: Float32[Tensor, "n_latents d"] = atoms.float()
        self.high: Float64[Tensor, "n_latents d"] = atoms.double()
        self.unit = LONGEST_ATOM**2 / (2**15 - 1)
        self.error = 0.5 * self.unit + (d + 4) * SINGLE_ROUNDING * LONGEST_ATOM**2
        self.products: Int16[Tensor, "n_latents padded"] = torch.zeros(n_latents, groups * GROUP, dtype=torch.int16)
        self.coherence: Float32[Tensor, "n_latents groups"] = torch.empty(n_latents, groups)
        rows = max(1, 2**20 // n_latents)
        multiples = torch.zeros(rows, groups * GROUP)
        for start in range(0, n_latents, rows):
            block = multiples[: min(rows, n_latents - start)]
            torch.mm(self.low[start : start + rows], self.low.T, out=block[:, :n_latents])
            block.div_(self.unit).round_()
            self.products[start : start + rows] = block
            block.diagonal(offset=start).zero_()
            lowest, highest = block.view(len(block), groups, GROUP).aminmax(dim=2)
            self.coherence[start : start + rows] = torch.maximum(-lowest, highest) * self.unit + self.error
