"""LEACE: the smallest affine edit after which no linear predictor can tell the labels better than a constant."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric

Labels = Int64[Tensor, " labels"] | Float[Tensor, "labels c"]
"""Classes by number, or one column for each quantity to erase."""

_EIGENVALUE_TOLERANCE = 1e-12
"""Directions in which activations vary by less than this share of the largest variance do not vary at all."""


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """Means, covariances and cross-covariance of activations and labels; batches add up.

    Sums are of deviations from the mean, merged batch by batch (Chan, Golub & LeVeque 1983), so that a large common
    mean costs no digits.

    Attributes:
        n: Tokens.
        mean_x, mean_z: Means.
        xx, xz, zz: Sums over tokens of products of deviations from these means.
    """

    n: int
    mean_x: Float64[Tensor, " d"]
    mean_z: Float64[Tensor, " c"]
    xx: Float64[Tensor, "d d"]
    xz: Float64[Tensor, "d c"]
    zz: Float64[Tensor, "c c"]

    @staticmethod
    def of(x: Float[Tensor, "n d"], labels: Labels, *, n_classes: int | None = None) -> "CrossMoments":
        """Moments of a batch.

        Args:
            x: Activations.
            labels: Classes, made into one column each, or columns as they are.
            n_classes: Number of classes; the largest label and one when not given. To be given where batches add up.
        Raises:
            ValueError: lengths differ, a value is not finite, or a label is outside its classes.
        """
        z = _columns(labels, n_classes)
        if len(x) != len(z):
            raise ValueError(f"each row needs a label, got {len(x)} rows and {len(z)} labels; align them by token")
        if len(x) == 0:
            raise ValueError("moments need at least one row, got none")
        x = x.detach().double()
        for name, values in (("x", x), ("labels", z)):
            if not torch.isfinite(values.sum()):
                raise ValueError(f"{name} must be finite, got NaN or infinity; drop these rows")
        mean_x, mean_z = x.mean(dim=0), z.mean(dim=0)
        dx, dz = x - mean_x, z - mean_z
        return CrossMoments(len(x), mean_x, mean_z, dx.T @ dx, dx.T @ dz, dz.T @ dz)

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        """Moments of both batches together."""
        n = self.n + other.n
        dx, dz = other.mean_x - self.mean_x, other.mean_z - self.mean_z
        weight = self.n * other.n / n
        return CrossMoments(
            n,
            self.mean_x + dx * (other.n / n),
            self.mean_z + dz * (other.n / n),
            self.xx + other.xx + weight * torch.outer(dx, dx),
            self.xz + other.xz + weight * torch.outer(dx, dz),
            self.zz + other.zz + weight * torch.outer(dz, dz),
        )


@dataclass(frozen=True, eq=False)
class Leace:
    """The eraser `r(x) = x - W^+ u u^T W (x - mean)` of some labels.

    `W` is the inverse square root of the covariance of `x`, and `u` an orthonormal basis of the columns of
    `W Cov(x, z)`. The map is an oblique projection: applied twice it does what it does once.

    Attributes:
        mean: Mean activation; the eraser leaves it where it is.
        directions: `W^+ u`: unit changes of the activation, one column for each dimension erased.
        readouts: `u^T W`: linear functions of the activation, one row each, that say how much of each is there.
        correlations: Canonical correlations of activations and labels, largest first, in `(0, 1]`. With classes these
            say how well each further dimension tells them apart.
        label_readouts: The combination of label columns that each readout is correlated with, one row each.
    """

    mean: Float64[Tensor, " d"]
    directions: Float64[Tensor, "d r"]
    readouts: Float64[Tensor, "r d"]
    correlations: Float64[Tensor, " r"]
    label_readouts: Float64[Tensor, "r c"]

    @staticmethod
    def of(x: Float[Tensor, "n d"], labels: Labels) -> "Leace":
        """Fit on activations and their labels; see `fit_leace`."""
        return fit_leace(CrossMoments.of(x, labels))

    @property
    def rank(self) -> int:
        """Dimensions erased: the rank of the cross-covariance. Any finite sample of `c` classes has `c - 1`."""
        return len(self.correlations)

    def erase(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Activations from which the labels can no longer be told linearly, in the type they came in."""
        deviation = x.double() - self.mean.to(x.device)
        lost = (deviation @ self.readouts.to(x.device).T) @ self.directions.to(x.device).T
        return (x.double() - lost).to(x.dtype)


def fit_leace(moments: CrossMoments) -> Leace:
    """The least-squares smallest affine edit of `x` after which `Cov(r(x), z) = 0`.

    Zero covariance with every class means that the best linear predictor of the class, under any convex loss, is the
    constant one. A pseudo-inverse takes the place of the inverse where `x` does not vary: labels covary with nothing
    there either.

    Args:
        moments: Of activations and labels.
    Raises:
        UndefinedMetric: labels or activations do not vary, or do not covary: there is nothing to erase.
    Source:
        Belrose et al., "LEACE: Perfect linear concept erasure in closed form", 2023, theorem 4.3.
    """
    _check(moments)
    covariance, cross, own = moments.xx / moments.n, moments.xz / moments.n, moments.zz / moments.n
    whiten, unwhiten = _roots(covariance)
    # In units of the labels' own spread the singular values are canonical correlations.
    own_root = _roots(own)[0]
    u, correlations, vh = torch.linalg.svd(whiten @ cross @ own_root, full_matrices=False)
    kept = correlations > 1e-9 * max(1.0, float(correlations.max()))
    if not kept.any():
        raise UndefinedMetric("activations and labels do not covary: there is nothing to erase")
    u = u[:, kept]
    return Leace(moments.mean_x, unwhiten @ u, u.T @ whiten, correlations[kept], vh[kept] @ own_root)


@dataclass(frozen=True, eq=False)
class OracleLeace:
    """The eraser that is told the labels: `r(x, z) = x - Cov(x, z) Cov(z)^+ (z - mean)`.

    What is left of `x` when the labels' least-squares prediction of it is taken away: the smallest edit of all that
    leave no covariance, and so a floor for the cost of any that must work from `x` alone.

    Attributes:
        mean_z: Mean label.
        effects: Change of the activation for a unit of each label column.
    """

    mean_z: Float64[Tensor, " c"]
    effects: Float64[Tensor, "d c"]

    @staticmethod
    def of(x: Float[Tensor, "n d"], labels: Labels, *, n_classes: int | None = None) -> "OracleLeace":
        """Fit on activations and their labels.

        Raises:
            ValueError: as `CrossMoments.of`.
            UndefinedMetric: labels or activations do not vary.
        """
        moments = CrossMoments.of(x, labels, n_classes=n_classes)
        _check(moments)
        inverse_root = _roots(moments.zz)[0]
        return OracleLeace(moments.mean_z, moments.xz @ inverse_root @ inverse_root)

    @property
    def rank(self) -> int:
        """Dimensions that the edit may use."""
        return int(torch.linalg.matrix_rank(self.effects, rtol=1e-9))

    def erase(self, x: Float[Tensor, "n d"], labels: Labels) -> Float[Tensor, "n d"]:
        """Activations less what their own labels predict of them."""
        z = _columns(labels, len(self.mean_z))
        return (x.double() - (z - self.mean_z) @ self.effects.T).to(x.dtype)


def _columns(labels: Tensor, n_classes: int | None) -> Float64[Tensor, "n c"]:
    if labels.is_floating_point():
        return labels.detach().double()
    n = int(labels.max()) + 1 if n_classes is None and len(labels) else n_classes or 1
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < n):
        raise ValueError(
            f"labels must be in [0, {n}), got {int(labels.min())} to {int(labels.max())}; drop undefined rows"
        )
    return torch.nn.functional.one_hot(labels, n).double()


def _check(moments: CrossMoments) -> None:
    if float(moments.zz.diagonal().max()) <= 0:
        raise UndefinedMetric(f"the labels of all {moments.n} tokens are equal: there is nothing to erase")
    if float(moments.xx.diagonal().max()) <= 0:
        raise UndefinedMetric(f"the {moments.n} activations are all equal: nothing can be told from them")


def _roots(covariance: Float64[Tensor, "m m"]) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, "m m"]]:
    """Pseudo-inverse of the square root, and the square root, of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > _EIGENVALUE_TOLERANCE * values.max() * len(values)
    root = torch.where(kept, values, 1.0).sqrt()
    inverse = torch.where(kept, 1 / root, 0.0)
    return (vectors * inverse) @ vectors.T, (vectors * torch.where(kept, root, 0.0)) @ vectors.T
