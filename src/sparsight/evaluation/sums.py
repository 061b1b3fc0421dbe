"""The sums behind an evaluation: per-token terms, added up for each document as the rows stream by."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.density import Density
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.norms import OUTLIER, NormHistogram
from sparsight.evaluation.pairs import float64_pair
from sparsight.evaluation.reading import StoredActivations, batches
from sparsight.evaluation.shrinkage import ShrinkageSums
from sparsight.models import Site

# Columns of the per-token terms.
TOKENS, LATENTS, RESIDUAL, CENTRED, ENERGY, COSINE, DIRECTED, COSINE_C, DIRECTED_C, RATIO, AT_MEAN, INNER = range(12)
RESIDUAL_IN, CENTRED_IN = 12, 13  # the same over tokens that are not outliers
N_TERMS = 14


@dataclass(frozen=True, eq=False)
class Frame:
    """What must be known of the activations before residuals can be judged.

    Attributes:
        n: Tokens.
        mean: Mean activation.
        longest: Norm above which a token is an outlier; infinite when every activation is zero.
    """

    n: int
    mean: Float64[Tensor, " d_in"]
    longest: float


def frame_of(
    part: StoredActivations, site: Site, blocks: list[slice], device: torch.device, advance: Callable[[int], None]
) -> Frame:
    """The first pass: mean and median norm."""
    return frame_over(x for _, x in batches(part, site, blocks, device, advance))


def frame_over(rows: Iterable[Float[Tensor, "_ d_in"]]) -> Frame:
    """The same of batches, at least one."""
    total: Tensor | None = None
    norms: NormHistogram | None = None
    n = 0
    for x in rows:
        here, found = x.double().sum(dim=0), NormHistogram.of(x)
        total = here if total is None else total + here
        norms = found if norms is None else norms + found
        n += len(x)
    assert total is not None
    assert norms is not None
    try:
        longest = OUTLIER * norms.median
    except UndefinedMetric:
        longest = float("inf")
    return Frame(n, total / n, longest)


def token_terms(
    x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], code: SparseCode, frame: Frame
) -> tuple[Float64[Tensor, "n terms"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Every per-token quantity whose sums make a metric, one column each; and `|x_hat|^2`, `<x, x_hat>` beside them."""
    x, x_hat = float64_pair(x, x_hat)
    centred, centred_hat = x - frame.mean, x_hat - frame.mean
    residual_sq = (x - x_hat).square().sum(dim=1)
    centred_sq, energy = centred.square().sum(dim=1), x.square().sum(dim=1)
    hat_sq, dot = x_hat.square().sum(dim=1), (x * x_hat).sum(dim=1)
    inner = energy <= frame.longest**2
    at_mean = centred_sq == 0
    columns = [
        torch.ones_like(energy),
        code.l0().double(),
        residual_sq,
        centred_sq,
        energy,
        _cosine(dot, energy, hat_sq),
        energy > 0,
        _cosine((centred * centred_hat).sum(dim=1), centred_sq, centred_hat.square().sum(dim=1)),
        ~at_mean,
        torch.where(at_mean, 0, residual_sq / centred_sq.masked_fill(at_mean, 1)),
        at_mean,
        inner,
        residual_sq * inner,
        centred_sq * inner,
    ]
    return torch.stack([column.double() for column in columns], dim=1), hat_sq, dot


def _cosine(dot: Tensor, a_sq: Tensor, b_sq: Tensor) -> Tensor:
    norms = (a_sq.sqrt() * b_sq.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((a_sq > 0) & (b_sq > 0), dot / norms, 0.0)


class Sums:
    """The second pass: all sums, filled batch by batch.

    Args:
        frame: From the first pass.
        n_latents: Width of the dictionary.
        offset: What is reconstructed when every latent is silent.
    """

    def __init__(self, frame: Frame, n_latents: int, offset: Float[Tensor, " d_in"]) -> None:
        self.frame = frame
        self.offset = offset
        self.documents = DocumentSums(N_TERMS)
        self.l0 = L0(torch.zeros(1, dtype=torch.int64))
        self.density = Density(0, torch.zeros(n_latents, dtype=torch.int64))
        self._sum_inner = torch.zeros_like(frame.mean)
        self._sum_x_hat = torch.zeros_like(frame.mean)
        self._hat_sq = self._dot = 0.0

    @torch.no_grad()
    def add(
        self, x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], code: SparseCode, document_ids: Tensor
    ) -> None:
        """Add a batch of activations, their reconstructions, and the codes these came from."""
        terms, hat_sq, dot = token_terms(x, x_hat, code, self.frame)
        self.documents.add(document_ids, terms)
        self.l0 += L0.of(code)
        self.density += Density.of(code)
        self._sum_x_hat += x_hat.double().sum(dim=0)
        self._sum_inner += x.double()[terms[:, INNER] > 0].sum(dim=0)
        self._hat_sq += hat_sq.sum().item()
        self._dot += dot.sum().item()

    @property
    def totals(self) -> Float64[Tensor, " terms"]:
        """The terms summed over all documents."""
        return self.documents.sums.sum(dim=0)

    @property
    def shrinkage(self) -> ShrinkageSums:
        """Sums of the shrinkage family."""
        n = self.frame.n
        energy = self.totals[ENERGY].item()
        return ShrinkageSums(n, n * self.frame.mean, self._sum_x_hat, energy, self._hat_sq, self._dot)

    @property
    def inner_shift_sq(self) -> float:
        """Squared distance from the mean of all tokens to the mean of those that are not outliers."""
        n = self.totals[INNER].item()
        return (self._sum_inner / max(n, 1) - self.frame.mean).square().sum().item()
