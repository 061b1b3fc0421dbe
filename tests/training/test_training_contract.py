"""What every architecture keeps while it trains: norms, finite weights, exact resume, no latent lost for good."""

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsight.activations import ActivationStream
from sparsight.dictionaries import (
    BatchTopK,
    Crosscoder,
    Gated,
    JumpReLU,
    Matryoshka,
    Pursuit,
    ReLU,
    TopK,
    Transcoder,
)
from sparsight.formats.architectures import ARCHITECTURES as REGISTERED
from sparsight.training import Training, train
from sparsight.training.joined import JoinedStream
from sparsight.training.member import Member

D, M, K = 16, 32, 2
AFTER: dict[str, Any] = {"dead_after": 512}
CONFIGS = [
    TopK(M, K, **AFTER),
    BatchTopK(M, K, **AFTER),
    Matryoshka(M, K, (16,), **AFTER),
    Matryoshka(M, K, sampled=3, **AFTER),
    JumpReLU(M, target_l0=K, **AFTER),
    JumpReLU(M, l0=0.02, **AFTER),
    Pursuit(M, K, **AFTER),
    ReLU(M, 0.1, **AFTER),
    ReLU(M, 0.1, norms="free", p_end=0.5, **AFTER),
    ReLU(M, target_l0=K, **AFTER),
    Gated(M, 0.1, **AFTER),
    Gated(M, 0.1, untied=True, **AFTER),
    Transcoder(M, K, **AFTER),
    Transcoder(M, K, skip=True, **AFTER),
    Crosscoder(M, K, **AFTER),
    Crosscoder(M, l1=0.1, **AFTER),
]
IDS = [f"{i}-{config.run_name}" for i, config in enumerate(CONFIGS)]
every_architecture = pytest.mark.parametrize("config", CONFIGS, ids=IDS)
VARIANT = [config.architecture in {before.architecture for before in CONFIGS[:i]} for i, config in enumerate(CONFIGS)]
variants_slow = pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=[pytest.mark.slow] * variant) for c, variant in zip(CONFIGS, VARIANT, strict=True)],
    ids=IDS,
)
DEAD = 12


def widths(config: Any) -> int | tuple[int, ...]:
    return (D, D) if config.n_sites[0] == 2 else D


def planted(config: Any, seed: int, n: int = 4096) -> Tensor:
    """Sums of 2 of 32 directions, of zero mean and unit total variance; of two sites each has its own directions."""
    g = torch.Generator().manual_seed(9000 + seed)
    support = torch.rand(n, M, generator=g).topk(K, dim=1).indices
    code = torch.zeros(n, M).scatter(1, support, torch.rand(n, K, generator=g) + 0.5)
    sites = []
    for _ in range(config.n_sites[0]):
        x = code @ torch.nn.functional.normalize(torch.randn(M, D, generator=g), dim=1)
        sites.append((x - x.mean(dim=0)) / x.var(dim=0, correction=0).sum().sqrt())
    return torch.cat(sites, dim=1)


def run_of(config: Any, settings: Training, n_dead: int = 0, offset: float = -3.0) -> Member:
    """A member whose first `n_dead` latents are out of reach of every activation."""
    member = Member("run", config, widths(config), settings, torch.device("cpu"))
    parameters = dict(member.dictionary.named_parameters())
    with torch.no_grad():
        if isinstance(config, Pursuit):  # its latents are silent where nothing reads them: copies of one atom
            parameters["atoms"][:n_dead] = parameters["atoms"][n_dead]
        else:
            parameters["b_gate" if isinstance(config, Gated) else "b_enc"][:n_dead] = offset
    return member


def test_every_architecture_that_training_knows_is_in_this_suite() -> None:
    untrained = {"weighted_topk", "matching_pursuit", "token_norm_topk"}  # forms of files, which training refuses
    assert {config.architecture for config in CONFIGS} == set(REGISTERED) - untrained


@variants_slow
def test_ten_times_the_rate_for_two_hundred_steps_keeps_norms_and_gives_no_nan(config: Any) -> None:
    settings = Training(n_tokens=200 * 64, batch_size=64, revive="resample")
    member, x = run_of(config, settings), planted(config, 0)
    for step in range(200):
        rows = x[64 * (step % 64) :][:64]
        objective = member.step(rows, 10 * settings.lr, settings.sparsity_at(step), settings.progress_at(step))
        assert math.isfinite(float(objective.loss.detach()))
        norms = member.dictionary.atoms.norm(dim=1).detach()
        torch.testing.assert_close(norms, torch.ones(M), rtol=1e-6, atol=0)
    assert all(bool(torch.isfinite(p).all()) for p in member.dictionary.parameters())


@every_architecture
@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("revive", ["aux", "resample"])
def test_batches_of_zeros_and_of_constants_leave_everything_finite(config: Any, value: float, revive: str) -> None:
    member = run_of(config, Training(n_tokens=40 * 64, batch_size=64, revive=revive), n_dead=DEAD)
    x = torch.full((64, 2 * D if config.n_sites[0] == 2 else D), value)
    for _ in range(20):
        assert math.isfinite(float(member.step(x, 1e-2, 1.0).loss.detach()))
    assert all(bool(torch.isfinite(p).all()) for p in member.dictionary.parameters())


@every_architecture
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_dead_latents_are_revived_and_stay_alive(config: Any, seed: int) -> None:
    """12 of 32 latents are out of reach; after 160 steps at most 2 of all have been silent for twice `dead_after`."""
    settings = Training(n_tokens=160 * 128, batch_size=128, lr=5e-3, seed=seed, revive="resample", decay=0.1)
    member, x = run_of(config, settings, n_dead=DEAD), planted(config, seed)
    fired = torch.zeros(M, dtype=torch.bool)
    for step in range(settings.n_steps):
        rows = x[128 * (step % 32) :][:128]
        objective = member.step(rows, settings.lr_at(step), settings.sparsity_at(step), settings.progress_at(step))
        fired |= objective.fired
    assert bool(fired.all())
    assert int((member.silent >= 2 * AFTER["dead_after"]).sum()) <= 2


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        pytest.param(
            config, seed, id=f"{config_id}-{seed}", marks=() if config is CONFIGS[0] and seed == 0 else pytest.mark.slow
        )
        for config, config_id in zip(CONFIGS, IDS, strict=True)
        for seed in (0, 1)
    ],
)
def test_dead_latents_are_revived_with_the_default_settings(config: Any, seed: int) -> None:
    """12 of 32 latents are out of reach of every token; all of them, but one at most, become active again."""
    settings = Training(n_tokens=800 * 128, batch_size=128, lr=5e-3, seed=seed)
    member, x = run_of(config, settings, n_dead=DEAD, offset=-1.5), planted(config, seed)
    fired = torch.zeros(M, dtype=torch.bool)
    for step in range(settings.n_steps):
        rows = x[128 * (step % 32) :][:128]
        objective = member.step(rows, settings.lr_at(step), settings.sparsity_at(step), settings.progress_at(step))
        assert step or isinstance(config, Pursuit) or not bool(objective.fired[:DEAD].any())
        fired |= objective.fired
    assert int((~fired).sum()) <= 1


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stream: type, batch: int) -> None:
    """Press Ctrl-C while the given batch is read."""
    count, read = 0, stream.__next__

    def reads(self: Any) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            signal.raise_signal(signal.SIGINT)
        return read(self)

    monkeypatch.setattr(stream, "__next__", reads)


@pytest.mark.parametrize("n_sites", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_runs_that_start_latents_anew_resume_to_the_same_bits(
    n_sites: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [replace(config, dead_after=64) for config in CONFIGS if config.n_sites[0] == n_sites]
    x = planted(configs[0], 0, 250)
    source: Any = x if n_sites == 1 else list(x.split(D, dim=1))
    settings = Training(
        n_tokens=40 * 32, batch_size=32, lr=0.01, normalization_tokens=64, checkpoint_every=7, revive="resample"
    )
    whole = train(source, configs, settings, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, ActivationStream if n_sites == 1 else JoinedStream, 2 + 17)
        with pytest.raises(KeyboardInterrupt):
            train(source, configs, settings, out=tmp_path / "parts")
    for one, other in zip(whole, train(source, configs, settings, out=tmp_path / "parts", resume=True), strict=True):
        a, b = (load_file(run.folder / "dictionary.safetensors") for run in (one, other))
        assert {name: t.tolist() for name, t in a.items()} == {name: t.tolist() for name, t in b.items()}


def test_a_latent_starts_at_the_residual_of_a_token_and_its_averages_are_those_of_the_living() -> None:
    """One token lacks a whole direction, all others are reconstructed: both dead latents cannot but one take it."""
    member = run_of(TopK(M, K, **AFTER), Training(n_tokens=100_000, revive="resample"), n_dead=1)
    member.step(planted(TopK(M, K), 0)[:64], 1e-3, 1.0)
    dictionary = member.dictionary
    with torch.no_grad():
        dictionary.b_enc[1:] = 0
    x = torch.zeros(64, D)
    x[17] = torch.randn(D, generator=torch.Generator().manual_seed(3))
    residual = (x - dictionary(x))[17].detach()
    member.silent[0] = AFTER["dead_after"]
    with torch.no_grad():
        dictionary.b_dec.zero_()
    member.step(x, 1e-12 + 1e-3, 1.0)
    cosine = float(dictionary.atoms[0].detach() @ residual / residual.norm())
    assert cosine > 0.99
    torch.testing.assert_close(dictionary.W_enc[:, 0], dictionary.atoms[0])
    state = member.rule.optimizer.state[dictionary.W_enc]
    assert float(state["exp_avg"][:, 0].abs().max()) == 0
    torch.testing.assert_close(state["exp_avg_sq"][:, 0], state["exp_avg_sq"][:, 1:].mean().expand(D))
    assert int(member.silent[0]) == 0


def test_nothing_starts_anew_once_the_rate_has_fallen_to_half() -> None:
    member = run_of(TopK(M, K, **AFTER), Training(n_tokens=100_000, revive="resample"), n_dead=DEAD)
    member.silent[:DEAD] = AFTER["dead_after"]
    atoms = member.dictionary.atoms[:DEAD].detach().clone()
    member.step(planted(TopK(M, K), 0)[:64], 0.49e-3, 1.0)
    torch.testing.assert_close(member.dictionary.atoms[:DEAD].detach(), atoms)
    member.step(planted(TopK(M, K), 0)[:64], 0.5e-3, 1.0)
    assert float((member.dictionary.atoms[:DEAD].detach() - atoms).norm(dim=1).min()) > 0.1


def test_latents_cut_into_shards_are_revived_through_the_loss_only() -> None:
    with pytest.raises(ValueError, match="auxiliary loss only"):
        Training(n_tokens=1, parallel="latents", revive="resample")
