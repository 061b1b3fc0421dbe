"""Several TopK dictionaries of one shape: a step of each in turn against one step of all, stacked.

    python benchmarks/stacking.py --size small
    python benchmarks/stacking.py --size S --rounds 5

"in turn" is the step that training makes. "concatenated" encodes with all encoders side by side in one product, "bmm"
with a batched product of centred inputs; both then select, decode, descend and project for all members at once, on
tensors that hold all members. All start from the same weights and end with the same, which is checked. Times are of the
processor, which other work on the machine disturbs less; set OMP_NUM_THREADS=1.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sparsight.dictionaries import TopK
from sparsight.dictionaries.selection import Slots, block_rows, top_k
from sparsight.training import Training
from sparsight.training.member import Member
from sparsight.training.sparse_step import decode_slots

# Width of the activations, latents, active ones, batch.
SIZES = {"small": (128, 512, 16, 512), "S": (512, 4096, 32, 2048)}
LR = 1e-3


def members_of(size: tuple[int, int, int, int], n: int) -> list[Member]:
    d, m, k, b = size
    settings = [Training(n_tokens=10**9, batch_size=b, lr=LR, seed=seed) for seed in range(n)]
    return [Member(f"{s.seed}", TopK(m, k, dead_after=10**9), d, s, torch.device("cpu")) for s in settings]


class Stacked:
    """All members in tensors of their own kind: `W_enc` `[M, d, m]` (or `[d, M m]`), the others `[M, ...]`."""

    def __init__(self, members: list[Member], k: int, *, concatenated: bool) -> None:
        self.k, self.concatenated, self.n = k, concatenated, len(members)
        parts = {
            name: [getattr(member.dictionary, name).detach() for member in members]
            for name in ("W_enc", "b_enc", "atoms", "b_dec")
        }
        self.m, self.d = parts["atoms"][0].shape
        # Side by side: the layout that the backward pass of the sparse step writes.
        self.W_enc = torch.cat(parts["W_enc"], dim=1).requires_grad_()
        self.b_enc = torch.cat(parts["b_enc"]).requires_grad_()
        self.atoms = torch.cat(parts["atoms"]).requires_grad_()
        self.b_dec = torch.stack(parts["b_dec"]).requires_grad_()
        self.parameters = [self.W_enc, self.b_enc, self.atoms, self.b_dec]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, betas=(0.9, 0.999), eps=1e-10, fused=True)
        self.silent = torch.zeros(self.n * self.m, dtype=torch.int64)

    @torch.no_grad()
    def chosen(self, x: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Values and latents of the code, `[M b, k]`."""
        if self.concatenated:
            W = self.W_enc.view(self.d, self.n, self.m)
            offset = self.b_enc - torch.einsum("nd,dnm->nm", self.b_dec, W).flatten()
            blocks = [
                top_k(torch.addmm(offset, rows, self.W_enc).view(-1, self.m), self.k)
                for rows in torch.split(x, block_rows(self.n * self.m, x.device))
            ]
            shape = (len(x), self.n, self.k)
            both = (
                torch.cat(parts).view(shape).transpose(0, 1).reshape(-1, self.k) for parts in zip(*blocks, strict=True)
            )
            values, latents = both
        else:
            W = self.W_enc.view(self.d, self.n, self.m).transpose(0, 1)
            b_enc = self.b_enc.view(self.n, 1, self.m)
            blocks = [
                top_k(torch.baddbmm(b_enc, rows, W).view(-1, self.m), self.k)
                for rows in torch.split(centred.view(self.n, -1, self.d), block_rows(self.n * self.m, x.device), dim=1)
            ]
            values, latents = (
                torch.cat([part.view(self.n, -1, self.k) for part in parts], dim=1).view(-1, self.k)
                for parts in zip(*blocks, strict=True)
            )
        return values.relu(), latents

    def step(self, x: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        b = len(x)
        with torch.no_grad():
            centred = (x - self.b_dec[:, None]).view(-1, self.d)
            values, latents = self.chosen(x, centred)
            tokens = torch.arange(self.n * b).repeat_interleave(self.k)
            owner = torch.arange(self.n).repeat_interleave(b)[:, None] * self.m
            slots = Slots(tokens, (latents + owner).flatten(), values.flatten(), self.n * b)
        zero = torch.zeros(self.d)
        decoded = decode_slots(centred, self.W_enc, self.b_enc, self.atoms, zero, slots, tokens, self.n * b, True)
        residual = centred.view(self.n, b, self.d) - decoded.view(self.n, b, self.d)
        losses = residual.square().sum(dim=2).mean(dim=1)
        losses.sum().backward()
        with torch.no_grad():
            self._descend(residual, values, slots)

    def _descend(self, residual: Tensor, values: Tensor, slots: Slots) -> None:
        b = residual.shape[1]
        to_encoder = torch.einsum(
            "dnm,nm->nd", self.W_enc.view(self.d, self.n, self.m), self.b_enc.grad.view(self.n, -1)
        )
        self.b_dec.grad = -2 / b * residual.sum(dim=1) - to_encoder
        gradient = self.atoms.grad
        gradient.addcmul_(self.atoms, (gradient * self.atoms).sum(dim=1, keepdim=True), value=-1)
        squares = (
            self.W_enc.grad.view(self.d, self.n, self.m).square().sum(dim=(0, 2))
            + self.b_enc.grad.view(self.n, -1).square().sum(dim=1)
            + gradient.view(self.n, -1).square().sum(dim=1)
            + self.b_dec.grad.square().sum(dim=1)
        )
        shrink = (1 / (squares.sqrt() + 1e-6)).clamp(max=1)
        assert bool(torch.isfinite(squares).all())
        self.W_enc.grad.view(self.d, self.n, self.m).mul_(shrink[:, None])
        self.b_enc.grad.view(self.n, -1).mul_(shrink[:, None])
        gradient.view(self.n, -1).mul_(shrink[:, None])
        self.b_dec.grad.mul_(shrink[:, None])
        self.optimizer.step()
        self.atoms.div_(self.atoms.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
        self.silent += b
        self.silent[slots.latents[values.flatten() > 0]] = 0


def in_turn(members: list[Member]) -> Callable[[Tensor], None]:
    def step(x: Tensor) -> None:
        for member in members:
            member.step(x, LR, 1.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind, one after the other in each round")
    arguments = parser.parse_args()
    size, n = SIZES[arguments.size], arguments.members
    d, _, k, b = size
    members = members_of(size, n)
    stacks = {
        name: Stacked(members_of(size, n), k, concatenated=name == "concatenated") for name in ("concatenated", "bmm")
    }
    steps = {"in turn": in_turn(members), **{name: stack.step for name, stack in stacks.items()}}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    generator = torch.Generator().manual_seed(1)
    for i in range(arguments.rounds + 1):
        x = torch.randn(b, d, generator=generator) / d**0.5
        for name, step in steps.items():
            began = time.process_time()
            step(x)
            if i:  # the first step sets up what later ones use
                seconds[name].append(time.process_time() - began)
    for stack in stacks.values():
        ours = torch.cat([member.dictionary.atoms.detach() for member in members])
        apart = float((ours - stack.atoms.detach()).norm(dim=1).median())
        assert apart < 1e-2, f"the stacked step is not the same step: atoms are {apart} apart"
    base = statistics.median(seconds["in turn"])
    print(f"{n} members, d_in {d}, {size[1]} latents, k {k}, batch {b}, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        median = statistics.median(times)
        low, high = min(times), max(times)
        print(
            f"{name:13s} {1e3 * median:8.1f} ms [{1e3 * low:.1f}, {1e3 * high:.1f}]   {base / median:.2f} x", flush=True
        )


if __name__ == "__main__":
    main()
