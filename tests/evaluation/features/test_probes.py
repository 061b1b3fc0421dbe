"""Probes: Gaussian classes in closed form, planted latents, XOR, selection on training rows, control labels."""

import math

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.classification import auroc
from sparsight.evaluation.features.probes import (
    check_labels,
    control_labels,
    difference_in_means,
    k_sparse,
    logistic,
    mlp,
    type_folds,
)


def right(probe, x, y) -> float:
    return (probe.scores(x).argmax(dim=1) == y).double().mean().item()


def gaussian(n: int, generator: torch.Generator, distance: float = 2.0, d: int = 5):
    y = torch.arange(n) % 2
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) + 50
    x[:, 0] += distance * (y - 0.5)
    return x, y


def test_difference_in_means_reaches_the_known_accuracy_of_gaussian_classes():
    g = torch.Generator().manual_seed(21)
    probe = difference_in_means(*gaussian(20_000, g), 2)
    x, y = gaussian(40_000, g)
    assert right(probe, x, y) == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), abs=0.005)
    direction = probe.weights[1] - probe.weights[0]
    assert direction[0].item() == pytest.approx(2, abs=0.05)
    assert direction[1:].abs().max() < 0.05


def test_difference_in_means_answers_the_nearest_class_mean():
    x = torch.tensor([[0.0, 0], [10, 0], [0, 10]], dtype=torch.float64)
    probe = difference_in_means(x.repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    assert probe.scores(torch.tensor([[4.0, 1], [6, 2], [1, 6]])).argmax(1).tolist() == [0, 1, 2]


def test_logistic_weights_of_gaussian_classes_are_the_inverse_covariance_times_the_difference():
    g = torch.Generator().manual_seed(22)
    n, mixing = 60_000, torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)
    y = torch.arange(n) % 2
    apart = torch.tensor([1.0, -0.5], dtype=torch.float64)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64) @ mixing + y[:, None] * apart
    probe = logistic(x, y, 2, strength=1e6)
    expected = torch.linalg.solve(mixing.T @ mixing, apart)
    torch.testing.assert_close(probe.weights[1] - probe.weights[0], expected, rtol=0.06, atol=0.03)
    assert probe.converged


def test_the_penalised_gradient_is_zero_at_the_logistic_optimum():
    """Rare classes weigh as much as others; several classes at once."""
    g = torch.Generator().manual_seed(23)
    y = torch.tensor([0] * 200 + [1] * 60 + [2] * 20)
    x = torch.randn(280, 4, generator=g, dtype=torch.float64) + torch.randn(3, 4, generator=g, dtype=torch.float64)[y]
    probe = logistic(x, y, 3, strength=0.5)
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    w = (probe.weights * scale).requires_grad_()
    b = (probe.bias + probe.weights @ mean).requires_grad_()
    weight = 280 / (3 * torch.bincount(y)).double()
    ce = torch.nn.functional.cross_entropy((x - mean) / scale @ w.T + b, y, reduction="none")
    loss = (weight[y] * ce).sum() * 0.5 + w.square().sum() / 2
    loss.backward()
    assert max(w.grad.abs().max().item(), b.grad.abs().max().item()) < 0.05
    assert loss < (weight[y] * math.log(3)).sum() * 0.5


def test_a_probe_that_ran_out_of_steps_says_so():
    g = torch.Generator().manual_seed(24)
    assert not logistic(*gaussian(500, g, distance=0.1), 2, max_steps=1).converged


def test_one_planted_latent_is_found_with_one_column():
    g = torch.Generator().manual_seed(25)
    z = (torch.rand(600, 30, generator=g) + 0.1) * (torch.rand(600, 30, generator=g) < 0.2)
    z[:, 17] *= 1e-3  # the scale of a column changes nothing
    probe = k_sparse(z, (z[:, 17] > 0).long(), 2, 1)
    assert probe.columns.tolist() == [17]
    assert auroc(probe.scores(z)[:, 1], z[:, 17] > 0) == 1


def test_a_union_of_three_latents_needs_all_three():
    g = torch.Generator().manual_seed(26)
    z = (torch.rand(3000, 30, generator=g) < 0.15).double()
    y = z[:, [3, 8, 20]].any(dim=1).long()
    assert set(k_sparse(z, y, 2, 3).columns.tolist()) == {3, 8, 20}
    assert [right(k_sparse(z, y, 2, k), z, y) for k in (1, 2, 3)] == sorted(
        right(k_sparse(z, y, 2, k), z, y) for k in (1, 2, 3)
    )
    assert right(k_sparse(z, y, 2, 2), z, y) < 0.95
    assert right(k_sparse(z, y, 2, 3), z, y) == 1


def test_columns_are_chosen_on_the_rows_given_alone():
    """The label is column 1 among the rows given and column 6 elsewhere: nothing can make it choose 6."""
    g = torch.Generator().manual_seed(27)
    z = (torch.rand(800, 10, generator=g) < 0.5).double()
    probe = k_sparse(z[:400], z[:400, 1].long(), 2, 1)
    assert probe.columns.tolist() == [1]
    assert abs(right(probe, z[400:], z[400:, 6].long()) - 0.5) < 0.1


def test_exclusive_or_is_for_the_mlp_alone():
    g = torch.Generator().manual_seed(28)
    bits = torch.randint(2, (3000, 2), generator=g)
    y = bits[:, 0] ^ bits[:, 1]
    x = torch.cat([2.0 * bits - 1, torch.randn(3000, 6, generator=g)], dim=1) + 0.2 * torch.randn(3000, 8, generator=g)
    fit, score = slice(0, 2000), slice(2000, 3000)
    for linear in (difference_in_means, logistic):
        assert abs(right(linear(x[fit], y[fit], 2), x[score], y[score]) - 0.5) < 0.1
    assert right(mlp(x[fit], y[fit], 2, seed=5), x[score], y[score]) > 0.97


def test_the_mlp_follows_from_its_seed():
    g = torch.Generator().manual_seed(29)
    x, y = gaussian(100, g)
    first, again, other = (mlp(x, y, 2, n_steps=5, seed=seed).scores(x) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("fit", [difference_in_means, logistic, lambda x, y, c: k_sparse(x, y, c, 1), mlp])
def test_labels_that_do_not_fit_are_refused(fit):
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match="align them by token"):
        fit(x[1:], y, 2)
    with pytest.raises(UndefinedMetric, match="class 2 has no examples"):
        fit(x, y, 3)
    with pytest.raises(ValueError, match="drop other rows"):
        fit(x, y - 1, 2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit(x, y * 0, 1)


def test_counts_of_classes():
    assert check_labels(torch.zeros(4, 1), torch.tensor([0, 1, 1, 1]), 2).tolist() == [1, 3]


def test_control_labels_depend_on_the_token_alone_and_keep_every_class():
    g = torch.Generator().manual_seed(30)
    token_ids = torch.randint(40, (2000,), generator=g)
    y = (torch.rand(2000, generator=g) < 0.02).long()
    control = control_labels(token_ids, y, 2, seed=9)
    assert set(control.tolist()) == {0, 1}
    for token in range(40):
        assert len(control[token_ids == token].unique()) == 1
    assert not torch.equal(control, control_labels(token_ids, y, 2, seed=10))
    with pytest.raises(UndefinedMetric, match="token type for each of 2 classes, got 1"):
        control_labels(token_ids * 0, y, 2)


def test_held_out_types_leave_some_of_every_class_on_both_sides():
    token_ids = torch.arange(12).repeat(5)
    y = token_ids % 3
    held = type_folds(token_ids, y, 3, seed=2)
    assert set(token_ids[held].tolist()).isdisjoint(token_ids[~held].tolist())
    assert set(y[held].tolist()) == set(y[~held].tolist()) == {0, 1, 2}
    with pytest.raises(UndefinedMetric, match="class 1 has 1 token types"):
        type_folds(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 2)


def test_the_mlp_is_trained_as_autograd_and_adamw_train_it():
    g = torch.Generator().manual_seed(40)
    x, y = torch.randn(90, 6, generator=g), torch.randint(3, (90,), generator=g).clamp_max(2)
    found = mlp(x, y, 3, n_hidden=5, n_steps=40, batch_size=32, seed=9)
    draws = torch.Generator().manual_seed(9)
    weights = [torch.randn(6, 5, generator=draws) * (2 / 6) ** 0.5, torch.zeros(5)]
    weights += [torch.randn(5, 3, generator=draws) / 5**0.5, torch.zeros(3)]
    for w in weights:
        w.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=1e-2)
    standard, class_weight = (x - x.mean(dim=0)) / x.std(dim=0, unbiased=False), 30 / torch.bincount(y).float()
    for step in range(40):
        rows = torch.randint(90, (32,), generator=draws)
        logits = (standard[rows] @ weights[0] + weights[1]).relu() @ weights[2] + weights[3]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, y[rows], class_weight).backward()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 40)
        optimizer.step()
    for ours, theirs in zip((found.hidden, found.hidden_bias, found.out, found.out_bias), weights, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)
