"""Loss values of other projects, against a slow twin written token by token and against examples computed by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from sparsight.training.presets import PRESETS, preset

D, M, B, K = 6, 14, 9, 3
CONFIGS: dict[str, Any] = {
    "relu": ReLU(M, 0.1, norms="free"),
    "gated": Gated(M, 0.1),
    "jumprelu": JumpReLU(M, target_l0=4.0, threshold=0.4),
    "topk": TopK(M, K),
    "batchtopk": BatchTopK(M, K),
    "matryoshka": Matryoshka(M, K, widths=(4, 9)),
}
CASES = [(p.name, architecture) for p in PRESETS.values() for architecture in p.definitions]
DEAD = torch.tensor([j in (1, 5, 6, 11) for j in range(M)])


def made(architecture: str, seed: int = 0) -> AbstractDictionary:
    """A dictionary with nothing at its first value, in float64."""
    g = torch.Generator().manual_seed(seed)
    dictionary = CONFIGS[architecture].build(D, g).double()
    with torch.no_grad():
        for p in dictionary.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
        for name in ("b_enc", "b_gate"):
            if hasattr(dictionary, name):
                getattr(dictionary, name)[DEAD] -= 0.5  # so that some dead latents are silent, and some negative
    return dictionary


def batch(seed: int = 1) -> Tensor:
    return 1.2 * torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7


class Twin:
    """The definitions again, with lists and loops, in the definition's own units: inputs and offsets scaled first."""

    def __init__(self, d: Any, x: Tensor, c: float) -> None:
        """Weights of the rescaled dictionary: that which codes `c x` as `d` codes `x`."""
        self.x = [[c * v for v in row] for row in x.tolist()]
        self.b_dec = [c * v for v in d.b_dec.tolist()]
        self.architecture = d.config.architecture
        norm = d.log_norm.exp().tolist() if hasattr(d, "log_norm") else [1.0] * M
        self.rows = [[n * a for a in atom] for n, atom in zip(norm, d.atoms.tolist(), strict=True)]
        self.norms = norm
        self.W = d.W_enc.T.tolist()
        self.bias = [c * v for v in (d.b_gate if self.architecture == "gated" else d.b_enc).tolist()]
        if self.architecture == "gated":
            self.r, self.b_mag = d.r_mag.exp().tolist(), [c * v for v in d.b_mag.tolist()]
        if self.architecture == "jumprelu":
            self.theta = [c * v for v in d.threshold.tolist()]
        self.pre = [
            [
                sum(w * (v - b) for w, v, b in zip(self.W[j], row, self.b_dec, strict=True)) + self.bias[j]
                for j in range(M)
            ]
            for row in self.x
        ]

    def code(self, k: int = K) -> list[list[float]]:
        out = [[0.0] * M for _ in range(B)]
        places = [(t, j) for t in range(B) for j in range(M)]
        if self.architecture == "topk":
            kept = {(t, j) for t in range(B) for j in sorted(range(M), key=lambda j: -self.pre[t][j])[:k]}
        elif self.architecture in ("batchtopk", "matryoshka"):
            kept = set(sorted(places, key=lambda p: -self.pre[p[0]][p[1]])[: k * B])
        elif self.architecture == "jumprelu":
            kept = {(t, j) for t, j in places if self.pre[t][j] > self.theta[j]}
        else:
            kept = set(places)
        for t, j in kept:
            value = self.pre[t][j]
            if self.architecture == "gated":
                magnitude = self.r[j] * (value - self.bias[j]) + self.b_mag[j]
                out[t][j] = max(magnitude, 0.0) if value > 0 else 0.0
            else:
                out[t][j] = max(value, 0.0)
        return out

    def decode(self, code: list[list[float]], *, below: int = M) -> list[list[float]]:
        return [[self.b_dec[i] + sum(z[j] * self.rows[j][i] for j in range(below)) for i in range(D)] for z in code]

    def residual(self, x_hat: list[list[float]]) -> list[list[float]]:
        return [[a - b for a, b in zip(r, s, strict=True)] for r, s in zip(self.x, x_hat, strict=True)]

    def error(self, x_hat: list[list[float]]) -> float:
        return total(self.residual(x_hat)) / B

    def auxiliary(self, dead: list[int], k_aux: int, rectify: bool) -> tuple[list[list[float]], list[list[float]]]:
        """Residual, and residual less what the dead latents of largest pre-activation make of it."""
        e = self.residual(self.decode(self.code()))
        left = []
        for t, row in enumerate(e):
            chosen = sorted(dead, key=lambda j: -self.pre[t][j])[:k_aux]
            values = {j: max(self.pre[t][j], 0.0) if rectify else self.pre[t][j] for j in chosen}
            left.append([row[i] - sum(v * self.rows[j][i] for j, v in values.items()) for i in range(D)])
        return e, left


def total(rows: list[list[float]]) -> float:
    return sum(v * v for row in rows for v in row)


def spread(rows: list[list[float]]) -> float:
    means = [sum(row[i] for row in rows) / len(rows) for i in range(D)]
    return total([[v - m for v, m in zip(row, means, strict=True)] for row in rows])


def twin_loss(name: str, twin: Twin, c: float, dead: list[int]) -> float:
    code = twin.code()
    error, architecture = twin.error(twin.decode(code)), twin.architecture
    if architecture == "relu":
        return error + c * sum(z * n for row in code for z, n in zip(row, twin.norms, strict=True)) / B
    if architecture == "jumprelu":
        l0 = sum(z > 0 for row in code for z in row) / B
        return error + c * ((l0 / 4 - 1) ** 2 if name == "dictionary-learning" else l0)
    if architecture == "gated":
        gate = [[max(p, 0.0) for p in row] for row in twin.pre]
        return error + c * sum(map(sum, gate)) / B + twin.error(twin.decode(gate))
    prefixes = [twin.error(twin.decode(code, below=w)) for w in (4, 9, M)]
    if name == "saelens":
        _, left = twin.auxiliary(dead, D // 2, rectify=False)
        main = sum(prefixes) if architecture == "matryoshka" else error
        return main + c * min(len(dead) / (D // 2), 1) * total(left) / B
    if name == "sparsify":
        _, left = twin.auxiliary(dead, D // 2, rectify=True)
        return (error * B + c * min(len(dead) / (D // 2), 1) * total(left)) / spread(twin.x)
    e, left = twin.auxiliary(dead, 256 if name == "openai-topk" else D // 2, rectify=True)
    if name == "openai-topk":
        return error * B / spread(twin.x) + c * total(left) / spread(e)
    main = sum(prefixes) / 9 if architecture == "matryoshka" else error
    return main + c * total(left) / spread(e)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_every_loss_equals_its_slow_twin(name, architecture, scale):
    dictionary, x = made(architecture), batch()
    found = preset(name).loss(dictionary, x, coefficient=0.37, dead=DEAD, scale=scale)
    expected = twin_loss(name, Twin(dictionary, x, scale), 0.37, DEAD.nonzero()[:, 0].tolist())
    assert found.dtype == torch.float64
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def test_without_dead_latents_there_is_nothing_to_revive():
    dictionary, x = made("topk"), batch()
    one = preset("dictionary-learning").loss(dictionary, x, coefficient=5.0)
    assert float(one.detach()) == pytest.approx(
        Twin(dictionary, x, 1.0).error(Twin(dictionary, x, 1.0).decode(Twin(dictionary, x, 1.0).code()))
    )


def by_hand(config: Any) -> AbstractDictionary:
    """Two latents along two axes, their encoder the identity, no offsets."""
    dictionary = config.build(2).double()
    with torch.no_grad():
        for name in ("atoms", "W_enc"):
            getattr(dictionary, name).copy_(torch.eye(2, dtype=torch.float64))
    return dictionary


X = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def value(name: str, config: Any, **arguments: Any) -> float:
    return float(preset(name).loss(by_hand(config), X, **arguments).detach())


def test_examples_that_can_be_computed_by_hand():
    # Everything positive is kept: no error, and the values sum to 4 and 3.
    assert value("anthropic-april-2024", ReLU(2, 0.1, norms="free")) == pytest.approx(5 * 3.5)
    assert value("dictionary-learning", ReLU(2, 0.1)) == pytest.approx(0.1 * 3.5)
    # Twice the units: values are twice as large.
    assert value("saelens", ReLU(2, 0.1), scale=2.0) == pytest.approx(7.0)
    # With thresholds of 1.5 the value 1 is cut in both tokens: errors 1 and 1, one latent in each.
    assert value("gemma-scope", JumpReLU(2, l0=0.1, threshold=1.5), coefficient=0.25) == pytest.approx(1 + 0.25)
    # A target of 2 latents, of which half are there: (1/2 - 1)^2.
    config = JumpReLU(2, target_l0=2.0, threshold=1.5)
    assert value("dictionary-learning", config) == pytest.approx(1 + 0.25)
    # Of the top 1 the rest is 1 and 1; about the mean (2, 1.5) tokens lie at squared distance 1.25 each.
    assert value("openai-topk", TopK(2, 1)) == pytest.approx(1 / 1.25)
    assert value("sparsify", TopK(2, 1)) == pytest.approx(1 / 1.25)
    # Both latents dead, k_aux = 1: unrectified top is what was already kept; e is (0, 1), (1, 0) less (3, 0), (0, 2).
    both = torch.tensor([True, True])
    assert value("saelens", TopK(2, 1), dead=both) == pytest.approx(1 + (10 + 5) / 2)
    # The same over the residual's spread about its mean (1/2, 1/2): 4 * 1/4.
    assert value("dictionary-learning", TopK(2, 1), dead=both) == pytest.approx(1 + 15 / 32)
    assert value("sparsify", TopK(2, 1), dead=both, coefficient=1.0) == pytest.approx((1 + 7.5) / 1.25)
    # Prefixes 1 and 2 of the batch's two largest values, 3 (latent 0) and 2 (latent 1), keep 3 and all of them.
    config = Matryoshka(2, 1, widths=(1,))
    assert value("saelens", config) == pytest.approx((1 + 5) / 2 + 1)
    assert value("dictionary-learning", config) == pytest.approx(((1 + 5) / 2 + 1) / 4)
    # A gate of q = relu(x): the third term is 0 as the first; the penalty is the sum of the values.
    assert value("saelens", Gated(2, 0.1)) == pytest.approx(3.5)


def test_losses_can_be_trained_on():
    for name, architecture in CASES:
        dictionary = made(architecture)
        preset(name).loss(dictionary, batch(), coefficient=0.1, dead=DEAD).backward()
        assert dictionary.atoms.grad is not None, (name, architecture)
        assert bool(torch.isfinite(dictionary.atoms.grad).all())
