"""A penalised dictionary ends with the mean L0 that was asked for; the controller's law in closed form."""

import math
from pathlib import Path

import pytest
from test_training_recovery import TRUE, planted

from sparsight.dictionaries import DictionaryConfig, Gated, ReLU
from sparsight.training import Training, train
from sparsight.training.controller import BOUND, L0Controller


def test_l0_in_proportion_to_the_inverse_gain_is_brought_to_its_target() -> None:
    controller = L0Controller(50.0, 1000)
    for _ in range(1000):
        controller.observe(400.0 / controller.gain, 1.0)
    assert controller.gain == pytest.approx(8.0, rel=1e-3)
    assert not controller.at_bound


def test_the_gain_settles_with_the_learning_rate() -> None:
    controller = L0Controller(50.0, 1000)
    controller.observe(100.0, 0.0)
    assert float(controller.log_gain) == 0
    controller.observe(100.0, 0.5)
    assert float(controller.log_gain) == pytest.approx(0.5 * math.log(2) / 30)


def test_a_target_out_of_reach_drives_the_gain_to_its_bound_and_no_further() -> None:
    controller = L0Controller(50.0, 1000)
    for _ in range(1000):
        controller.observe(400.0, 1.0)
    assert controller.at_bound
    assert controller.gain == pytest.approx(math.exp(BOUND))


def reached(config: DictionaryConfig, seed: int, out: Path) -> float:
    """Mean L0 on new planted data after 500 steps."""
    x, _ = planted(22_000, seed)
    settings = Training(n_tokens=128_000, batch_size=256, lr=5e-3, seed=seed)
    [run] = train(x[:20_000], [config], settings, out=out)
    assert run.metrics[-1]["gain"] != 1
    return float(run.dictionary.encode(x[20_000:]).l0().float().mean())


def test_the_l0_asked_for_is_reached_on_new_data(tmp_path: Path) -> None:
    assert reached(ReLU(TRUE, target_l0=8.0, dead_after=5_000), 0, tmp_path) == pytest.approx(8, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [ReLU, Gated])
@pytest.mark.parametrize("target", [4.0, 8.0, 16.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_seed_reaches_the_l0_asked_for(
    architecture: type[DictionaryConfig], target: float, seed: int, tmp_path: Path
) -> None:
    l0 = reached(architecture(TRUE, target_l0=target, dead_after=5_000), seed, tmp_path)
    assert l0 == pytest.approx(target, rel=0.05)
