"""The sums behind an evaluation: per-token terms, added up for each document as the rows stream by."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.breakdown import Breakdown, Grouping
from sparsight.evaluation.density import Density
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.norms import OUTLIER, NormHistogram
from sparsight.evaluation.pairs import float64_pair
from sparsight.evaluation.reading import StoredActivations, batches
from sparsight.evaluation.shrinkage import ShrinkageSums
from sparsight.evaluation.token_policy import CellSums, TokenPolicy
from sparsight.models import Site

# Columns of the per-token terms.
TOKENS, LATENTS, RESIDUAL, CENTRED, ENERGY, COSINE, DIRECTED, COSINE_C, DIRECTED_C, RATIO, AT_MEAN, INNER = range(12)
RESIDUAL_IN, CENTRED_IN = 12, 13  # the same over tokens that are not outliers
MAGNITUDE, NORM_RATIO = 14, 15  # sum of |values|; |x_hat| / |x|
N_TERMS = 16


@dataclass(frozen=True, eq=False)
class Frame:
    """What must be known of the activations before residuals can be judged.

    Attributes:
        n: Tokens.
        mean: Mean activation.
        longest: Norm above which a token is an outlier; infinite when every activation is zero.
        norms: How many tokens have which norm.
    """

    n: int
    mean: Float64[Tensor, " d_in"]
    longest: float
    norms: NormHistogram


def frame_of(
    part: StoredActivations, site: Site, blocks: list[slice], device: torch.device, advance: Callable[[int], None]
) -> Frame:
    """The first pass: mean and median norm."""
    return frame_over(x for _, x in batches(part, site, blocks, device, advance))


def frame_over(rows: Iterable[Float[Tensor, "_ d_in"]], outlier: float | int = OUTLIER) -> Frame:
    """The same of batches, at least one; `outlier` in median norms."""
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
        longest = outlier * norms.median
    except UndefinedMetric:
        longest = float("inf")
    if n == 0:
        raise UndefinedMetric("no token is left to be measured; let more kinds of token count")
    return Frame(n, total / n, longest, norms)


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
        code.values.detach().abs().double().sum(dim=1),
        torch.where(energy > 0, (hat_sq / energy.masked_fill(energy == 0, 1)).sqrt(), 0.0),
    ]
    return torch.stack([column.double() for column in columns], dim=1), hat_sq, dot


def _cosine(dot: Tensor, a_sq: Tensor, b_sq: Tensor) -> Tensor:
    norms = (a_sq.sqrt() * b_sq.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((a_sq > 0) & (b_sq > 0), dot / norms, 0.0)


@dataclass(frozen=True, eq=False)
class Rows:
    """What is known of the tokens of a batch, apart from their activations.

    Attributes:
        document_ids: Document of each.
        positions: Place of each in its context.
        kinds: What each is, in the bits of `token_policy`.
        labels: Class of each, for the labels that are asked for.
    """

    document_ids: Int64[Tensor, " n"]
    positions: Int64[Tensor, " n"]
    kinds: Int64[Tensor, " n"]
    labels: dict[str, Tensor]

    def __getitem__(self, kept: Tensor) -> "Rows":
        kept = kept.cpu()
        labels = {name: values[kept] for name, values in self.labels.items()}
        return Rows(self.document_ids[kept], self.positions[kept], self.kinds.cpu()[kept], labels)


class Sums:
    """The second pass: all sums, filled batch by batch.

    Args:
        frame: From the first pass.
        n_latents: Width of the dictionary.
        offset: What is reconstructed when every latent is silent.
        policy: Which tokens count.
        groupings: Into which groups they are put.
    """

    def __init__(
        self,
        frame: Frame,
        n_latents: int,
        offset: Float[Tensor, " d_in"],
        policy: TokenPolicy | None = None,
        groupings: Sequence[Grouping] = (),
    ) -> None:
        self.frame, self.offset, self.policy = frame, offset, policy or TokenPolicy()
        self.documents = DocumentSums(N_TERMS)
        self.l0 = L0(torch.zeros(1, dtype=torch.int64))
        self.density = Density(0, torch.zeros(n_latents, dtype=torch.int64))
        self.breakdowns = [Breakdown(grouping) for grouping in groupings]
        self.cells = CellSums(frame.mean.cpu())
        self._sum_inner = torch.zeros_like(frame.mean)
        self._sum_x_hat = torch.zeros_like(frame.mean)
        self._hat_sq = self._dot = 0.0

    @torch.no_grad()
    def add(self, x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], code: SparseCode, rows: Rows) -> None:
        """Add a batch of activations, their reconstructions, and the codes these came from."""
        terms, hat_sq, dot = token_terms(x, x_hat, code, self.frame)
        self.cells.add(
            x.double() - self.frame.mean, rows.kinds, terms[:, LATENTS], terms[:, RESIDUAL], terms[:, CENTRED]
        )
        counted = self.policy.counted(rows.kinds).to(x.device)
        if not bool(counted.all()):
            x, x_hat, code, rows = x[counted], x_hat[counted], code[counted], rows[counted]
            terms, hat_sq, dot = terms[counted], hat_sq[counted], dot[counted]
        if not len(x):
            return
        self.documents.add(rows.document_ids, terms)
        for breakdown in self.breakdowns:
            groups = breakdown.grouping.assign(x, rows.positions, rows.labels)
            breakdown.add(groups, rows.document_ids, terms[:, LATENTS], terms[:, RESIDUAL], terms[:, CENTRED])
        self.l0 += L0.of(code)
        self.density += Density.of(code)
        self._sum_x_hat += x_hat.double().sum(dim=0)
        outer = terms[:, INNER] == 0
        self._sum_inner += x.double().sum(dim=0) - x[outer].double().sum(dim=0)
        self._hat_sq += hat_sq.sum().item()
        self._dot += dot.sum().item()

    @property
    def totals(self) -> Float64[Tensor, " terms"]:
        """The terms summed over all documents."""
        return self.documents.totals

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
