"""Means of classes, and products of means from different documents, in which noise averages out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Mean activation of each class within each stratum, about the stratum's mean over classes.

    Attributes:
        means: Deviations; 0 where a class has no token.
        centres: The stratum's mean over the classes it has.
        counts: Tokens.
    """

    means: Float64[Tensor, "s c d"]
    centres: Float64[Tensor, "s d"]
    counts: Int64[Tensor, "s c"]

    @staticmethod
    def of(
        x: Float[Tensor, "n d"], y: Int64[Tensor, " n"], strata: Int64[Tensor, " n"], n_classes: int, n_strata: int
    ) -> "ClassMeans":
        """Means of some tokens."""
        cell = strata * n_classes + y
        counts = torch.bincount(cell, minlength=n_strata * n_classes)
        sums = torch.zeros(n_strata * n_classes, x.shape[1], dtype=torch.float64).index_add_(0, cell, x.double())
        means = (sums / counts.clamp_min(1)[:, None]).view(n_strata, n_classes, -1)
        counts = counts.view(n_strata, n_classes)
        there = (counts > 0).double()[..., None]
        centres = (means * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
        return ClassMeans((means - centres[:, None]) * there, centres, counts)


@dataclass(frozen=True, eq=False)
class Products:
    """Products `m_i . m'_j` of class means of one set of documents with those of another, kept by document.

    Noise of the two sets is independent, so that each product is right on average: means that do not differ give 0, and
    not the positive number that a mean's product with itself would.

    Attributes:
        sums: By document of the second set: for each stratum, class `i` of the first and class `j` of the second, the
            sum over tokens of `m_i . x`; then the tokens of each stratum and class.
        weights: Of each pair of classes in each stratum: how well their distance is known; 0 where one is missing.
        n_strata, n_classes: Sizes.
    """

    sums: Float64[Tensor, "documents m"]
    weights: Float64[Tensor, "s c c"]
    n_strata: int
    n_classes: int

    @staticmethod
    def of(
        first: ClassMeans,
        x: Float[Tensor, "n d"],
        y: Int64[Tensor, " n"],
        strata: Int64[Tensor, " n"],
        document_ids: Int64[Tensor, " n"],
    ) -> "Products":
        """Products of `first` with the means of other documents' tokens.

        Raises:
            UndefinedMetric: no stratum has two classes on both sides.
        """
        s, c = first.counts.shape
        projected = torch.einsum("nd,ncd->nc", x.double() - first.centres[strata], first.means[strata])
        terms = torch.zeros(len(x), s * c * c + s * c, dtype=torch.float64)
        cells = (strata * c * c + y)[:, None] + c * torch.arange(c)
        terms.scatter_(1, cells, projected)
        terms[torch.arange(len(x)), s * c * c + strata * c + y] = 1
        sums = DocumentSums(terms.shape[1])
        sums.add(document_ids, terms)
        there = torch.zeros(s * c, dtype=torch.int64).index_add_(0, strata * c + y, torch.ones_like(y)).view(s, c)
        spread = 1 / first.counts.double() + 1 / there.double()  # variance of a mean's noise, in its own units
        weights = 1 / (spread[:, :, None] + spread[:, None, :])
        weights = torch.where(torch.isfinite(weights), weights, 0.0) * (1 - torch.eye(c, dtype=torch.float64))
        if not (weights > 0).any():
            raise UndefinedMetric("no two classes have examples on both sides: no distance can be measured")
        return Products(sums.sums, weights, s, c)

    def gram(self, sums: Float64[Tensor, "*draws m"]) -> Float64[Tensor, "*draws s c c"]:
        """`m_i . m'_j` from summed terms."""
        s, c = self.n_strata, self.n_classes
        products = sums[..., : s * c * c].reshape(*sums.shape[:-1], s, c, c)
        counts = sums[..., s * c * c :].reshape(*sums.shape[:-1], s, 1, c)
        return products / counts.clamp_min(1)

    def distances(self, sums: Float64[Tensor, "*draws m"]) -> Float64[Tensor, "*draws c c"]:
        """Squared distances of class means `(m_i - m_j) . (m'_i - m'_j)`, averaged over strata by how well known."""
        gram = self.gram(sums)
        own = gram.diagonal(dim1=-2, dim2=-1)
        squared = own[..., :, None] + own[..., None, :] - gram - gram.transpose(-1, -2)
        total = self.weights.sum(dim=0)
        return (squared * self.weights).sum(dim=-3) / torch.where(total > 0, total, 1.0)

    def centred_gram(self, sums: Float64[Tensor, "*draws m"]) -> Float64[Tensor, "*draws c c"]:
        """Symmetric Gram matrix of class means about their mean, strata averaged, from the distances."""
        c = self.n_classes
        centring = torch.eye(c, dtype=torch.float64) - 1 / c
        return -centring @ self.distances(sums) @ centring / 2

    @property
    def whole(self) -> Float64[Tensor, " m"]:
        """Terms of all documents."""
        return self.sums.sum(dim=0)

    @property
    def pair_weights(self) -> Float64[Tensor, "c c"]:
        """Of each pair of classes, over strata."""
        return self.weights.sum(dim=0)


def shared_between_strata(first: ClassMeans, second: ClassMeans) -> float | None:
    """Agreement of the arrangement of classes between strata, against that within: 1 is one arrangement, 0 unrelated.

    Sum of `m_ic . m'_jc` over classes and pairs of different strata, over the same within strata, per pair. None where
    there is one stratum, or nothing reproducible within them.
    """
    s = len(first.means)
    if s < 2:
        return None
    table = torch.einsum("icd,jcd->ij", first.means, second.means)
    within = table.diagonal().mean()
    if within <= 0:
        return None
    return float((table.sum() - table.diagonal().sum()) / (s * (s - 1)) / within)
