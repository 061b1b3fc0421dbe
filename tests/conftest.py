"""Shared by all tests: no network, few threads, shapes checked in some calls, nothing that does not change collected.

And room for Python's frames, so that no test pays for how deep it happens to be called.

CHECK_EVERY_CALL=1 pytest ...    checks the arguments and results of every call, not of some
"""

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial, wraps
from inspect import isfunction
from typing import Any

import jaxtyping
import pytest
import torch

# Triton reads this when it is imported, which any test may do: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Imports make millions of objects that stay. Python need not look through them, now or in any test.
gc.disable()

_FIRST_CALLS = 4  # of each function in each test; and every sixteenth after them
_EVERY_CALL = os.environ.get("CHECK_EVERY_CALL") == "1"
_number_of_test = 0
_jaxtyped = jaxtyping.jaxtyped


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    global _number_of_test
    _number_of_test += 1


def _with_room(call: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
    return call(*args, **named)


# Python 3.11 and later keep frames in chunks of 16 KiB. A loop whose calls begin just where a chunk ends asks the
# system for a new one at every call, and gives it back: one test took 14 s for that in place of 2. This frame of half a
# MiB gets a chunk of one MiB, whose other half is enough for all that a test calls.
_with_room.__code__ = _with_room.__code__.replace(co_stacksize=2**16)


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    test = pyfuncitem.obj
    pyfuncitem.obj = partial(_with_room, test)
    yield
    pyfuncitem.obj = test


def _jaxtyped_now_and_then(given: Any = None, **how: Any) -> Any:
    """Put in checks of shapes and types that are made in some calls.

    Checking every call takes a third of all tests' time, and a function's calls in one test are much alike. What checks
    a function is made at its first call: many are never called.
    """
    if given is None:
        return partial(_jaxtyped_now_and_then, **how)
    if not isfunction(given):
        return _jaxtyped(given, **how)
    checked, test, n = None, 0, 0

    @wraps(given)
    def call(*args: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        nonlocal checked, test, n
        if test != _number_of_test:
            test, n = _number_of_test, 0
        n += 1
        if n > _FIRST_CALLS and n % 16 and not _EVERY_CALL:
            return given(*args, **named)
        if checked is None:
            checked = _jaxtyped(given, **how)
        return checked(*args, **named)

    return call


# The second name is the one by which a dataclass's `__init__` gets its checks.
jaxtyping.jaxtyped = jaxtyping._decorator.jaxtyped = _jaxtyped_now_and_then
