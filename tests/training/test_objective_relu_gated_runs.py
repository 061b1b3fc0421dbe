"""ReLU and Gated in whole runs: steps that stay on the sphere, resume, revive, and survive a rate far too high."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsight.activations import ActivationStream
from sparsight.dictionaries import Gated, ReLU
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.training import Training, train
from sparsight.training.member import Member

D, M = 8, 24
CONFIGS = [
    ReLU(M, 0.1, dead_after=64, k_aux=4),
    ReLU(M, 0.1, norms="free", p_end=0.3, anneal_start=0.1, dead_after=64, k_aux=4),
    Gated(M, 0.1, dead_after=64, k_aux=4),
]
EVERY = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.run_name)


def data() -> Tensor:
    return torch.randn(250, D, generator=torch.Generator().manual_seed(0))


def planted(n: int, d: int, true: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that are sums of `k` of `true` random directions with weights in [0.5, 1.5], and the directions."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(true, d, generator=g), dim=1)
    support = torch.rand(n, true, generator=g).topk(k, dim=1).indices
    weights = torch.rand(n, k, generator=g) + 0.5
    return torch.zeros(n, true).scatter(1, support, weights) @ atoms, atoms


@EVERY
def test_atoms_have_norm_one_after_every_step_and_a_tenfold_rate_gives_no_nan(config: DictionaryConfig) -> None:
    training = Training(n_tokens=200 * 32, batch_size=32, lr=1e-2)
    member = Member("m", config, D, training, torch.device("cpu"))
    x = data()
    x = (x - x.mean(dim=0)) / x.var(dim=0, correction=0).sum().sqrt()
    for step in range(200):
        member.dictionary.schedule_(step / 199)
        rows = torch.randperm(250, generator=torch.Generator().manual_seed(step))[:32]
        objective = member.step(x[rows], 1e-2, 1.0)
        assert bool(torch.isfinite(objective.loss))
        torch.testing.assert_close(member.dictionary.atoms.norm(dim=1), torch.ones(M))
    assert all(bool(torch.isfinite(p).all()) for p in member.dictionary.parameters())


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annealing included: where it stands, its weight and the penalties it remembers are in the checkpoint."""
    settings = Training(n_tokens=40 * 32, batch_size=32, lr=0.01, checkpoint_every=7, normalization_tokens=64)
    whole = train(data(), CONFIGS, settings, out=tmp_path / "whole")
    read, count = ActivationStream.__next__, 0

    def reads(stream: ActivationStream) -> Any:
        nonlocal count
        count += 1
        if count == 25:
            signal.raise_signal(signal.SIGINT)
        return read(stream)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationStream, "__next__", reads)
        with pytest.raises(KeyboardInterrupt):
            train(data(), CONFIGS, settings, out=tmp_path / "parts")
    resumed = train(data(), CONFIGS, settings, out=tmp_path / "parts", resume=True)
    for one, other in zip(whole, resumed, strict=True):
        a, b = (load_file(run.folder / "dictionary.safetensors") for run in (one, other))
        assert {name: t.tolist() for name, t in a.items()} == {name: t.tolist() for name, t in b.items()}
    assert float(load_file(whole[1].folder / "dictionary.safetensors")["anneal_stage"]) == 10


@EVERY
def test_latents_that_were_killed_come_back(config: ReLU | Gated) -> None:
    """Half of the latents are shut; the revival opens most of them again, and without it none returns."""
    back = {}
    for aux in (0.0, 1.0):
        live = replace(config, l1=0.02, p_end=None) if isinstance(config, ReLU) else replace(config, l1=0.02)
        member = Member("m", replace(live, aux=aux), D, Training(n_tokens=1), torch.device("cpu"))
        x, _ = planted(4000, D, M, 2, seed=0)
        x = (x - x.mean(dim=0)) / x.var(dim=0, correction=0).sum().sqrt()
        offsets = dict(member.dictionary.named_parameters())["b_gate" if isinstance(config, Gated) else "b_enc"]
        with torch.no_grad():
            offsets[: M // 2] -= 2.0
        assert not bool((member.dictionary.encode_dense(x)[:, : M // 2] > 0).any())
        for step in range(100):
            rows = torch.randint(0, 4000, (64,), generator=torch.Generator().manual_seed(step))
            member.step(x[rows], 1e-2, 1.0)
        back[aux] = int((member.dictionary.encode_dense(x)[:, : M // 2] > 0).any(dim=0).sum())
    assert back[0.0] == 0
    assert back[1.0] >= M // 4


def test_the_relu_shrinks_more_than_the_gate(tmp_path: Path) -> None:
    """At one penalty: the L1 makes ReLU's values too small, the gate's magnitudes do not carry it."""
    x, _ = planted(22_000, 32, 64, 4, seed=0)
    configs = [ReLU(64, 0.1), ReLU(64, 0.1, norms="free"), ReLU(64, 0.05, p_end=0.3), Gated(64, 0.1)]
    runs = train(x[:20_000], configs, Training(n_tokens=100_000, batch_size=512, lr=8e-3), out=tmp_path)
    bias = []
    for run in runs:
        y = x[20_000:] - run.dictionary.b_dec
        y_hat = run.dictionary(x[20_000:]) - run.dictionary.b_dec
        bias.append(float(y_hat.square().sum() / (y * y_hat).sum()))
    assert bias[0] < 0.95
    assert bias[3] > 0.98


def test_without_its_third_term_the_gates_shut_or_the_gate_shrinks_away(tmp_path: Path) -> None:
    """Gates hear from the penalty alone: sparsity becomes free, which no code needs."""
    x, _ = planted(20_000, 32, 64, 4, seed=0)
    configs = [Gated(64, 0.1), Gated(64, 0.1, gate_aux=0.0)]
    runs = train(x, configs, Training(n_tokens=50_000, batch_size=512, lr=8e-3), out=tmp_path)
    published, without = (run.metrics[-1] for run in runs)
    assert published["parts"]["sparsity"] > 0.05
    assert without["parts"]["sparsity"] < 0.2 * published["parts"]["sparsity"]
