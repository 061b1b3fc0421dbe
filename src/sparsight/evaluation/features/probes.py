"""Probes: what can be told of a feature from activations, by the means of classes, linearly, from few columns, or not.

Each `fit` takes training rows only and returns a frozen probe that scores any rows, one column for each class. Classes
weigh alike whatever their frequency, and so do their hits (`balanced accuracy`): rare features need no other scale.
"""

import warnings
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric


@runtime_checkable
class Probe(Protocol):
    """Scores every class at every row; the largest is the probe's answer."""

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]: ...


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Scores `x W^T + b`.

    Attributes:
        weights: One row for each class, in inverse units of the activations.
        bias: One offset for each class.
        converged: Whether the fit reached its tolerance; closed forms always do.
    """

    weights: Float64[Tensor, "c d"]
    bias: Float64[Tensor, " c"]
    converged: bool = True

    def scores(self, x: Float[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
        return x.double() @ self.weights.T + self.bias


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """A linear probe that reads a few columns only.

    Attributes:
        columns: Which, best first.
        probe: Reads them, in this order.
    """

    columns: Int64[Tensor, " k"]
    probe: LinearProbe

    def scores(self, x: Float[Tensor, "n d"]) -> Float64[Tensor, "n c"]:
        return self.probe.scores(x[:, self.columns])


@dataclass(frozen=True, eq=False)
class MlpProbe:
    """One hidden layer of rectified units over standardised activations.

    Attributes:
        mean, scale: Of the training activations.
        hidden, hidden_bias, out, out_bias: Weights.
    """

    mean: Float64[Tensor, " d"]
    scale: Float64[Tensor, " d"]
    hidden: Float[Tensor, "d h"]
    hidden_bias: Float[Tensor, " h"]
    out: Float[Tensor, "h c"]
    out_bias: Float[Tensor, " c"]

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        standard = ((x.double() - self.mean) / self.scale).to(self.hidden.dtype)
        return (standard @ self.hidden + self.hidden_bias).relu() @ self.out + self.out_bias


def difference_in_means(x: Float[Tensor, "n d"], y: Int64[Tensor, " labels"], n_classes: int) -> LinearProbe:
    """The probe that answers the class whose mean is nearest: `score_c = mean_c . x - |mean_c|^2 / 2`.

    With two classes its direction is the difference of their means, cut half way. Best when the spread about the means
    is the same in every direction; on Gaussian classes a distance `v` apart with spread `s` it is right with
    probability `Phi(v / 2s)`.

    Raises:
        ValueError, UndefinedMetric: as `check_labels`.
    """
    counts = check_labels(x, y, n_classes)
    sums = torch.zeros(n_classes, x.shape[1], dtype=torch.float64).index_add_(0, y, x.double())
    means = sums / counts.double()[:, None]
    centre = means.mean(dim=0)  # scores differ by the same amount for all classes: only numerically better
    apart = means - centre
    return LinearProbe(apart, -apart @ centre - apart.square().sum(dim=1) / 2)


def discriminant(
    x: Float[Tensor, "n d"], y: Int64[Tensor, " labels"], n_classes: int, *, shrinkage: float = 0.01
) -> LinearProbe:
    """Fisher's linear discriminant: difference in means, measured in units of the spread within classes.

    `score_c = mean_c S^-1 x - mean_c S^-1 mean_c / 2` with `S` the covariance within classes, pooled over tokens and
    mixed with `shrinkage` of its mean variance. In closed form, so that a map of many features at many sites is cheap;
    best for Gaussian classes of one covariance, where it and logistic regression agree.

    Raises:
        ValueError, UndefinedMetric: as `check_labels`, and where activations do not vary within classes.
    """
    counts = check_labels(x, y, n_classes).double()[:, None]
    x = x.double()
    means = torch.zeros(n_classes, x.shape[1], dtype=torch.float64).index_add_(0, y, x) / counts
    centre = means.mean(dim=0)
    within = x - means[y]
    covariance = within.T @ within / len(x)
    floor = covariance.diagonal().mean()
    if floor <= 0:
        floor = x.var(dim=0, unbiased=False).mean()  # every class a single point: any metric will do
        if floor <= 0:
            raise UndefinedMetric(f"the {len(x)} activations are all equal: nothing can be told from them")
    covariance = (1 - shrinkage) * covariance + shrinkage * floor * torch.eye(x.shape[1], dtype=torch.float64)
    apart = means - centre
    weights = torch.linalg.solve(covariance, apart.T).T
    return LinearProbe(weights, -weights @ centre - (weights * apart).sum(dim=1) / 2)


def logistic(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " labels"],
    n_classes: int,
    *,
    strength: float = 1.0,
    max_steps: int = 1000,
) -> LinearProbe:
    """Multinomial logistic regression on standardised columns, with an L2 penalty.

    Minimises the mean cross-entropy, classes weighing alike, plus `|w|^2 / (2 strength n)`, by scikit-learn: Newton's
    method for two classes, L-BFGS for more.

    Args:
        x: Activations.
        y: Classes.
        n_classes: Number of classes; each must occur.
        strength: Inverse of the penalty (`C` there).
        max_steps: Most steps of the optimiser; a fit that needs more is marked as not converged.
    Raises:
        ValueError, UndefinedMetric: as `check_labels`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    check_labels(x, y, n_classes)
    mean, scale = _standard(x)
    solver = "newton-cholesky" if n_classes == 2 and x.shape[1] <= 1024 else "lbfgs"
    model = LogisticRegression(C=strength, max_iter=max_steps, class_weight="balanced", tol=1e-4, solver=solver)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(((x.double() - mean) / scale).numpy(), y.numpy())
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    weights = torch.from_numpy(model.coef_.copy()).double()
    bias = torch.from_numpy(model.intercept_.copy()).double()
    if n_classes == 2:  # one row there: the log-odds of class 1
        weights, bias = torch.cat([-weights, weights]) / 2, torch.cat([-bias, bias]) / 2
    weights = weights / scale
    return LinearProbe(weights, bias - weights @ mean, converged)


def k_sparse(
    x: Float[Tensor, "n d"], y: Int64[Tensor, " labels"], n_classes: int, k: int, *, strength: float = 1.0
) -> SparseProbe:
    """Choose the `k` columns whose class means differ most for their spread, then fit logistic regression on them.

    Columns are ranked by the share of their variance that lies between classes, classes weighing alike, so that a
    column's scale does not matter. Choice and fit see the rows given and no others: give training rows.

    Raises:
        ValueError: `k` is outside `[1, d]`, or as `check_labels`.
        UndefinedMetric: as `check_labels`.
    """
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k must be between 1 and the {x.shape[1]} columns, got {k}")
    columns = between_share(x, y, n_classes).argsort(descending=True, stable=True)[:k]
    return SparseProbe(columns, logistic(x[:, columns], y, n_classes, strength=strength))


def between_share(x: Float[Tensor, "n d"], y: Int64[Tensor, " labels"], n_classes: int) -> Float64[Tensor, " d"]:
    """Share of each column's variance that lies between classes, classes weighing alike; 0 for a constant column."""
    counts = check_labels(x, y, n_classes).double()[:, None]
    x = x.double()
    means = torch.zeros(n_classes, x.shape[1], dtype=torch.float64).index_add_(0, y, x) / counts
    squares = torch.zeros_like(means).index_add_(0, y, (x - means[y]).square())
    within = (squares / counts).mean(dim=0)
    between = means.var(dim=0, unbiased=False)
    total = within + between
    return torch.where(total > 0, between / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def mlp(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " labels"],
    n_classes: int,
    *,
    n_hidden: int = 64,
    n_steps: int = 400,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> MlpProbe:
    """Train a network of one hidden layer: what can be told that no linear probe tells.

    AdamW on class-balanced cross-entropy over standardised columns, the rate falling linearly to zero; all from `seed`.

    Raises:
        ValueError, UndefinedMetric: as `check_labels`.
    """
    counts = check_labels(x, y, n_classes)
    mean, scale = _standard(x)
    standard = ((x.double() - mean) / scale).float()
    generator = torch.Generator().manual_seed(seed)
    d = x.shape[1]
    weights = [
        torch.randn(d, n_hidden, generator=generator) * (2 / d) ** 0.5,
        torch.zeros(n_hidden),
        torch.randn(n_hidden, n_classes, generator=generator) / n_hidden**0.5,
        torch.zeros(n_classes),
    ]
    w_in, b_in, w_out, b_out = weights
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    first_decay, second_decay = 0.9, 0.999
    class_weight = (len(y) / (n_classes * counts)).float()
    with torch.no_grad():
        for step in range(n_steps):
            rows = torch.randint(len(y), (min(batch_size, len(y)),), generator=generator)
            # Gradients written out: five times as fast as having them recorded.
            inputs, weight = standard[rows], class_weight[y[rows]]
            hidden = torch.addmm(b_in, inputs, w_in).relu_()
            off = torch.addmm(b_out, hidden, w_out).softmax(dim=1)
            off[torch.arange(len(rows)), y[rows]] -= 1
            off *= (weight / weight.sum())[:, None]
            back = (off @ w_out.T).masked_fill_(hidden <= 0, 0)
            gradients = (inputs.T @ back, back.sum(dim=0), hidden.T @ off, off.sum(dim=0))
            rate = learning_rate * (1 - step / n_steps)
            for w, (first, second), gradient in zip(weights, moments, gradients, strict=True):
                w.mul_(1 - rate * weight_decay)
                first.lerp_(gradient, 1 - first_decay)
                second.mul_(second_decay).addcmul_(gradient, gradient, value=1 - second_decay)
                spread = (second / (1 - second_decay ** (step + 1))).sqrt_().add_(1e-8)
                w.addcdiv_(first, spread, value=-rate / (1 - first_decay ** (step + 1)))
    return MlpProbe(mean, scale, *weights)


def check_labels(x: Float[Tensor, "n d"], y: Tensor, n_classes: int) -> Int64[Tensor, " c"]:
    """Tokens of each class, once the labels are known to fit the activations.

    Raises:
        ValueError: lengths differ, there are fewer than two classes, or a label is outside them.
        UndefinedMetric: a class has no examples.
    """
    if len(x) != len(y):
        raise ValueError(f"each row needs a label, got {len(x)} rows and {len(y)} labels; align them by token")
    if n_classes < 2:
        raise ValueError(f"a probe tells at least 2 classes apart, got {n_classes}")
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < n_classes):
        raise ValueError(f"labels must be in [0, {n_classes}), got {int(y.min())} to {int(y.max())}; drop other rows")
    counts = torch.bincount(y, minlength=n_classes)
    if int(counts.min()) == 0:
        empty = [c for c, n in enumerate(counts.tolist()) if n == 0]
        raise UndefinedMetric(f"class {empty[0]} has no examples to fit on ({len(empty)} such classes of {n_classes})")
    return counts


def control_labels(
    token_ids: Int64[Tensor, " n"], y: Int64[Tensor, " n"], n_classes: int, *, seed: int = 0
) -> Int64[Tensor, " n"]:
    """Labels of the control task: one class for each token type, drawn at random in the shares of the true classes.

    A probe can learn them by knowing which token it sees and nothing else. What it scores on the true labels beyond
    what it scores on these is its selectivity.

    Args:
        token_ids: Type of each token.
        y: True classes; their shares are those of the draw, and every class gets at least one type.
        n_classes: Number of classes.
        seed: Of the draw.
    Raises:
        UndefinedMetric: there are fewer token types than classes.
    Source:
        Hewitt & Liang, "Designing and interpreting probes with control tasks", 2019.
    """
    types, place = torch.unique(token_ids, return_inverse=True)
    if len(types) < n_classes:
        raise UndefinedMetric(f"a control task needs a token type for each of {n_classes} classes, got {len(types)}")
    generator = torch.Generator().manual_seed(seed)
    shares = torch.bincount(y, minlength=n_classes).double()
    drawn = torch.multinomial(shares, len(types), replacement=True, generator=generator)
    # One type for each class first: a class without any would make the task another one.
    order = torch.randperm(len(types), generator=generator)[:n_classes]
    missing = torch.bincount(drawn, minlength=n_classes) == 0
    if missing.any():
        drawn[order] = torch.arange(n_classes)
    return drawn[place]


def type_folds(
    token_ids: Int64[Tensor, " n"], y: Int64[Tensor, " n"], n_classes: int, *, share: float = 1 / 3, seed: int = 0
) -> Bool[Tensor, " n"]:
    """Which tokens are of held-out types, each class having types on both sides.

    A type counts for the class it most often carries. Fitted on tokens of the other types and scored on these, a probe
    cannot answer from memory which token has which label.

    Args:
        token_ids: Type of each token.
        y: Classes.
        n_classes: Number of classes.
        share: Of each class's types to hold out; at least one, and never all.
        seed: Of the choice.
    Raises:
        UndefinedMetric: a class has fewer than two token types of its own.
    """
    types, place = torch.unique(token_ids, return_inverse=True)
    table = torch.zeros(len(types), n_classes, dtype=torch.int64)
    table.index_put_((place, y), torch.ones_like(y), accumulate=True)
    own = table.argmax(dim=1)
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(types), dtype=torch.bool)
    for c in range(n_classes):
        mine = (own == c).nonzero()[:, 0]
        if len(mine) < 2:
            raise UndefinedMetric(f"class {c} has {len(mine)} token types of its own: none can be held out")
        n_held = min(len(mine) - 1, max(1, round(share * len(mine))))
        held[mine[torch.randperm(len(mine), generator=generator)[:n_held]]] = True
    return held[place]


def _standard(x: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Mean and standard deviation of columns; a constant column keeps its scale."""
    mean, deviation = x.double().mean(dim=0), x.double().std(dim=0, unbiased=False)
    return mean, torch.where(deviation > 1e-12 * (1 + mean.abs()), deviation, 1.0)
