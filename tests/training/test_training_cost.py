"""The cost model against sums done by hand."""

import pytest

from sparsight.training.cost import Machine, run_hours, step_seconds

UNIT = Machine(products=1.0, memory=1.0)


def test_a_step_of_one_latent_and_one_token_by_hand() -> None:
    """One product of two numbers; four rows of one float; two gradients of 4 bytes, two parameters of 28."""
    assert step_seconds(UNIT, d=1, n_latents=1, k=1, batch=1) == {"encoder": 2, "gathers": 16, "optimiser": 8 + 56}


def test_only_active_latents_have_gradients() -> None:
    """Of many latents about as many are active as there are slots; of few, all."""
    many = step_seconds(UNIT, d=1, n_latents=10**9, k=2, batch=50)["optimiser"] - 56 * 10**9
    assert many == pytest.approx(8 * 100, rel=1e-3)
    few = step_seconds(UNIT, d=1, n_latents=10, k=5, batch=1000)["optimiser"]
    assert few == pytest.approx((8 + 56) * 10)


def test_the_encoder_grows_with_every_size_and_falls_with_the_rate() -> None:
    base = {"d": 8, "n_latents": 64, "k": 4, "batch": 16}
    once = step_seconds(UNIT, **base)["encoder"]
    for name in ("d", "n_latents", "batch"):
        assert step_seconds(UNIT, **{**base, name: 2 * base[name]})["encoder"] == 2 * once
    assert step_seconds(Machine(products=2.0, memory=1.0), **base)["encoder"] == once / 2


def test_hours_are_those_of_all_steps() -> None:
    sizes = {"d": 8, "n_latents": 64, "k": 4, "batch": 16}
    step = sum(step_seconds(UNIT, **sizes).values())
    assert run_hours(UNIT, **sizes, n_tokens=33, share=0.5) == pytest.approx(3 * step / 0.5 / 3600)
    eighth = sum(step_seconds(UNIT, **{**sizes, "n_latents": 8}).values())
    assert run_hours(UNIT, **sizes, n_tokens=16, devices=8, share=1.0) == pytest.approx(eighth / 3600)


@pytest.mark.parametrize("wrong", [{"d": 0}, {"n_latents": -1}, {"k": 0}, {"batch": 0}])
def test_sizes_that_no_run_has_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a positive number"):
        step_seconds(UNIT, **{"d": 1, "n_latents": 1, "k": 1, "batch": 1, **wrong})


def test_shares_and_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share is of the speed .* got share=0.0"):
        run_hours(UNIT, d=1, n_latents=1, k=1, batch=1, n_tokens=1, share=0.0)
    with pytest.raises(ValueError, match="memory must be a positive number"):
        Machine(products=1.0, memory=0.0)
