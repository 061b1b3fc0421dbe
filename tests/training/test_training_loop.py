"""What every architecture must do while it trains."""

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsight.activations import ActivationStream
from sparsight.dictionaries import DictionaryConfig, JumpReLU, Pursuit, TopK
from sparsight.errors import TrainingError
from sparsight.formats import load_dictionary
from sparsight.models import Site
from sparsight.training import Training, train
from sparsight.training.member import Member
from sparsight.training.normalization import fit_normalization

WITH_ENCODER = [TopK(32, 4, dead_after=200), JumpReLU(32, target_l0=4, dead_after=200)]
ARCHITECTURES = [*WITH_ENCODER, Pursuit(32, 4, dead_after=200)]
every_architecture = pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: c.architecture)
every_encoder = pytest.mark.parametrize("config", WITH_ENCODER, ids=lambda c: c.architecture)
D = 12


def data(n: int = 512, seed: int = 0) -> Tensor:
    """Sparse sums of fixed directions about a large mean, in units far from 1."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(30, D, generator=torch.Generator().manual_seed(99))
    active = torch.rand(n, 30, generator=g) < 0.1
    return 5 * (active * torch.rand(n, 30, generator=g)) @ directions + 7


def member(config: DictionaryConfig, **settings: object) -> Member:
    return Member("run", config, D, Training(n_tokens=10_000, **settings), torch.device("cpu"))


@lru_cache
def normalized(n: int = 256, seed: int = 0) -> Tensor:
    x = data(n, seed)
    return fit_normalization([x]).apply(x)


@every_architecture
def test_atoms_have_unit_norm_after_every_step(config: DictionaryConfig) -> None:
    trained = member(config)
    for seed in range(5):
        trained.step(normalized(seed=seed), 0.05, 1.0)
        torch.testing.assert_close(trained.dictionary.atoms.norm(dim=1).detach(), torch.ones(32), rtol=1e-6, atol=0)


@every_encoder
def test_the_optimiser_only_sees_gradients_tangent_to_the_sphere(config: DictionaryConfig) -> None:
    trained = member(config)
    before = trained.dictionary.atoms.detach().clone()
    trained.step(normalized(), 0.01, 1.0)
    # After the first step the average is a multiple of the projected gradient.
    average = trained.rule.optimizer.state[trained.dictionary.atoms]["exp_avg"]
    assert average.norm() > 0
    assert (average * before).sum(dim=1).abs().max() < 1e-6 * average.norm()


@every_architecture
def test_ten_times_the_learning_rate_for_two_hundred_steps_gives_no_nan(config: DictionaryConfig) -> None:
    trained = member(config)
    for step in range(200):
        objective = trained.step(normalized(64, step % 8), 10 * Training(n_tokens=1).lr, 1.0)
        assert math.isfinite(float(objective.loss.detach()))
    assert all(bool(torch.isfinite(p).all()) for p in trained.dictionary.parameters())


@every_encoder
@pytest.mark.parametrize(("aux", "revived"), [(1 / 32, range(12, 17)), (0.0, range(1))])
def test_latents_pushed_out_of_reach_come_back_through_the_auxiliary_loss_and_only_through_it(
    config: DictionaryConfig, aux: float, revived: range
) -> None:
    trained = member(replace(config, aux=aux))
    with torch.no_grad():
        trained.dictionary.b_enc[:16] = -2.0
    fired = torch.zeros(16, dtype=torch.bool)
    for step in range(250):
        fired |= trained.step(normalized(128, step % 8), 0.01, 1.0).fired[:16]
    assert int(fired.sum()) in revived


@every_architecture
def test_multiplying_the_activations_changes_no_measurement(config: DictionaryConfig, tmp_path: Path) -> None:
    settings = Training(n_tokens=8192, batch_size=256, log_every=4)
    plain = train(data(), [config], settings, out=tmp_path / "plain")[0]
    scaled = train(1000 * data(), [config], settings, out=tmp_path / "scaled")[0]
    for a, b in zip(plain.metrics, scaled.metrics, strict=True):
        assert a["fvu"] == pytest.approx(b["fvu"], rel=2e-3)
    torch.testing.assert_close(1000 * plain.dictionary(data()), scaled.dictionary(1000 * data()), rtol=0.02, atol=50)


@every_architecture
def test_training_lowers_the_error_and_the_result_takes_raw_activations(
    config: DictionaryConfig, tmp_path: Path
) -> None:
    run = train(data(2048), [config], Training(n_tokens=40_000, batch_size=128, lr=8e-3), out=tmp_path)[0]
    x = data(512, seed=1)
    fvu = float((x - run.dictionary(x)).square().sum() / (x - x.mean(dim=0)).square().sum())
    assert fvu < 0.15
    assert fvu == pytest.approx(run.metrics[-1]["fvu"], rel=0.3)
    assert run.folder == tmp_path / config.run_name
    assert torch.equal(load_dictionary(run.folder)(x), run.dictionary(x))
    assert run.dictionary.provenance["tokens_seen"] == 40_064
    assert run.dictionary.provenance["training"]["lr"] == 8e-3


def test_a_dictionary_does_not_depend_on_its_companions(tmp_path: Path) -> None:
    settings = Training(n_tokens=4096, batch_size=256)
    together = train(data(), ARCHITECTURES, settings, out=tmp_path / "both")
    alone = train(data(), ARCHITECTURES[1:], settings, out=tmp_path / "one")
    assert torch.equal(together[1].dictionary.atoms, alone[0].dictionary.atoms)


def test_equal_run_names_are_numbered_and_equal_configs_refused(tmp_path: Path) -> None:
    settings = Training(n_tokens=256, batch_size=256)
    runs = train(data(), [TopK(32, 4), TopK(32, 4, aux=0.0)], settings, out=tmp_path)
    assert [run.folder.name for run in runs] == ["topk-32-k4", "topk-32-k4-2"]
    with pytest.raises(ValueError, match="configs 0 and 1 are equal"):
        train(data(), [TopK(32, 4), TopK(32, 4)], settings, out=tmp_path / "equal")
    with pytest.raises(ValueError, match="at least one dictionary"):
        train(data(), [], settings, out=tmp_path / "none")


def test_a_row_with_nan_is_named(tmp_path: Path) -> None:
    x = data()
    x[[17, 40], 3] = math.nan
    with pytest.raises(TrainingError, match="row 17 of the tensor holds NaN or infinity"):
        train(x, [TopK(32, 4)], Training(n_tokens=512, batch_size=256), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_activations_that_do_not_vary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="all equal"):
        train(torch.full((300, 4), 1e4), [TopK(8, 2)], Training(n_tokens=512, batch_size=256), out=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Training(n_tokens=20 * 64, batch_size=64, checkpoint_every=5, normalization_tokens=64)
    read, count = ActivationStream.__next__, 0

    def reads(stream: ActivationStream) -> Tensor:
        nonlocal count
        count += 1
        batch = read(stream)
        return batch * 1e30 if count == 10 else batch

    monkeypatch.setattr(ActivationStream, "__next__", reads)
    with pytest.raises(TrainingError, match=r"topk-32-k4: the loss is (inf|nan).*lower lr"):
        train(data(), [TopK(32, 4)], settings, out=tmp_path)
    monkeypatch.undo()
    resumed = train(data(), [TopK(32, 4)], settings, out=tmp_path, resume=True)[0]
    fresh = train(data(), [TopK(32, 4)], settings, out=tmp_path / "fresh")[0]
    assert torch.equal(resumed.dictionary.atoms, fresh.dictionary.atoms)


def test_a_stream_must_have_the_batch_size_of_the_training(tmp_path: Path) -> None:
    stream = ActivationStream(data(), None, 64, 0)
    with pytest.raises(ValueError, match=r"batch_size is 64, the training's 32"):
        train(stream, [TopK(32, 4)], Training(n_tokens=64, batch_size=32), out=tmp_path)
    run = train(stream, [TopK(32, 4)], Training(n_tokens=128, batch_size=64), out=tmp_path)[0]
    assert run.metrics[-1]["tokens"] == 128


def test_fitting_the_normalisation_takes_no_batch_from_the_training(tmp_path: Path) -> None:
    trained_on, read = ActivationStream(data(), None, 64, 0), ActivationStream(data(), None, 64, 0)
    train(trained_on, [TopK(32, 4)], Training(n_tokens=5 * 64, batch_size=64), out=tmp_path)
    for _ in range(5):
        next(read)
    assert trained_on.state() == read.state()


def test_the_site_of_a_tensor_is_recorded_when_it_is_said(tmp_path: Path) -> None:
    settings = Training(n_tokens=256, batch_size=256)
    run = train(data(), [TopK(32, 4)], settings, out=tmp_path, site="2.resid_post")[0]
    assert load_dictionary(run.folder).site == Site(2, "resid_post")


def test_the_schedule_is_a_trapezoid_that_is_never_zero() -> None:
    settings = Training(n_tokens=1000, batch_size=10, lr=2.0, warmup=0.1, decay=0.2, sparsity_warmup=0.5)
    rates = [settings.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:81] == [2.0] * 72
    assert rates[99] == pytest.approx(0.1)
    assert rates[90] == pytest.approx(1.0)
    assert [settings.sparsity_at(step) for step in (0, 24, 49, 99)] == pytest.approx([0.02, 0.5, 1, 1])


def test_the_normalisation_equals_the_two_pass_formula_where_the_mean_is_large() -> None:
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) + 1e4
    fitted = fit_normalization([x[:300], x[300:301], x[301:]])
    exact = x.double()
    variance = float((exact - exact.mean(dim=0)).square().sum(dim=1).mean())
    torch.testing.assert_close(fitted.mean, exact.mean(dim=0).float())
    assert fitted.scale == pytest.approx(variance**-0.5, rel=1e-9)
    assert float(fitted.apply(x).square().sum(dim=1).mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_tokens": 0}, "n_tokens must be a positive number, got n_tokens=0"),
        ({"n_tokens": 1, "lr": 0.0}, r"lr must be a positive number, got lr=0\.0"),
        ({"n_tokens": 1, "batch_size": 0}, "batch_size"),
        ({"n_tokens": 1, "warmup": 1.5}, "warmup is a fraction of the steps"),
        ({"n_tokens": 1, "betas": (0.9, 1.0)}, "betas must lie in"),
        ({"n_tokens": 1, "clip": 0.0}, "clip"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Training(**wrong)
