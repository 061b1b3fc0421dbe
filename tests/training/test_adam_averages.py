"""Adam's steps: those of torch's class, without what that class loads."""

import subprocess
import sys

import torch
from torch.nn import Parameter

from sparsight.training.averages import Adam, Group

BETAS, EPS, LR = (0.8, 0.97), 1e-10, 0.03


def parameters() -> list[Parameter]:
    g = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=g)) for shape in ((5, 3), (3, 4), (7,))]


def test_steps_are_those_of_torchs_class_bit_for_bit() -> None:
    """Groups move at their own rates; a parameter without a gradient stays, and its averages with it."""
    ours, theirs = parameters(), parameters()
    ours[1].data, theirs[1].data = ours[1].data.T.contiguous().T, theirs[1].data.T.contiguous().T
    adam = Adam([Group(ours[:2]), Group(ours[2:], rate=0.25)], BETAS, EPS)
    groups = [{"params": theirs[:2]}, {"params": theirs[2:], "lr": LR / 4}]
    other = torch.optim.Adam(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    g = torch.Generator().manual_seed(1)
    for step in range(3):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=g)
            a.grad = b.grad = None if (step, number) == (1, 0) else gradient
        adam.step(LR)
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert adam.averages(a).keys() == other.state[b].keys()
        for name, average in adam.averages(a).items():
            assert torch.equal(average, other.state[b][name]), name
            assert average.stride() == other.state[b][name].stride()
    adam.clear_gradients()
    assert all(p.grad is None for p in ours)


def test_a_step_of_training_does_not_load_torchs_compiler() -> None:
    """It takes 140 MB and seconds, for nothing."""
    script = """
import sys, torch
from sparsight.dictionaries import TopK
from sparsight.training import Training
from sparsight.training.member import Member
it = Member("it", TopK(16, 2), 8, Training(n_tokens=100, batch_size=4), torch.device("cpu"))
it.step(torch.randn(4, 8), 1e-3, 1.0)
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
