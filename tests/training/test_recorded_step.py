"""The step on CUDA, recorded and played back: on a CPU, in Triton's interpreter, with a tape for a graph."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, JumpReLU, Matryoshka, TopK
from sparsight.errors import TrainingError
from sparsight.training import Training
from sparsight.training.compiled import activation
from sparsight.training.compiled.recorded import WARM, Recorded
from sparsight.training.compiled.step import CompiledStep
from sparsight.training.member import Member

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU graphs are recorded: test_cuda_step.py")

NEVER = {"dead_after": 10**6}
CONFIGS = [
    TopK(6, 2, **NEVER),
    BatchTopK(6, 2, **NEVER),
    Matryoshka(6, 2, widths=(2, 4), weights=(0.5, 2.0), **NEVER),
]


def member(config: DictionaryConfig, *, recorded: bool) -> Member:
    from reference.tape import record

    from sparsight.training.compiled.cuda import CudaLoops

    class Loops(CudaLoops):
        def __init__(self, encoder: Tensor) -> None:
            super().__init__(encoder)
            self.record = record if recorded else None

    training = Training(n_tokens=1000, batch_size=3, step="sparse", clip=0.05)
    it = Member("it", config, 5, training, torch.device("cpu"))
    rule: Any = it.rule
    rule.compiled = CompiledStep(it.dictionary, Loops)
    return it


def batch(seed: int, n: int = 3) -> Tensor:
    drawn: Tensor = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return drawn / 5**0.5


def played(it: Member) -> tuple[int, int]:
    """How many gradients, and how many moves, came from recordings."""
    rule: Any = it.rule
    return rule.compiled.recorded.played, rule.compiled.recorded_move.played


def assert_same_step(ours: Member, theirs: Member, x: Tensor, lr: float = 1e-2) -> None:
    one, other = (it.step(x, lr, 1.0) for it in (ours, theirs))
    assert torch.equal(one.loss, other.loss)
    assert one.parts == other.parts
    assert torch.equal(one.fired, other.fired)
    expected = theirs.tensors()
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_a_recorded_step_is_the_step(config: DictionaryConfig) -> None:
    """Bit for bit: other batches, other rates, gradients clipped by other factors."""
    ours, theirs = member(config, recorded=True), member(config, recorded=False)
    for step in range(WARM + 2):
        assert_same_step(ours, theirs, batch(step) * (1 + step), 1e-2 / (1 + step))
    assert played(ours) == (2, 2)


def test_steps_of_other_shapes_and_dead_latents_come_in_between() -> None:
    config = TopK(6, 2, **NEVER)
    ours, theirs = member(config, recorded=True), member(config, recorded=False)
    for step in range(WARM + 1):
        assert_same_step(ours, theirs, batch(step))
    assert_same_step(ours, theirs, batch(10, n=2))
    assert_same_step(ours, theirs, batch(11))
    assert played(ours) == (2, 2)
    for it in (ours, theirs):
        it.silent[:2] = 10**6
    assert_same_step(ours, theirs, batch(12))
    assert played(ours) == (2, 2)
    for it in (ours, theirs):
        it.silent.zero_()
    assert_same_step(ours, theirs, batch(13))
    assert played(ours) == (3, 3)
    assert_same_step(ours, theirs, batch(14, n=4))  # takes larger memory, where the recording does not look
    assert_same_step(ours, theirs, batch(15))
    assert played(ours) == (3, 3)


def test_what_a_step_returned_is_not_written_over_by_the_next() -> None:
    it = member(TopK(6, 2, **NEVER), recorded=True)
    kept = []
    for step in range(WARM + 2):
        objective = it.step(batch(step), 1e-2, 1.0)
        kept.append((objective, objective.loss.clone(), objective.l0.clone(), objective.fired.clone()))
    for objective, loss, l0, fired in kept:
        assert torch.equal(objective.loss, loss)
        assert torch.equal(objective.l0, l0)
        assert torch.equal(objective.fired, fired)


def test_gradients_of_a_recorded_step_can_be_looked_at() -> None:
    config = TopK(6, 2, **NEVER)
    found = []
    for it in (member(config, recorded=True), member(config, recorded=False)):
        rule: Any = it.rule
        compiled = rule.compiled
        for step in range(WARM + 2):
            it.dictionary.zero_grad()
            compiled.gradients(batch(step), it.dead, 1.0)
        found.append(compiled.dense_gradients() | {"norm": compiled.gradient_norm()})
        assert compiled.recorded is None or compiled.recorded.played == 2
    ours, theirs = found
    assert ours.keys() == theirs.keys()
    assert ours.keys() >= {"atoms", "W_enc", "b_enc", "b_dec"}
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name


def test_restored_averages_are_those_that_move() -> None:
    """Adam's averages lie elsewhere then, and a recording would go on with the old ones."""
    config = TopK(6, 2, **NEVER)
    ours, theirs = member(config, recorded=True), member(config, recorded=False)
    start = {name: tensor.clone() for name, tensor in ours.tensors().items()}
    for step in range(WARM + 1):
        ours.step(batch(step), 1e-2, 1.0)
    theirs.step(batch(0), 1e-2, 1.0)
    held = {name: tensor.clone() for name, tensor in theirs.tensors().items()}
    assert held.keys() >= start.keys()
    for it in (ours, theirs):
        it.restore(held)
    assert_same_step(ours, theirs, batch(1))
    assert played(ours) == (1, 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    it = member(TopK(6, 2, **NEVER), recorded=True)
    for step in range(WARM + 1):
        it.step(batch(step), 1e-2, 1.0)
    before = {name: tensor.clone() for name, tensor in it.tensors().items()}
    with pytest.raises(TrainingError, match="lower lr"):
        it.step(batch(9) * 1e30, 1e-2, 1.0)
    for name, tensor in it.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_a_step_of_jumprelu_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many of its latents learn differs from batch to batch, though not here."""
    monkeypatch.setattr(activation, "DENSE_FROM", 1)
    it = member(JumpReLU(6, target_l0=2, threshold=0.3, bandwidth=0.2), recorded=True)
    for _ in range(WARM + 1):
        it.step(batch(0), 0.0, 1.0)
    assert played(it) == (0, 0)


def test_outside_the_choice_of_latents_the_host_waits_twice() -> None:
    """For whether latents are dead; for the loss and the length of its gradient."""
    from reference.tape import Operations

    it = member(TopK(6, 2, **NEVER), recorded=False)
    it.step(batch(0), 1e-2, 1.0)
    rule: Any = it.rule
    found = rule.compiled.activation.slots(batch(1))
    with patch.object(rule.compiled.activation, "slots", lambda centred: found), Operations() as noted:
        it.step(batch(1), 1e-2, 1.0)
    assert len(noted.waits) == 2, noted.waits


def test_work_is_recorded_when_the_same_key_has_come_often_enough_in_a_row() -> None:
    done: list[str] = []

    class Playback:
        def __init__(self, key: str) -> None:
            self.key = key

        def replay(self) -> None:
            done.append(f"replay {self.key}")

    def record(work: Any) -> tuple[str, Playback]:
        key = work()
        done[-1] = f"record {key}"
        return key, Playback(key)

    recorded: Recorded[str] = Recorded(record, warm=1)

    def call(key: str) -> bool:
        def work() -> str:
            done.append(key)
            return key

        found, again = recorded(key, work)
        assert found == key
        return again

    assert [call(key) for key in "aababbb"] == [False, True, False, True, False, True, True]
    assert done == ["a", "record a", "replay a", "b", "replay a", "b", "record b", "replay b", "replay b"]
    recorded.forget()
    assert not call("b")
    assert recorded.played == 4
