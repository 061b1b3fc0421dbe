"""LEACE: no linear predictor is left, nothing smaller does it, and a second pass does nothing."""

import numpy as np
import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.leace import CrossMoments, Leace, OracleLeace, fit_leace
from sparsight.evaluation.features.probes import logistic

D = 6


def labelled(n: int = 400, classes: int = 3, seed: int = 11):
    """Correlated activations far from the origin, whose class moves their mean."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    mixing = torch.randn(D, D, generator=g, dtype=torch.float64)
    moved = torch.randn(classes, D, generator=g, dtype=torch.float64)
    return torch.randn(n, D, generator=g, dtype=torch.float64) @ mixing + moved[y] + 30, y


def covariance(x, y):
    z = torch.nn.functional.one_hot(y).double()
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


def twin(x, y):
    """The same edit from its definition: minimise E|A dx|^2 under A Cov(x, z) = Cov(x, z), row by row by Lagrange."""
    dx = (x - x.mean(0)).numpy()
    sigma, cross = dx.T @ dx / len(dx), covariance(x, y).numpy()
    d, c = cross.shape
    system = np.block([[sigma, cross], [cross.T, np.zeros((c, c))]])
    rows = [np.linalg.lstsq(system, np.concatenate([np.zeros(d), cross[i]]), rcond=None)[0][:d] for i in range(d)]
    return torch.from_numpy(dx @ np.stack(rows).T)


def test_no_covariance_with_any_class_is_left():
    x, y = labelled()
    assert covariance(x, y).abs().max() > 0.1
    assert covariance(Leace.of(x, y).erase(x), y).abs().max() < 1e-12


def test_the_best_linear_predictors_after_erasure_are_constant():
    x, y = labelled()
    erased = Leace.of(x, y).erase(x)
    z = torch.nn.functional.one_hot(y).double()
    design = torch.cat([erased, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    residual = z - design @ torch.linalg.lstsq(design, z, driver="gelsd").solution
    assert residual.square().sum().item() == pytest.approx((z - z.mean(0)).square().sum().item(), rel=1e-9)
    # Logistic regression weighs classes alike, which erasure of every class at once covers too.
    before, after = (logistic(values, y, 3).scores(values).argmax(1) for values in (x, erased))
    assert (before == y).double().mean() > 0.6
    assert len(after.unique()) == 1 or (after == y).double().mean() < 0.4


def test_it_is_the_smallest_edit_as_the_definition_gives_it():
    x, y = labelled()
    torch.testing.assert_close(x - Leace.of(x, y).erase(x), twin(x, y), rtol=1e-8, atol=1e-8)


def test_a_numerical_minimiser_finds_nothing_smaller():
    from scipy.optimize import minimize

    x, y = labelled()
    dx, cross = (x - x.mean(0)).numpy(), covariance(x, y).numpy()
    sigma = dx.T @ dx / len(dx)

    def cost(flat):
        a = flat.reshape(D, D)
        return np.trace(a @ sigma @ a.T)

    found = minimize(
        cost,
        np.eye(D).ravel(),
        jac=lambda flat: (2 * flat.reshape(D, D) @ sigma).ravel(),
        constraints={"type": "eq", "fun": lambda flat: ((flat.reshape(D, D) - np.eye(D)) @ cross[:, :2]).ravel()},
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert found.success
    ours = (x - Leace.of(x, y).erase(x)).square().sum(1).mean().item()
    assert ours == pytest.approx(found.fun, rel=1e-6)
    # Projecting the covariance away at right angles erases as well, and costs more.
    q = torch.linalg.qr(torch.from_numpy(cross[:, :2])).Q
    assert ours < 0.99 * (torch.from_numpy(dx) @ q).square().sum(1).mean().item()


def test_one_binary_label_agrees_with_its_short_formula():
    x, y = labelled(classes=2)
    mean, cross = x.mean(0), covariance(x, y)[:, 1]
    sigma = (x - mean).T @ (x - mean) / len(x)
    readout = torch.linalg.solve(sigma, cross)
    expected = x - torch.outer((x - mean) @ readout / (cross @ readout), cross)
    eraser = Leace.of(x, y)
    assert eraser.rank == 1
    torch.testing.assert_close(eraser.erase(x), expected, rtol=1e-9, atol=1e-9)


def test_erasing_twice_is_erasing_once():
    x, y = labelled()
    eraser = Leace.of(x, y)
    once = eraser.erase(x)
    torch.testing.assert_close(eraser.erase(once), once, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        eraser.readouts @ eraser.directions, torch.eye(2, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_the_mean_stays_and_the_rank_is_one_less_than_the_classes():
    x, y = labelled(classes=4)
    eraser = Leace.of(x, y)
    assert eraser.rank == 3
    torch.testing.assert_close(eraser.erase(x).mean(0), x.mean(0))
    assert (eraser.correlations.diff() <= 0).all()
    assert eraser.correlations.max() <= 1


def test_the_rank_is_that_of_the_planted_subspace():
    """Five classes whose means lie on one line: one dimension is erased, whatever the number of classes."""
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(60, D, generator=g, dtype=torch.float64)
    y = torch.arange(5).repeat_interleave(60)
    direction = torch.randn(D, generator=g, dtype=torch.float64)
    x = noise.repeat(5, 1) + y.double()[:, None] * direction  # the same noise in each class: means are exactly on it
    assert Leace.of(x, y).rank == 1


def test_the_oracle_erases_too_and_never_costs_more():
    x, y = labelled()
    oracle, eraser = OracleLeace.of(x, y), Leace.of(x, y)
    erased = oracle.erase(x, y)
    assert covariance(erased, y).abs().max() < 1e-12
    assert oracle.rank == 2
    cost = (x - erased).square().sum()
    assert cost < 0.99 * (x - eraser.erase(x)).square().sum()
    # It is the residual of the class means, about the overall one.
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    torch.testing.assert_close(erased, x - means[y] + x.mean(0), rtol=1e-9, atol=1e-9)


def test_moments_of_batches_add_up_to_those_of_all():
    x, y = labelled()
    whole = CrossMoments.of(x, y)
    parts = CrossMoments.of(x[:150], y[:150], n_classes=3) + CrossMoments.of(x[150:], y[150:], n_classes=3)
    assert parts.n == whole.n
    for name in ("mean_x", "mean_z", "xx", "xz", "zz"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    torch.testing.assert_close(fit_leace(parts).erase(x), fit_leace(whole).erase(x), rtol=1e-9, atol=1e-9)


def test_a_dimension_that_does_not_vary_is_left_alone():
    x, y = labelled()
    x = torch.cat([x, torch.full((len(x), 1), 7.0, dtype=torch.float64), x[:, :1]], dim=1)
    erased = Leace.of(x, y).erase(x)
    assert covariance(erased, y).abs().max() < 1e-10
    torch.testing.assert_close(erased[:, -2], x[:, -2])
    torch.testing.assert_close(erased[:, -1], erased[:, 0])


def test_float32_activations_stay_float32():
    x, y = labelled()
    erased = Leace.of(x.float(), y).erase(x.float())
    assert erased.dtype == torch.float32
    assert covariance(erased.double(), y).abs().max() < 1e-5


@pytest.mark.parametrize("eraser", [Leace, OracleLeace])
def test_labels_without_content_are_refused(eraser):
    x, y = labelled()
    with pytest.raises(UndefinedMetric, match="labels of all 400 tokens are equal"):
        eraser.of(x, torch.zeros_like(y))
    with pytest.raises(UndefinedMetric, match="activations are all equal"):
        eraser.of(torch.ones_like(x), y)
    with pytest.raises(ValueError, match="align them"):
        eraser.of(x, y[1:])
    with pytest.raises(ValueError, match="finite"):
        eraser.of(x.clone().fill_(float("nan")), y)
    with pytest.raises(ValueError, match="drop undefined rows"):
        eraser.of(x, y - 1)


def test_labels_that_do_not_covary_with_anything_are_refused():
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    with pytest.raises(UndefinedMetric, match="nothing to erase"):
        Leace.of(x, torch.tensor([0, 0, 1, 1]))
