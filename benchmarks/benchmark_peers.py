"""The core computations of SAEBench's benchmarks on the same arrays as ours; no model and no data set is fetched.

Runs in an environment with `sae-bench`, and `src` on the path. Each line gives theirs, ours, and how far apart; the
cases at the end of each part are small enough to be settled by hand.

    PYTHONPATH=src python benchmarks/benchmark_peers.py
"""

import contextlib
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import sae_bench.evals.ravel.mdbm as their_ravel
import sae_bench.evals.scr_and_tpp.main as their_scr
import sae_bench.evals.sparse_probing.probe_training as their_probing
import sae_bench.evals.unlearning.utils.feature_activation as their_choice
import sae_bench.evals.unlearning.utils.intervention as their_push
import torch
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from torch import Tensor

from sparsight.dictionaries import TopK
from sparsight.evaluation.benchmarks.ablating import accuracy, effects, without
from sparsight.evaluation.benchmarks.absorption import absorbed
from sparsight.evaluation.benchmarks.interchange import Outcome
from sparsight.evaluation.benchmarks.sparse_probing import probe
from sparsight.evaluation.benchmarks.spurious import repaired
from sparsight.evaluation.benchmarks.unlearning import Pushing, chosen, pushed
from sparsight.evaluation.features.probes import LinearProbe

HOOK = "blocks.0.hook_resid_post"


def quietly(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Their functions print as they go."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*args, **settings)


def said(what: str, theirs: object, ours: object) -> None:
    def shown(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    print(f"  {what}: theirs {shown(theirs)}, ours {shown(ours)}")


def apart(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs.double() - ours.double()).abs().max())


def codes(n: int, m: int, g: torch.Generator, density: float = 0.1) -> Tensor:
    """Non-negative, all latents alike in scale."""
    return (torch.rand(n, m, generator=g) + 0.5) * (torch.rand(n, m, generator=g) < density)


def unit(m: int, d: int, g: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)


class Held:
    """What their functions ask of a dictionary: codes and reconstructions by row, looked up and not computed."""

    device = "cpu"

    def __init__(self, atoms: Tensor, encode: Callable[[Tensor], Tensor], offset: Tensor | None = None) -> None:
        self.W_dec = atoms.clone()
        self.encode = encode
        self.offset = torch.zeros(atoms.shape[1]) if offset is None else offset

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.W_dec + self.offset


def sparse_probing() -> None:
    print("sparse probing")
    g = torch.Generator().manual_seed(301)
    z = codes(3000, 40, g)
    y = ((z[:, 3] > 0) | (z[:, 8] > 0) | (torch.rand(3000, generator=g) < 0.05)).long()
    train, test = slice(0, 2000), slice(2000, 3000)

    def their_accuracy(z: Tensor, y: Tensor, k: int | None) -> float:
        keep = torch.ones(z.shape[1], dtype=torch.bool)
        if k is not None:
            keep = ~their_probing.get_top_k_mean_diff_mask(z[train], y[train], k)
        arguments = (z[train][:, keep], y[train], z[test][:, keep], y[test])
        return float(quietly(their_probing.train_sklearn_probe, *arguments)[1])

    def our_accuracy(z: Tensor, y: Tensor, k: int | None) -> float:
        return probe(z[train], y[train], z[test], y[test], k).accuracy

    for k in (1, 2, 5, None):
        said(f"latents alike in scale, k={k or 'all'}, accuracy", their_accuracy(z, y, k), our_accuracy(z, y, k))
    # The label is latent 0; latent 1 is noise of 1,000 times the scale.
    bits = torch.randint(2, (3000,), generator=g)
    loud = torch.stack([bits.float(), 1000 * torch.rand(3000, generator=g)], dim=1)
    said(
        "the label is a latent, another is loud noise, k=1", their_accuracy(loud, bits, 1), our_accuracy(loud, bits, 1)
    )
    # No column has to do with the label: 0.5 is right. The published probe of all latents keeps its best epoch on test.
    theirs, ours = [], []
    for seed in range(20):
        torch.manual_seed(seed)
        noise, coin = torch.randn(300, 200, generator=g), torch.randint(2, (300,), generator=g)
        parts = (noise[:200], coin[:200], noise[200:], coin[200:])
        settings = {"dim": 200, "batch_size": 50, "epochs": 50, "lr": 1e-2}
        theirs.append(float(quietly(their_probing.train_probe_gpu, *parts, **settings)[1]))
        ours.append(probe(*parts, None).accuracy)
    said("noise and a coin, all latents, mean of 20 draws", sum(theirs) / 20, sum(ours) / 20)


class Words:
    """Stands in for their model: prompt number i has activation i."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.at = x, 0

    def to_tokens(self, _: str) -> Tensor:
        return torch.zeros(1, 3)

    def run_with_cache(self, prompts: list[str], **_: Any) -> tuple[None, dict[str, Tensor]]:
        found = self.x[self.at : self.at + len(prompts)]
        self.at += len(prompts)
        return None, {HOOK: found[:, None].expand(-1, 3, -1)}


def their_absorption(x: Tensor, z: Tensor, atoms: Tensor, direction: Tensor, own: list[int]) -> tuple[Tensor, Tensor]:
    table = iter(z.split(10))
    words: Any = Words(x)  # in place of their model, of which it has the two methods that are called
    calculator = FeatureAbsorptionCalculator(words, ["abc"], max_icl_examples=0)
    held: Any = Held(atoms, lambda _: next(table))  # in place of their dictionary
    found = calculator.calculate_absorption(
        held,
        [f"word{'a' * 3}" for _ in range(len(x))],
        direction,
        own,
        layer=0,
        show_progress=False,
    )
    rows = found.word_results
    return torch.tensor([r.is_full_absorption for r in rows]), torch.tensor([r.absorption_fraction for r in rows])


def absorption() -> None:
    print("absorption")
    g = torch.Generator().manual_seed(302)
    atoms, direction = unit(60, 16, g), torch.randn(16, generator=g)
    atoms[:2] = torch.nn.functional.normalize(direction + 0.3 * torch.randn(2, 16, generator=g), dim=1)
    atoms[2:8] = torch.nn.functional.normalize(direction + 2 * torch.randn(6, 16, generator=g), dim=1)
    z = codes(1500, 60, g, 0.15)
    x = z @ atoms + 0.05 * torch.randn(1500, 16, generator=g)
    there = x @ direction > 0
    x, z = x[there], z[there]
    full, fraction = their_absorption(x, z, atoms, direction, [0, 1])
    ours = absorbed(x, z, atoms, direction, torch.tensor([0, 1]))
    said(f"{len(x)} tokens, full", float(full.double().mean()), float(ours.full.double().mean()))
    said("  tokens judged otherwise", int((full != ours.full).sum()), 0)
    said("  fraction", float(fraction.double().mean()), float(ours.fraction.mean()))
    said("  largest difference of a token", apart(fraction, ours.fraction), 0)
    # One absorber carries all of a token's direction, beside an offset of the dictionary that carries three times that.
    p = torch.tensor([1.0, 0, 0])
    pair, offset = torch.eye(3)[:2], 3 * p
    silent = torch.tensor([[0.0, 0.0, 1.0]])
    three = torch.cat([pair[1:], pair[1:].roll(1, 1), pair[:1]])  # own latents 0 and 1 are silent, latent 2 is p
    ten = torch.cat([three, torch.eye(3)[[1] * 9]])
    long = torch.cat([silent, torch.zeros(1, 9)], dim=1)
    full, fraction = their_absorption(p[None] + offset, long, ten, p, [0, 1])
    ours = absorbed(p[None], long, ten, p, torch.tensor([0, 1]))
    said("absorbed, beside an offset, full", bool(full), bool(ours.full))
    said("  fraction", float(fraction), float(ours.fraction))


def ablations() -> None:
    print("spurious correlation and targeted perturbation")
    g = torch.Generator().manual_seed(303)
    atoms, offset = unit(30, 12, g), torch.randn(12, generator=g)
    z = codes(400, 30, g, 0.2)
    x = z @ atoms + offset + 0.1 * torch.randn(400, 12, generator=g)
    y = torch.arange(400) % 2
    z[y == 1, 4] += 1
    weights, bias = torch.randn(12, generator=g), torch.tensor(0.1)
    theirs = their_probing.Probe(12, torch.float32)
    with torch.no_grad():
        theirs.net.weight.copy_(weights[None])
        theirs.net.bias.fill_(bias)
    linear = LinearProbe(torch.stack([-weights, weights]).double() / 2, torch.stack([-bias, bias]).double() / 2)
    # Rows are looked up: their code shuffles examples, so activations carry their number along.
    by_row = {tuple(row[:3].tolist()): i for i, row in enumerate(x)}

    def encode(some: Tensor) -> Tensor:
        at = [by_row[tuple(row[:3].tolist())] for row in some.reshape(-1, 12)]
        return z[at].reshape(*some.shape[:-1], 30).clone()

    held = Held(atoms, encode, offset)
    acts = {"a": x[y == 1][:, None], "b": x[y == 0][:, None]}
    for scr in (False, True):
        name = "male / female" if scr else "a"
        given = {"male / female": acts["a"], "female_data_only": acts["b"]} if scr else acts
        found = their_scr.get_effects_per_class_precomputed_acts(held, theirs, name, given, scr, 64).detach()
        own = effects(z, y, atoms, linear)
        own = (
            own.abs()
            if scr
            else (
                (z[y == 1].double().mean(0) - z[y == 0].double().mean(0)).clamp_min(0)
                * (atoms.double() @ weights.double())
            )
        )
        said(f"effects of latents ({'spurious' if scr else 'targeted'}), largest difference", apart(found, own), 0)
    mask = torch.zeros(30, dtype=torch.bool)
    mask[[4, 7, 9]] = True
    found = their_scr.ablated_precomputed_activations(x[:, None], held, mask, 64)
    said(
        "activations with three latents at 0, largest difference",
        apart(found, without(x, z, atoms, torch.tensor([4, 7, 9]))),
        0,
    )
    right = their_probing.test_probe_gpu(found, y, 64, theirs)
    said("  accuracy of a probe on them", float(right), float(accuracy(linear, found, y).mean()))
    clean = {"a": 0.9, "b": 0.8, "c": 0.7}
    after = {c: {5: {d: clean[d] - (0.3 if c == d else 0.02) for d in clean}} for c in clean}
    total = their_scr.create_tpp_plotting_dict(after, clean)[0]["tpp_threshold_5_total_metric"]
    said("targeted score of known drops (0.3 own, 0.02 others)", float(total), 0.28)
    name, data = "male_professor / female_nurse", "professor / nurse"
    for low, what in ((0.7, "a gap of 0.2"), (0.8985, "a gap of 0.0015"), (0.9, "no gap")):
        llm = {data: 0.9, "male / female": 0.9, f"{name} probe on {data} data": low}
        llm[f"{name} probe on male / female data"] = 0.99
        ablated = {f"{name} probe on {data} data": low + 0.0015, f"{name} probe on male / female data": 0.99}
        both = {"male / female": {2: ablated}, data: {2: ablated}}
        score = quietly(their_scr.get_scr_plotting_dict, both, llm)["scr_dir1_threshold_2"]
        ours = (
            float(repaired(*(torch.tensor(v, dtype=torch.float64) for v in (low + 0.0015, low, 0.9))))
            if low < 0.88
            else None
        )
        said(f"repaired by 0.0015 of {what}", float(score), "refused: nothing to repair" if ours is None else ours)
    # A latent in use on every token carries the mean; at 0 it takes the probe's threshold with it.
    dense_z = torch.stack([torch.full((200,), 5.0), torch.arange(200) % 2 * 1.0], dim=1)
    flat = dense_z @ torch.eye(2)
    labels = torch.arange(200) % 2
    threshold = LinearProbe(
        torch.tensor([[-1.0, -1], [1, 1]], dtype=torch.float64) / 2, torch.tensor([5.5, -5.5], dtype=torch.float64) / 2
    )
    at_zero = without(flat, dense_z, torch.eye(2), torch.tensor([0]))
    at_mean = without(flat, dense_z, torch.eye(2), torch.tensor([0]), dense_z.mean(0))
    said(
        "accuracy, a latent of no class held",
        float(accuracy(threshold, at_zero, labels).mean()),
        float(accuracy(threshold, at_mean, labels).mean()),
    )


def ravel() -> None:
    print("exchange")
    g = torch.Generator().manual_seed(304)
    n, n_b = 500, 4
    base, source = (
        torch.stack([torch.randint(3, (n,), generator=g), torch.randint(n_b, (n,), generator=g)], dim=1)
        for _ in range(2)
    )
    differ = (base != source).all(dim=1)
    base, source = base[differ], source[differ]
    logits = torch.randn(len(base), 3 * n_b, generator=g)
    answered = logits.argmax(dim=1)
    ours = Outcome.of(answered, base, source, n_b, 0)
    of_target = torch.stack([logits[:, v * n_b : (v + 1) * n_b].max(dim=1).values for v in range(3)], dim=1)
    of_other = logits.view(-1, 3, n_b).max(dim=1).values
    cause = their_ravel.get_cause_isolation_score_estimates(of_target, source[:, 0], base[:, 0])
    isolation = their_ravel.get_cause_isolation_score_estimates(of_other, base[:, 1], base[:, 1])
    said("pairs that differ in both, cause", float(cause[0]), float(ours.cause.double().mean()))
    said("  isolation", float(isolation[1]), float(ours.isolation.double().mean()))
    said("no pair to judge isolation on", float(cause[1]), "refused: no two prompts differ in both")


def unlearning() -> None:
    print("unlearning")
    rng = np.random.default_rng(305)
    forget, retain = rng.random(200) * 0.1, rng.random(200) * 0.02
    theirs = their_choice.get_top_features(forget, retain, retain_threshold=0.01)
    ours = chosen(torch.from_numpy(forget), torch.from_numpy(retain), Pushing(0.01, 500, 1.0))
    said("latents chosen, in order, equal", theirs.tolist() == ours.tolist(), True)
    dictionary = TopK(24, 4).build(8, torch.Generator().manual_seed(1))
    x = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(306))
    dense = lambda x: dictionary.encode(x.reshape(-1, 8)).to_dense().reshape(*x.shape[:-1], 24)  # noqa: E731
    held = SimpleNamespace(encode=dense, decode=lambda z: z @ dictionary.atoms + dictionary.b_dec)
    with torch.no_grad():
        moved = their_push.anthropic_clamp_resid_SAE_features(x.clone(), None, held, [3, 5, 11], multiplier=2.0)
        flat = pushed(dictionary, torch.tensor([3, 5, 11]), torch.full((3,), -2.0))(x.reshape(-1, 8)).reshape(x.shape)
    said("activations with three latents at -2, largest difference", apart(moved[:, 1:], flat[:, 1:]), 0)
    # The same dictionary in units of a hundredth: a common multiple pushes it a hundred times as far.
    with torch.no_grad():
        norm = float((moved - x)[:, 1:].norm() / x[:, 1:].norm())
        small = SimpleNamespace(
            encode=lambda x: dense(100 * x) / 100, decode=lambda z: z @ dictionary.atoms + dictionary.b_dec / 100
        )
        other = their_push.anthropic_clamp_resid_SAE_features(x / 100, None, small, [3, 5, 11], multiplier=2.0)
        scaled = float((other - x / 100)[:, 1:].norm() / (x / 100)[:, 1:].norm())
    print(f"  size of the push over that of the activations: {norm:.3g}, at a hundredth of the scale {scaled:.3g}")


def main() -> None:
    for part in (sparse_probing, absorption, ablations, ravel, unlearning):
        part()


if __name__ == "__main__":
    main()
