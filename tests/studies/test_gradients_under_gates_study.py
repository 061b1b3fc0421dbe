"""Gradients under gates: the parts with known answers, the rule that decides, and the whole (slow)."""

from pathlib import Path

import pytest
import torch

from sparsight.studies import Options, run_study
from sparsight.studies.gradients_under_gates import _verdict
from sparsight.studies.gradients_under_gates_measured import FAST, Plan, one_gate, planted
from sparsight.studies.planted import random_atoms
from sparsight.studies.record import UNDECIDED, Effect


def test_through_one_gate_every_rule_tends_to_minus_the_jump():
    found = one_gate([5, 1000])
    for values in found.values():
        assert values[1] == pytest.approx(-0.37, abs=1e-2)
    # Left points 0, .2, .4, .6, .8: three of them behind the gate.
    assert found["left"][0] == pytest.approx(0.6 - 1)


def test_what_many_steps_leave_out_of_planted_jumps_is_their_sum():
    """JumpReLU's jumps on a straight path are `v tanh(0.8)` for each gate that is open at one end alone."""
    plan = Plan(**{**FAST.__dict__, "many": 400, "steps": (1,)})
    found = planted(plan, seed=3)
    n = plan.n_planted
    data = random_atoms(3 + 7919, 32, 64, 4, 0.05, 2 * n)
    v = torch.randn(64, generator=torch.Generator().manual_seed(3 + 104_729), dtype=torch.float64)
    pre = data.x @ data.atoms.T
    value = torch.where(pre > 0.8, pre.tanh(), 0.0) @ v
    is_open = (pre > 0.8).double()
    jumps = (is_open[n:] - is_open[:n]) * torch.tensor(0.8, dtype=torch.float64).tanh() @ v
    expected = float(jumps.abs().sum() / (value[n:] - value[:n]).abs().sum())
    assert found["jumprelu"]["many"][0] == pytest.approx(expected, rel=0.05)
    assert expected > 0.3
    assert found["relu"]["many"][0] < 0.01


def effect(low: float, high: float) -> Effect:
    return Effect(name="x: 50 steps", value=(low + high) / 2, low=low, high=high, n=8, unit="share, over sequences")


def test_intervals_decide():
    cases = {
        "yes": [(0.0, 0.01), (0.02, 0.04)],
        "no": [(0.06, 0.1), (0.3, 0.5)],
        "depends on the architecture": [(0.0, 0.01), (0.3, 0.5)],
        UNDECIDED: [(0.0, 0.1), (0.3, 0.5)],
    }
    for answer, ends in cases.items():
        assert _verdict("?", [effect(*end) for end in ends], "With {n} steps").answer == answer


@pytest.mark.slow
def test_the_study_runs_fast(tmp_path: Path):
    record = run_study("gradients-under-gates", tmp_path / "s", Options(fast=True)).record
    assert len(record.verdicts) == 5
    assert record.verdicts[0].answer != "yes"
    assert record.verdicts[1].answer == "yes"
