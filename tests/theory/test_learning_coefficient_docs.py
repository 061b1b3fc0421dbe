"""The page on the learning coefficient: its Python runs, its thresholds and defaults are those of the code."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import sparsight
from sparsight.theory import learning_coefficient as package
from sparsight.theory.learning_coefficient import Chains, record

PAGE = (Path(__file__).parents[2] / "docs" / "learning-coefficient.md").read_text(encoding="utf8")


@pytest.mark.slow
def test_the_python_of_the_page_runs_and_says_what_the_page_says():
    names: dict[str, object] = {"torch": torch, "ss": sparsight}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    assert names["head"].n_parameters == 4
    assert names["found"].n_parameters == 13
    first, *_, last = names["points"]
    assert abs(first.value - 0.27) < 4 * first.standard_error
    assert abs(last.value - 0.49) < 4 * last.standard_error


def test_every_diagnostic_and_every_exact_value_is_on_the_page():
    for field in ("below", "headroom", "discretisation_ratio", "noise_ratio", "r_hat", "growth", "ess", "acceptance"):
        assert f"| `{field}` |" in PAGE
        assert field in record.LearningCoefficient.model_fields
    for name in package.__all__:
        if name[0].islower():
            assert name in PAGE, name


def test_the_thresholds_and_defaults_of_the_page_are_those_of_the_code():
    assert (record.MOST_BELOW, record.MOST_HEADROOM, record.MOST_NOISE, record.MOST_GROWTH) == (0.05,) * 4
    assert (record.MOST_DISCRETISATION, record.MOST_R_HAT, record.LEAST_ESS, record.LEAST_ACCEPTANCE) == (
        0.1,
        1.05,
        100,
        0.3,
    )
    how = Chains()
    assert (how.n_chains, how.n_draws, how.n_burn_in, how.steps_per_draw) == (8, 1000, 1000, 1)
    assert inspect.signature(sparsight.learning_coefficient).parameters["gamma"].default == 1.0
