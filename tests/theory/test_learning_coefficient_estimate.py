"""The estimator reads what exact theory says it must, at the temperature it ran at, and says when it does not.

Margins are three of the estimate's own standard errors, over several seeds each; with three standard errors one check
in 370 would fail by chance, and the seeds are fixed.
"""

import math
import re

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.theory.learning_coefficient import (
    AbstractLoss,
    Chains,
    FunctionLoss,
    ModuleLoss,
    curve,
    decades,
    learning_coefficient,
    local_coefficient,
    quadratic_sgld,
    zero_rank_regression,
)

H = torch.tensor([1, 1, 0.5, 0.1, 0.01, 2, 3, 1, 1, 0], dtype=torch.float64)
SLOW = pytest.mark.slow
X = torch.linspace(-4, 4, 41, dtype=torch.float64)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def zeros(d):
    return torch.zeros(d, dtype=torch.float64)


def rows(function):
    return FunctionLoss(function, batched=True)


QUADRATIC = rows(lambda w: (H * w.square()).sum(dim=1) / 2)
CROSSING = rows(lambda w: (w[:, 0] * w[:, 1]) ** 2)


class Noisy(AbstractLoss):
    """The quadratic with a gradient of known variance."""

    n_data, full_batch = 1000, False

    def __init__(self, variance):
        self.variance = variance

    def at(self, w):
        return QUADRATIC.at(w)

    def sampled(self, w, generator):
        noise = torch.randn(w.shape, generator=generator, dtype=w.dtype)
        return self.at(w) + math.sqrt(self.variance) * (noise * w).sum(dim=1)


@pytest.mark.parametrize(
    ("gamma", "step", "noise", "seed"),
    [
        (1.0, 5e-3, 0.0, 0),
        *(pytest.param(1.0, 5e-3, 0.0, seed, marks=SLOW) for seed in (1, 2)),
        (20.0, 2e-3, 0.02, 0),
        *(pytest.param(20.0, 2e-3, 0.02, seed, marks=SLOW) for seed in (1, 2)),
        *(pytest.param(100.0, 1e-3, 0.0, seed, marks=SLOW) for seed in (0, 1, 2)),
    ],
)
def test_sgld_reads_the_finite_step_value_of_a_quadratic(gamma, step, noise, seed):
    how = Chains(step=step, n_chains=2048, n_draws=8, n_burn_in=450 if gamma == 1 else 150, steps_per_draw=10)
    loss = Noisy(noise) if noise else QUADRATIC
    found = learning_coefficient(loss, zeros(10), how, n_beta=100.0, gamma=gamma, generator=g(seed))
    exact = quadratic_sgld(H.tolist(), 100.0, gamma=gamma, step=step, noise_variance=noise)
    assert abs(found.value - exact) < 3 * found.standard_error
    assert found.standard_error < 0.02 * exact
    assert found.noise_ratio == pytest.approx(step * 100**2 * noise / 4, rel=0.5)
    assert found.discretisation_ratio == pytest.approx(step * (300 + gamma) / 4, rel=0.05)


@pytest.mark.parametrize("sampler", ["sgld", "mala"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in (1, 2))])
def test_a_crossing_reads_its_finite_temperature_value_and_not_one_half(sampler, seed):
    how = Chains(
        sampler=sampler, n_chains=1024, n_draws=10, n_burn_in=400 if sampler == "mala" else 900, steps_per_draw=10
    )
    found = learning_coefficient(CROSSING, zeros(2), how, n_beta=1e3, gamma=10.0, generator=g(seed))
    exact = local_coefficient(lambda a, b: (a * b) ** 2, 1e3, dimension=2, gamma=10.0)
    # Uncorrected steps are allowed the bias that their step was chosen for, 2 %.
    assert abs(found.value - exact) < 3 * found.standard_error + (0.02 * exact if sampler == "sgld" else 0)
    assert found.standard_error < 0.01
    assert found.value < 0.35


def test_regression_on_nothing_reads_its_exact_value():
    """Reduced-rank regression with 10 parameters: far below the 5 of a regular model, and 0 of its Hessian."""

    def loss(w):
        a, b = w[:, :4], w[:, 4:]
        return (b[:, :, None] * a[:, None, :]).square().sum(dim=(1, 2)) / 2

    how = Chains(sampler="mala", n_chains=512, n_draws=15, n_burn_in=200, steps_per_draw=5)
    found = learning_coefficient(rows(loss), zeros(10), how, n_beta=1e3, gamma=3.0, generator=g(0))
    exact = zero_rank_regression(4, 6, 1, 1e3, gamma=3.0)
    assert abs(found.value - exact) < 3 * found.standard_error
    assert found.standard_error < 0.05
    assert found.value < 2.1


def test_a_nearly_singular_curve_rises_as_exact_theory_says():
    loss = FunctionLoss(lambda w: 0.01 * w[0] ** 2 + w[0] ** 4)
    how = Chains(sampler="mala", n_chains=1024, n_draws=10, n_burn_in=40, steps_per_draw=4)
    found = curve(loss, zeros(1), [1e2, 1e4, 1e6], how, generator=g(0))
    for e in found:
        exact = local_coefficient(lambda w: 0.01 * w**2 + w**4, e.n_beta, dimension=1, gamma=1.0)
        assert abs(e.value - exact) < 3 * e.standard_error
        assert e.standard_error < 0.02
    assert found[0].value < 0.3 < 0.45 < found[-1].value


def tanh_loss(point):
    def output(w):
        return w[:, :1] * torch.tanh(w[:, 1:2] * X) + w[:, 2:3] * torch.tanh(w[:, 3:] * X)

    return rows(lambda w: (output(w) - output(point[None])).square().mean(dim=1))


def test_permuting_hidden_units_changes_nothing_and_merging_them_lowers_the_coefficient():
    generic = torch.tensor([1.0, 0.3, 2.0, 2.0], dtype=torch.float64)
    swapped = generic[[2, 3, 0, 1]]
    merged = torch.tensor([1.0, 0.6, 1.0, 0.6], dtype=torch.float64)
    how = Chains(sampler="mala", n_chains=256, n_draws=12, n_burn_in=200, steps_per_draw=6, adapt=True)
    first, second, third = (
        learning_coefficient(tanh_loss(w), w, how, n_beta=1e6, gamma=100.0, generator=g(1))
        for w in (generic, swapped, merged)
    )
    assert abs(first.value - second.value) < 3 * math.hypot(first.standard_error, second.standard_error)
    assert abs(first.value - 2) < 3 * first.standard_error + 0.02  # regular, but for what gamma takes
    assert first.standard_error < 0.06
    assert third.value + 5 * third.standard_error < 1.4


def test_decades_are_evenly_spaced_with_both_ends():
    assert decades(1e2, 1e4, per_decade=1) == pytest.approx([1e2, 1e3, 1e4])
    assert decades(10.0, 1e3) == pytest.approx([10, 10**1.5, 100, 10**2.5, 1000])


def test_scaling_the_loss_and_its_temperature_changes_no_draw():
    how = Chains(step=1e-3, n_chains=4, n_draws=50, n_burn_in=10)
    loss, tenfold = QUADRATIC, rows(lambda w: 10 * QUADRATIC.at(w))
    first = learning_coefficient(loss, zeros(10), how, n_beta=100.0, generator=g(3))
    second = learning_coefficient(tenfold, zeros(10), how, n_beta=10.0, generator=g(3))
    assert second.by_chain == pytest.approx(first.by_chain, rel=1e-9)
    assert second.discretisation_ratio == pytest.approx(first.discretisation_ratio, rel=0.02)


def test_adapting_to_the_cloud_changes_the_speed_and_not_the_answer():
    """Curvatures a thousandfold apart, turned so that no coordinate is one of them."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=g(8), dtype=torch.float64)).Q
    h = torch.tensor([1000.0, 30.0, 1.0], dtype=torch.float64)
    loss = rows(lambda w: (h * (w @ turn).square()).sum(dim=1) / 2)
    found = {}
    for adapt in (True, False):
        how = Chains(sampler="mala", n_chains=256, n_draws=20, n_burn_in=150, steps_per_draw=5, adapt=adapt)
        found[adapt] = learning_coefficient(loss, zeros(3), how, n_beta=1e3, gamma=1.0, generator=g(0))
    assert abs(found[True].value - 1.5) < 3 * found[True].standard_error
    assert found[True].valid
    assert found[True].standard_error < 0.03
    assert found[False].value < 1.2  # the softest direction has not been explored
    assert not found[False].valid


def test_rescaling_weights_that_only_count_as_a_product_changes_nothing():
    """`(2 a)(b / 2) = a b`: as a ReLU layer's weights may be scaled against the next one's."""
    loss = rows(lambda w: (w[:, 0] * w[:, 1] - 1) ** 2)
    how = Chains(sampler="mala", n_chains=512, n_draws=20, n_burn_in=150, steps_per_draw=5)
    for point in ([1.0, 1.0], [2.0, 0.5]):
        w_star = torch.tensor(point, dtype=torch.float64)
        found = learning_coefficient(loss, w_star, how, n_beta=1e4, gamma=100.0, generator=g(0))
        assert abs(found.value - 0.5) < 3 * found.standard_error + 0.02
        assert found.standard_error < 0.02


def test_a_restricted_coefficient_moves_only_what_the_mask_names():
    mask = H >= 1
    how = Chains(sampler="mala", n_chains=256, n_draws=20, n_burn_in=100, steps_per_draw=4)
    loss = rows(lambda w: QUADRATIC.at(w) + 1e6 * w[:, ~mask].square().sum(dim=1))
    found = learning_coefficient(loss, zeros(10), how, n_beta=1e4, mask=mask, generator=g(0))
    assert found.n_parameters == 6
    assert abs(found.value - 3) < 3 * found.standard_error + 0.01
    assert found.standard_error < 0.1


def test_a_module_on_minibatches_reads_half_its_parameters_where_it_is_regular():
    """Linear regression on 500 examples: `n_beta = n / log n` by itself, and the quadratic's exact value."""
    x = torch.randn(500, 3, generator=g(5), dtype=torch.float64)
    model = torch.nn.Linear(3, 1, bias=False).double().eval()
    y = x @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 0.1 * torch.randn(
        500, 1, generator=g(6), dtype=torch.float64
    )
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    loss = ModuleLoss(model, lambda m, x, y: (m(x) - y).square().mean(), (x, y), batch_size=100)
    how = Chains(n_chains=256, n_draws=8, n_burn_in=100, steps_per_draw=8)
    found = learning_coefficient(loss, loss.parameters(), how, generator=g(0))
    assert found.n_beta == pytest.approx(500 / math.log(500))
    h = torch.linalg.eigvalsh(2 * x.T @ x / 500).tolist()
    exact = quadratic_sgld(h, found.n_beta, gamma=1.0, step=found.step)
    assert abs(found.value - exact) < 3 * found.standard_error + found.noise_ratio * exact
    assert found.standard_error < 0.06
    assert found.below == 0
    assert 0 < found.noise_ratio < 0.05
    assert found.headroom < 1e-6


def test_the_same_generator_gives_the_same_estimate_and_another_does_not():
    how = Chains(n_chains=4, n_draws=20, n_burn_in=20)
    first, second, third = (
        learning_coefficient(CROSSING, zeros(2), how, n_beta=10.0, generator=g(seed)) for seed in (4, 4, 5)
    )
    assert first == second
    assert first.value != third.value
    assert (first.seed, third.seed) == (4, 5)
    assert type(first).model_validate_json(first.to_json()) == first


@pytest.mark.parametrize(
    ("loss", "w_star", "step", "said"),
    [
        (rows(lambda w: -w.square().sum(dim=1) + w.pow(4).sum(dim=1)), [0.0], None, "it is negative"),
        (rows(lambda w: -w.square().sum(dim=1) + w.pow(4).sum(dim=1)), [0.0], None, r"lie below L\(w\*\)"),
        (rows(lambda w: w.square().sum(dim=1)), [0.3], None, "descent from w"),
        (QUADRATIC, [0.0] * 10, 1.2e-2, r"step is too large \(discretisation ratio 0\.9"),
        (Noisy(0.1), [0.0] * 10, 2e-3, r"minibatches add too much noise \(ratio 0\.\d+"),
        (QUADRATIC, [0.0] * 10, 1e-7, "fewer than 100; draw more"),
    ],
)
def test_an_estimate_says_why_it_is_not_valid(loss, w_star, step, said):
    w_star = torch.tensor(w_star, dtype=torch.float64)
    how = Chains(step=step, n_chains=16, n_draws=40, n_burn_in=20)
    found = learning_coefficient(loss, w_star, how, n_beta=100.0, generator=g(0))
    assert not found.valid
    assert re.match(f"not valid because .*{said}", found.verdict), found.verdict
    assert found.verdict in str(found)


def test_chains_that_have_not_met_are_not_valid():
    wells = rows(lambda w: (w[:, 0] ** 2 - 1) ** 2 + 0.3 * w[:, 0])  # the deeper one lies beyond a wall
    how = Chains(step=1e-3, n_chains=8, n_draws=200, n_burn_in=0)
    found = learning_coefficient(wells, torch.tensor([0.95], dtype=torch.float64), how, n_beta=20.0, generator=g(0))
    assert "do not agree" in found.verdict


def test_chains_that_start_together_and_still_spread_are_not_valid_though_they_agree():
    """At the crossing all chains start at `w*`: R-hat is small long before they have seen the posterior."""
    how = Chains(sampler="mala", n_chains=512, n_draws=20, n_burn_in=60, steps_per_draw=5)
    found = learning_coefficient(CROSSING, zeros(2), how, n_beta=1e6, gamma=10.0, generator=g(0))
    exact = local_coefficient(lambda a, b: (a * b) ** 2, 1e6, dimension=2, gamma=10.0)
    assert found.r_hat < 1.05
    assert found.value < exact - 5 * found.standard_error
    assert "still spread" in found.verdict


def test_chains_that_diverge_have_no_value():
    how = Chains(step=1.0, n_draws=300, n_burn_in=0)
    fourth = rows(lambda w: w.pow(4).sum(dim=1))
    with pytest.raises(UndefinedMetric, match=r"left the finite numbers at step 1, .*lower step or raise gamma"):
        learning_coefficient(fourth, zeros(2) + 0.5, how, n_beta=100.0, generator=g(0))


def test_wrong_arguments_are_refused_by_what_was_expected_and_what_to_do():
    for wrong, said in (
        ({"n_draws": 0}, "n_draws must be 4 or more, got 0"),
        ({"n_chains": 1}, "n_chains must be 2 or more"),
        ({"n_burn_in": -1}, "n_burn_in must be 0"),
        ({"steps_per_draw": 0}, "steps_per_draw must be 1"),
        ({"step": 0.0}, "step must be above 0"),
        ({"adapt": True}, "adapt needs sampler 'mala'"),
        ({"step": float("nan")}, "step must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            Chains(**wrong)
    with pytest.raises(ValueError, match="n_chains of 40 or more for 10 parameters, got 8"):
        learning_coefficient(QUADRATIC, zeros(10), Chains(sampler="mala", adapt=True), n_beta=1.0)
    for loss, w_star, options, said in (
        (CROSSING, zeros(2), {"n_beta": 0.0}, "n_beta must be a number above 0, got 0"),
        (CROSSING, zeros(2), {"n_beta": float("inf")}, "n_beta must be a number above 0"),
        (CROSSING, zeros(2), {}, "n_beta must be given"),
        (CROSSING, zeros(2), {"n_beta": 1.0, "gamma": -1.0}, "gamma must be 0 or more"),
        (
            CROSSING,
            zeros(2),
            {"n_beta": 1.0, "mask": torch.ones(3, dtype=torch.bool)},
            r"mask must have.*\(2,\), got \(3,\)",
        ),
        (CROSSING, zeros(2), {"n_beta": 1.0, "mask": torch.zeros(2, dtype=torch.bool)}, "mask must be True"),
        (CROSSING, zeros(2) * float("nan"), {"n_beta": 1.0}, "w_star must be finite"),
        (rows(lambda w: w[:, 0].log()), zeros(1) - 1, {"n_beta": 1.0}, "loss at w_star must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=said):
            learning_coefficient(loss, w_star, **options)
    with pytest.raises(ValueError, match="increasing"):
        curve(CROSSING, zeros(2), [10.0, 10.0])
    with pytest.raises(ValueError, match="0 < low < high"):
        decades(10.0, 1.0)
