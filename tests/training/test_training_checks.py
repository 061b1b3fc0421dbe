"""Each early warning is given where it is planted, and only there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import JumpReLU, ReLU, TopK
from sparsight.training import Training, train

D = 12
SETTINGS = Training(n_tokens=20 * 128, batch_size=128, log_every=5, normalization_tokens=256)


def data(n: int = 1024) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def warnings_of(x: Any, config: Any, out: Path, settings: Training = SETTINGS) -> list[str]:
    [run] = train(x, [config], settings, out=out)
    return [text for line in run.metrics for text in line.get("warnings", [])]


QUIET = TopK(32, 4, dead_after=1000)


@pytest.mark.parametrize("config", [QUIET, JumpReLU(32, target_l0=4, dead_after=1000), ReLU(32, 0.05, dead_after=1000)])
def test_a_run_that_can_work_is_not_warned_about(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert warnings_of(data(), config, tmp_path) == []
    assert capsys.readouterr().err == ""


def few_dimensions() -> Tensor:
    return data() * torch.tensor([100.0, *([1.0] * (D - 1))])


def outliers() -> Tensor:
    x = data()
    x[::128] *= 100
    return x


@pytest.mark.parametrize(
    ("x", "config", "said"),
    [
        (data(), JumpReLU(32, l0=0.0, threshold=100.0, dead_after=1000), "no latent fired in a whole batch"),
        (data(), JumpReLU(32, target_l0=4, bandwidth=1e-7, dead_after=1000), "thresholds cannot learn"),
        (data(), TopK(32, 4, dead_after=10_000), "never acts; lower dead_after"),
        (data(), TopK(32, 4, dead_after=100), "raise dead_after"),
        (data(), TopK(32, 4, dead_after=1000, k_aux=33), "k_aux=33 exceeds the 32 latents"),
        (few_dimensions(), QUIET, "1 of 12 dimensions hold 100% of the variance"),
        (outliers(), QUIET, "1 of 128 tokens hold .*outliers"),
    ],
)
def test_a_planted_fault_is_named_once_in_the_metrics_and_on_stderr(
    x: Tensor, config: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import re

    found = [text for text in warnings_of(x, config, tmp_path) if re.search(said, text)]
    assert len(found) == 1
    assert capsys.readouterr().err.count(found[0]) == 1


def test_nearly_all_latents_firing_is_named(tmp_path: Path) -> None:
    x = torch.nn.functional.normalize(data(), dim=1)
    config = JumpReLU(1, l0=0.0, threshold=1e-6, bandwidth=0.5, dead_after=1000)
    from sparsight.training.checks import early_warnings
    from sparsight.training.member import Member

    member = Member("run", config, D, SETTINGS, torch.device("cpu"))
    with torch.no_grad():
        member.dictionary.b_enc += 1
    found = early_warnings(member, x[:128], member.step(x[:128], 1e-3, 1.0), SETTINGS, 1)
    assert any("1 of 1 latents fire in every token" in text for text in found)


def test_data_that_grow_after_the_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsight.activations import ActivationStream

    read, count = ActivationStream.__next__, 0

    def reads(stream: ActivationStream) -> Tensor:
        nonlocal count
        count += 1
        return read(stream) * (2 if count > 2 else 1)  # the fit takes two batches

    monkeypatch.setattr(ActivationStream, "__next__", reads)
    [text] = warnings_of(data(), QUIET, tmp_path)
    assert "times the variance that the normalization was fitted to" in text


def test_a_target_l0_out_of_reach_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsight.training.controller.BOUND", 1e-3)
    found = warnings_of(data(), ReLU(32, target_l0=1.0, dead_after=1000), tmp_path)
    assert any("target_l0=1 is out of reach" in text for text in found)


def test_a_resumed_run_does_not_warn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TopK(32, 4, dead_after=10_000)
    with monkeypatch.context() as patch:
        patch.setattr("sparsight.training.loop._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError):
            train(data(), [config], Training(**{**SETTINGS.__dict__, "checkpoint_every": 7}), out=tmp_path)
    [run] = train(data(), [config], Training(**{**SETTINGS.__dict__, "checkpoint_every": 7}), out=tmp_path, resume=True)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "warnings" in line] == [1]


def test_resampling_that_never_comes_is_named_and_the_auxiliary_loss_is_not(tmp_path: Path) -> None:
    config = TopK(32, 4, dead_after=10_000, k_aux=33)
    [said] = warnings_of(data(), config, tmp_path, replace(SETTINGS, revive="resample"))
    assert "none is resampled; lower dead_after" in said
    assert "auxiliary" not in said
