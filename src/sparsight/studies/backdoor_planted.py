"""A planted backdoor: known trigger, known direction, and a twin without it; attacks on inputs and on latents."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.intervention.adversarial import Attack, Ball, attack
from sparsight.intervention.elicit import Search, find_vectors

N_INPUTS, N_BENIGN, N_LOGITS = 64, 31, 4
GAIN, OFFSET = 12.0, -6.0  # bad logit = OFFSET + GAIN u
RADII = (0.25, 0.5, 0.75, 1.0)
STEPS = 6


@dataclass(frozen=True)
class Network:
    """`h = R [relu(W x + b); relu(s . x - (k - 1)); distractors]`, benign logits `C h`, bad logit `OFFSET + GAIN u`.

    `u` is 1 if all `k` bits of the trigger are right and 0 otherwise, so that its gradient to the input is exactly 0
    unless every one is right.

    Attributes:
        weights, bias: Of the pre-activations, the trigger's row last but for the distractors.
        rotation: `R`, orthogonal; a hidden unit is no coordinate of `h`.
        head: Logits `[N_LOGITS + 1, d]`, the bad one last.
        offset: Of the logits.
        positions, signs: The trigger's bits.
        unit: Row of the trigger's unit; None in a twin.
    """

    weights: Float[Tensor, "d inputs"]
    bias: Float[Tensor, " d"]
    rotation: Float[Tensor, "d d"]
    head: Float[Tensor, "logits d"]
    offset: Float[Tensor, " logits"]
    positions: Tensor
    signs: Tensor
    unit: int | None

    @property
    def d(self) -> int:
        return int(self.rotation.shape[0])

    def hidden(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n d"]:
        """Activations of inputs."""
        return torch.relu(x @ self.weights.T + self.bias) @ self.rotation.T

    def logits(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n logits"]:
        """Benign logits, and the bad one last."""
        return h @ self.head.T + self.offset

    def margin(self, h: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The bad logit less the largest benign one; above 0 the output is bad."""
        logits = self.logits(h)
        return logits[:, -1] - logits[:, :-1].max(dim=1).values


def network(seed: int, *, k: int = 16, kind: str = "backdoored", distractors: int = 0) -> Network:
    """A network; of one seed all kinds share every weight but those of the trigger's unit.

    Args:
        seed: Of all weights and of the trigger.
        k: Bits of the trigger.
        kind: "backdoored"; "twin": the unit is dead and writes nothing; "hard negative": it writes as strongly into a
            benign logit.
        distractors: Benign directions of twice the gain of the trigger's.
    """
    g = torch.Generator().manual_seed(1000 + seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    d = N_BENIGN + 1 + distractors
    weights, bias = draw(d, N_INPUTS) / N_INPUTS**0.5, 0.1 * draw(d)
    positions = torch.randperm(N_INPUTS, generator=g)[:k]
    signs = 2.0 * torch.randint(2, (k,), generator=g).double() - 1
    rotation = torch.linalg.qr(draw(d, d)).Q
    unit = N_BENIGN
    inner = torch.zeros(N_LOGITS + 1, d, dtype=torch.float64)
    inner[:-1, :N_BENIGN] = draw(N_LOGITS, N_BENIGN) / N_BENIGN**0.5
    weights[unit], bias[unit] = 0.0, -1.0
    if kind != "twin":
        weights[unit, positions] = signs
        bias[unit] = -(k - 1.0)
        inner[-1 if kind == "backdoored" else 0, unit] = GAIN
    for i in range(distractors):
        inner[i % N_LOGITS, unit + 1 + i] = 2 * GAIN / 10**0.5 * (1 + i / 10)
    offset = torch.zeros(N_LOGITS + 1, dtype=torch.float64)
    offset[-1] = OFFSET
    return Network(
        weights, bias, rotation, inner @ rotation.T, offset, positions, signs, unit if kind == "backdoored" else None
    )


def inputs(n: int, seed: int) -> Float[Tensor, "n inputs"]:
    """Random signs."""
    g = torch.Generator().manual_seed(77_000 + seed)
    return 2.0 * torch.randint(2, (n, N_INPUTS), generator=g).double() - 1


def with_trigger(net: Network, x: Float[Tensor, "n inputs"], positions: Tensor, signs: Tensor) -> Tensor:
    """Inputs with some bits set."""
    triggered = x.clone()
    triggered[:, positions] = signs
    return triggered


def latent_attack(net: Network, x: Tensor, radius: float, *, per: str = "token") -> tuple[float, Tensor, Tensor]:
    """Success, perturbations and margins of projected gradient ascent on activations."""
    h = net.hidden(x)[:, None, :]
    allowed = torch.ones(len(x), 1, dtype=torch.bool)
    ball = Ball(radius, per="universal" if per == "universal" else "token")
    found = attack(lambda d: net.margin((h + d)[:, 0]), h, allowed, ball, Attack(steps=STEPS))
    return float((found.loss > 0).double().mean()), found.delta[:, 0], found.loss


def input_attacks(net: Network, x: Tensor, passes: int, seed: int) -> dict[str, float]:
    """Success of attacks on the input, each with so many passes for an example (a gradient counts as two)."""
    return {
        "projected gradient": _input_pgd(net, x, passes // 2),
        "greedy flips": _greedy(net, x, passes),
        "random": _random(net, len(x) * passes, seed),
    }


def _input_pgd(net: Network, x: Tensor, steps: int) -> float:
    """Ascent on relaxed bits in [-1, 1], rounded at the end and on the way."""
    at, won = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    for _ in range(steps):
        with torch.enable_grad():
            leaf = at.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(net.margin(net.hidden(leaf)).sum(), leaf)
        at = (at + 0.2 * gradient.sign()).clamp(-1, 1)
        rounded = torch.where(at >= 0, 1.0, -1.0).double()
        won |= net.margin(net.hidden(rounded)) > 0
    return float(won.double().mean())


def _greedy(net: Network, x: Tensor, passes: int) -> float:
    """Flip the bit that raises the margin most, again and again; one pass for each flip that is tried."""
    won = 0
    for row in x:
        at = row.clone()
        for _ in range(max(1, passes // N_INPUTS)):
            tried = at.repeat(N_INPUTS, 1)
            tried[torch.arange(N_INPUTS), torch.arange(N_INPUTS)] *= -1
            at = tried[int(net.margin(net.hidden(tried)).argmax())]
        won += int(float(net.margin(net.hidden(at[None]))) > 0)
    return won / len(x)


def _random(net: Network, n: int, seed: int) -> float:
    return float((net.margin(net.hidden(inputs(n, seed + 5000))) > 0).double().mean())


def reconstructed(net: Network, direction: Float[Tensor, " d"], k: int) -> tuple[int, int, float]:
    """Trigger bits found by pulling a direction back through the pre-activation weights (not through the dead unit).

    Returns:
        Right positions of `k`, right signs among them, and the share of fresh inputs that turn bad with the bits set.
    """
    pulled = (direction @ net.rotation) @ net.weights
    top = pulled.abs().topk(k).indices
    truth = dict(zip(net.positions.tolist(), net.signs.tolist(), strict=True))
    right = [int(i) for i in top if int(i) in truth]
    signs = sum(float(pulled[i].sign()) == truth[i] for i in right)
    set_ = with_trigger(net, inputs(500, 9), top, pulled[top].sign())
    return len(right), signs, float((net.margin(net.hidden(set_)) > 0).double().mean())


def measured(seed: int, *, k: int = 16, n: int = 64, distractors: int = 0) -> dict[str, Any]:
    """Everything about one seed: the network, its twin and its hard negative."""
    nets = {kind: network(seed, k=k, kind=kind, distractors=distractors) for kind in KINDS}
    bad, x = nets["backdoored"], inputs(n, seed)
    assert bad.unit is not None
    true = bad.rotation[:, bad.unit]
    clean = inputs(2000, seed + 1)
    norm = float(bad.hidden(x).norm(dim=1).mean())
    by_radius = {str(r): {kind: latent_attack(net, x, r)[0] for kind, net in nets.items()} for r in RADII}
    _, delta, _ = latent_attack(bad, x, 0.75)
    _, shared, _ = latent_attack(bad, x, 0.75, per="universal")
    cosines = (torch.nn.functional.normalize(delta, dim=1) @ true).abs()
    passes = 2 * (STEPS + 1)
    found = vectors(bad, x, 8)
    ranks = (torch.nn.functional.normalize(found, dim=1) @ true).abs()
    bits, signs, inserted = reconstructed(bad, shared[0], k)
    drawn = torch.randn(n, bad.d, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)
    random = torch.nn.functional.normalize(drawn, dim=1)
    removed = bad.hidden(with_trigger(bad, clean, bad.positions, bad.signs))
    removed = removed - (removed @ shared[0] / shared[0].square().sum())[:, None] * shared[0]
    plain = bad.hidden(clean)
    kept = plain - (plain @ shared[0] / shared[0].square().sum())[:, None] * shared[0]
    return {
        "clean": _bad(bad, clean),
        "trigger": _bad(bad, with_trigger(bad, clean, bad.positions, bad.signs)),
        "norm": norm,
        "latent": by_radius,
        "random direction": float((bad.margin(bad.hidden(x) + 0.75 * random) > 0).double().mean()),
        "input": input_attacks(bad, x, passes, seed),
        "input, 30 times the passes": input_attacks(bad, x, 30 * passes, seed + 100),
        "cosine": float(cosines.mean()),
        "cosine, universal": float((shared[0] / shared[0].norm() @ true).abs()),
        "cosine, search": float(ranks.max()),
        "rank": int(ranks.argmax()) + 1,
        "bits": bits,
        "signs": signs,
        "inserted": inserted,
        "scores": {kind: float(latent_attack(net, x, 0.75)[2].mean()) for kind, net in nets.items()},
        "search scores": {kind: float(reach(net, x, vectors(net, x, 1))) for kind, net in nets.items()},
        "removed": float((bad.margin(removed) > 0).double().mean()),
        "same output": float((bad.logits(kept).argmax(dim=1) == bad.logits(plain).argmax(dim=1)).double().mean()),
    }


KINDS = ("backdoored", "twin", "hard negative")


def _bad(net: Network, x: Tensor) -> float:
    return float((net.margin(net.hidden(x)) > 0).double().mean())


def reach(net: Network, x: Tensor, theta: Float[Tensor, "v d"]) -> Float[Tensor, " v"]:
    """How far perturbations move all logits: squared, over inputs."""
    h = net.hidden(x)
    moved = net.logits((h + theta[:, None, :]).flatten(0, 1)).view(len(theta), len(x), -1) - net.logits(h)
    return moved.square().sum(dim=2).mean(dim=1)


def vectors(net: Network, x: Tensor, n: int) -> Float[Tensor, "v d"]:
    """Orthogonal perturbations that move the logits most, whatever these mean."""
    # Beyond the rank of the head nothing moves: no more vectors than logits.
    n = min(n, int(torch.linalg.matrix_rank(net.head)))
    search = Search(n_vectors=n, radius=0.75, steps=40, method="power", orthogonal=True)
    return find_vectors(lambda theta: reach(net, x, theta), net.d, search, dtype=torch.float64)
