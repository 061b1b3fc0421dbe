"""Shared by all tests: no network, few threads, one place for the real model's folder."""

import os
from collections.abc import Iterator
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import jaxtyping
import pytest
import torch

# Triton reads this when it is imported, which any test may do: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_CHECKED_STEPS = 4  # of each member, and every sixteenth after them


@pytest.fixture(autouse=True, scope="session")
def shapes_are_checked_in_some_steps_of_each_run() -> Iterator[None]:
    """Checking the shapes of every call costs most of a short step's time, and a run's steps are all alike."""
    from sparsight.training.member import Member  # not above: the checks are put in when a module is first imported

    step = Member.step
    taken: WeakKeyDictionary[Member, int] = WeakKeyDictionary()

    @wraps(step)
    def sometimes_checked(member: Member, *given: Any, **named: Any) -> Any:
        number = taken[member] = taken.get(member, -1) + 1
        disabled = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", disabled or (number >= _CHECKED_STEPS and number % 16 != 0))
        try:
            return step(member, *given, **named)
        finally:
            jaxtyping.config.update("jaxtyping_disable", disabled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Member, "step", sometimes_checked)
        yield
