"""Batches in parts, bfloat16, averaged weights, cosine decay: each against what it must equal."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import Gated, JumpReLU, ReLU, TopK
from sparsight.training import Training, train
from sparsight.training.member import Member

D = 12
CONFIGS = [TopK(32, 4), ReLU(32, 0.05), Gated(32, 0.05), JumpReLU(32, l0=0.01)]
every_architecture = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.architecture)


def data(n: int = 256, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(30, D, generator=torch.Generator().manual_seed(9)), dim=1)
    active = torch.rand(n, 30, generator=g) < 0.1
    x = (active * torch.rand(n, 30, generator=g)) @ directions
    return x / x.square().sum(dim=1).mean().sqrt()


def member(config: object, **settings: object) -> Member:
    return Member("run", config, D, Training(n_tokens=10_000, **settings), torch.device("cpu"))


@every_architecture
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_moves_the_weights_as_the_whole_batch_does(config: object, parts: int) -> None:
    whole, cut = member(config), member(config, accumulate=parts)
    one, other = whole.step(data(), 0.01, 1.0), cut.step(data(), 0.01, 1.0)
    torch.testing.assert_close(one.loss.detach(), other.loss)
    torch.testing.assert_close(one.l0.double(), other.l0.double(), check_dtype=False)
    assert torch.equal(one.fired, other.fired)
    for (name, a), b in zip(whole.dictionary.named_parameters(), cut.dictionary.parameters(), strict=True):
        first, second = whole.rule.optimizer.state[a]["exp_avg"], cut.rule.optimizer.state[b]["exp_avg"]
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-8, msg=name)


@every_architecture
def test_bfloat16_changes_the_objective_by_its_rounding_only_and_the_weights_stay_float32(config: object) -> None:
    exact, rounded = member(config), member(config, precision="bf16")
    one, other = exact.step(data(), 0.01, 1.0), rounded.step(data(), 0.01, 1.0)
    assert other.loss.dtype == torch.float32
    assert float(other.loss.detach()) == pytest.approx(float(one.loss.detach()), rel=0.01)
    assert float(other.loss.detach()) != float(one.loss.detach())
    assert all(p.dtype == torch.float32 for p in rounded.dictionary.parameters())


def test_the_average_is_the_mean_of_all_steps_until_its_window_is_full() -> None:
    trained = member(TopK(32, 4), ema=0.75)
    assert trained.average is not None
    seen = []
    for seed in range(6):
        trained.step(data(seed=seed), 0.01, 1.0)
        seen.append(trained.dictionary.b_enc.detach().clone())
        if seed < 4:
            torch.testing.assert_close(trained.average.averages["b_enc"], torch.stack(seen).mean(dim=0))
    expected = 0.75 * (0.75 * torch.stack(seen[:4]).mean(dim=0) + 0.25 * seen[4]) + 0.25 * seen[5]
    torch.testing.assert_close(trained.average.averages["b_enc"], expected)
    finished = trained.finished()
    torch.testing.assert_close(finished.b_enc, expected)
    torch.testing.assert_close(finished.atoms.norm(dim=1), torch.ones(32))


def test_the_saved_dictionary_is_the_average_and_says_so(tmp_path: Path) -> None:
    settings = Training(n_tokens=20 * 64, batch_size=64, lr=0.01)
    [last] = train(data(), [TopK(32, 4)], settings, out=tmp_path / "last")
    [mean] = train(data(), [TopK(32, 4)], replace(settings, ema=0.9), out=tmp_path / "mean")
    assert mean.dictionary.provenance["weights"] == "average over the steps, ema=0.9"
    assert "weights" not in last.dictionary.provenance
    assert not torch.allclose(last.dictionary.W_enc, mean.dictionary.W_enc)
    assert [line["loss"] for line in last.metrics] == [line["loss"] for line in mean.metrics]


def test_cosine_decay_is_half_way_down_in_the_middle_and_ends_flat() -> None:
    settings = Training(n_tokens=1000, batch_size=10, lr=2.0, warmup=0.1, decay=0.5, decay_shape="cosine")
    rates = [settings.lr_at(step) for step in range(100)]
    assert rates[9:51] == [2.0] * 42
    assert rates[75] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 - math.cos(math.pi / 50))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"accumulate": 0}, "accumulate must be between 1 and batch_size=2048"),
        ({"ema": 1.0}, "ema must lie between 0 and 1"),
        ({"precision": "fp16"}, "precision must be one of float32, bf16, got 'fp16'"),
        ({"decay_shape": "step"}, "decay_shape must be one of linear, cosine"),
        ({"parallel": "model"}, "parallel must be one of data, latents"),
    ],
)
def test_choices_that_do_not_exist_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Training(n_tokens=1, **wrong)
