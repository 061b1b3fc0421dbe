"""What codes show beside their loss: small values, crowded atoms, distance from the optimum, interference."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import duality_gap, kkt_residual, span_overlap
from sparsight.coding.diagnostics.overlap import mean_overlap
from sparsight.coding.diagnostics.small_weights import relative_magnitudes
from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation.arms import SEARCHING, Lasso, encoder_weights, has_encoder
from sparsight.evaluation.bootstrap import DocumentSums, Statistic
from sparsight.evaluation.comparison.record import Diagnostics
from sparsight.evaluation.evaluate import ratio
from sparsight.evaluation.record import Estimate

FRACTIONS = (0.05, 0.1, 0.2)
"""Values below these shares of the 99th percentile of their own latent are called small."""

SMALL = 0.1
"""The share at which the precision of small and of other values is told."""

Estimator = Callable[[DocumentSums, Statistic], Estimate]


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a batch whose codes are looked at closely, and what every arm needs to know of them.

    Attributes:
        rows: Their places in the batch.
        x: Their raw activations.
        document_ids: Their documents.
        read_outs: `<e_j, x - b_dec>`, `e_j` the encoder's column of unit norm, or the atom without an encoder.
    """

    rows: Int64[Tensor, " m"]
    x: Float[Tensor, "m d_in"]
    document_ids: Int64[Tensor, " m"]
    read_outs: Float[Tensor, "m n_latents"]


class Sampler:
    """Draws every so-manyth row of all batches.

    Args:
        dictionary: Its atoms and read-outs.
        n_rows: Rows in all batches.
        wanted: Rows to look at closely, about.
    """

    def __init__(self, dictionary: AbstractDictionary, n_rows: int, wanted: int) -> None:
        self.stride, self.seen = max(1, n_rows // wanted), 0
        self.b_dec = dictionary.b_dec.detach()
        self.directions = read_out_directions(dictionary)

    def sample(self, x: Float[Tensor, "n d_in"], document_ids: Int64[Tensor, " n"]) -> Sample:
        """The sampled rows of the next batch; maybe none."""
        rows = torch.arange(-self.seen % self.stride, len(x), self.stride)
        self.seen += len(x)
        chosen = x[rows.to(x.device)]
        ids = document_ids[rows.to(document_ids.device)]
        return Sample(rows.to(x.device), chosen, ids, (chosen - self.b_dec) @ self.directions)


def read_out_directions(dictionary: AbstractDictionary) -> Float[Tensor, "d_in n_latents"]:
    """Unit directions that latents are read by: the encoder's columns, or the atoms without an encoder."""
    columns = encoder_weights(dictionary)[0] if has_encoder(dictionary) else dictionary.atoms.T
    return torch.nn.functional.normalize(columns.detach(), dim=0)


@dataclass(frozen=True, eq=False)
class SmallSums:
    """Values counted within each document: all, those below each fraction, and which of them are planted.

    Attributes:
        sums: Columns: values, small ones for each of `FRACTIONS`, planted small ones, planted others.
    """

    sums: DocumentSums

    def mass(self, estimator: Estimator) -> dict[str, Estimate] | None:
        """Share of small values, for each fraction; None where no latent is active."""
        if not len(self.sums) or self.sums.sums[:, 0].sum() == 0:
            return None
        return {str(q): estimator(self.sums, ratio(1 + i, 0)) for i, q in enumerate(FRACTIONS)}

    def precision(self, estimator: Estimator, *, small: bool) -> Estimate | None:
        """Share of planted latents among small values, or among the others; None where there is no such value."""
        column = 1 + FRACTIONS.index(SMALL)
        hits = len(FRACTIONS) + (1 if small else 2)

        def of(s: Tensor) -> Tensor:
            return s[..., hits] / (s[..., column] if small else s[..., 0] - s[..., column])

        totals = self.sums.sums.sum(dim=0)
        there = totals[column] if small else totals[0] - totals[column]
        return estimator(self.sums, of) if there > 0 else None


class SmallValues:
    """All values in use, kept until the percentiles of each latent are known: 17 bytes for each."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, code: SparseCode, document_ids: Int64[Tensor, " n"], hits: Bool[Tensor, "n k"] | None) -> None:
        """Keep the values of a batch; `hits` says which latents are planted."""
        used = code.values != 0
        documents = document_ids.to(used.device)[:, None].expand(used.shape)[used]
        right = torch.zeros_like(used) if hits is None else hits
        columns = (code.indices[used].int(), code.values[used].float(), documents, right[used])
        self._kept.append(tuple(column.cpu() for column in columns))  # type: ignore[arg-type]

    def summed(self) -> SmallSums:
        """Counts within each document."""
        latents, values, ids, right = (torch.cat(columns) for columns in zip(*self._kept, strict=True))
        sums = DocumentSums(3 + len(FRACTIONS))
        if len(latents) > 0:
            relative = relative_magnitudes(latents.long(), values)
            small = [relative < q for q in FRACTIONS]
            at = small[FRACTIONS.index(SMALL)]
            columns = [torch.ones_like(at), *small, right & at, right & ~at]
            sums.add(ids, torch.stack([column.double() for column in columns], dim=1))
        return SmallSums(sums)


class Diagnosis:
    """Overlaps, optimality and read-outs of one arm's codes on the sampled rows, summed within each document.

    Args:
        dictionary: Wrote or reads the codes.
        arm: Name of the coder.
        seed: Of the random atoms.
    """

    COLUMNS = (
        "rows",
        "kkt",
        "gap",
        "floor",
        "paired",
        "own",
        "random",
        "paired_e",
        "encoder",
        "off",
        "read",
        "read_sq",
    )

    def __init__(self, dictionary: AbstractDictionary, arm: str, seed: int) -> None:
        self.dictionary, self.arm = dictionary, arm
        self.generator = torch.Generator().manual_seed(seed)
        self.documents = DocumentSums(len(self.COLUMNS))
        self.has_gap = self.has_encoder = False

    def add(self, code: SparseCode, sample: Sample | None, reference: SparseCode | None, lasso: Lasso | None) -> None:
        """Add up what the codes of the sampled rows of a batch show.

        Args:
            code: Of the whole batch.
            sample: Rows to look at.
            reference: The encoder arm's code of the batch.
            lasso: The arm, if it is the lasso.
        """
        if sample is None or len(sample.rows) == 0:
            return
        atoms = self.dictionary.atoms.detach()
        y = sample.x - self.dictionary.b_dec.detach()
        code = code[sample.rows]
        length = torch.linalg.vector_norm(y, dim=1).double()
        tiny = torch.finfo(torch.float64).tiny
        zero = torch.zeros_like(length)
        terms = {"rows": torch.ones_like(length)}
        terms["kkt"] = kkt_residual(y, code, atoms).double() / length.clamp_min(tiny)
        terms["floor"] = torch.linalg.vector_norm(code.values.double(), dim=1) / math.sqrt(atoms.shape[1])
        if lasso is not None:
            self.has_gap = True
            gap = duality_gap(y, lasso.shrunk(sample.x), atoms, lasso.penalty).double()
            terms["gap"] = gap / (length.square() / 2).clamp_min(tiny)
        terms["own"], terms["random"], terms["paired"] = self._overlaps(code)
        if reference is not None:
            self.has_encoder = True
            picks = by_size(reference[sample.rows])
            terms["encoder"], terms["paired_e"] = mean_overlap(picks, span_overlap(picks, atoms))
        terms |= _off_support(code, sample.read_outs)
        columns = [terms.get(name, zero).double() for name in self.COLUMNS]
        self.documents.add(sample.document_ids, torch.stack(columns, dim=1))

    def _overlaps(self, code: SparseCode) -> tuple[Tensor, Tensor, Tensor]:
        """Of the code's own atoms and of random ones, and which rows have any."""
        atoms = self.dictionary.atoms.detach()
        # The slots of pursuits stand in the order of choice.
        ordered = code if self.arm in SEARCHING else by_size(code)
        probes = torch.randint(code.n_latents, tuple(ordered.indices.shape), generator=self.generator)
        own, counted = mean_overlap(ordered, span_overlap(ordered, atoms))
        random, _ = mean_overlap(ordered, span_overlap(ordered, atoms, probes=probes.to(atoms.device)))
        return own, random, counted

    def record(self, estimator: Estimator, small: SmallSums) -> Diagnostics:
        """The means with their intervals."""
        column = {name: i for i, name in enumerate(self.COLUMNS)}
        totals = dict(zip(self.COLUMNS, self.documents.sums.sum(dim=0).tolist(), strict=True))

        def mean(name: str, over: str = "rows") -> Estimate | None:
            return estimator(self.documents, ratio(column[name], column[over])) if totals[over] > 0 else None

        def gap(first: str, second: str, over: str, over_second: str) -> Estimate | None:
            a, b = ratio(column[first], column[over]), ratio(column[second], column[over_second])
            here = totals[over] > 0 and totals[over_second] > 0
            return estimator(self.documents, lambda s: a(s) - b(s)) if here else None

        def spread(s: Tensor) -> Tensor:
            off, read, read_sq = (s[..., column[name]] for name in ("off", "read", "read_sq"))
            return (read_sq / off - (read / off).square()).clamp_min(0).sqrt()

        kkt, floor = mean("kkt"), mean("floor")
        assert kkt is not None
        assert floor is not None
        return Diagnostics(
            n_tokens=int(totals["rows"]),
            small_weight_mass=small.mass(estimator),
            span_overlap=mean("own", "paired"),
            span_overlap_random=mean("random", "paired"),
            overlap_minus_random=gap("own", "random", "paired", "paired"),
            overlap_minus_encoder=gap("own", "encoder", "paired", "paired_e") if self.has_encoder else None,
            kkt_residual=kkt,
            duality_gap=mean("gap") if self.has_gap else None,
            interference_floor=floor,
            off_support_std=estimator(self.documents, spread) if totals["off"] > 0 else None,
            threshold_over_floor=_threshold_over(self.dictionary, floor.value),
        )


def by_size(code: SparseCode) -> SparseCode:
    """The same code, the largest value of each row first, without slots that no row uses."""
    most = int(code.l0().max()) if len(code) else 0
    order = code.values.abs().argsort(dim=1, descending=True, stable=True)[:, :most]
    return SparseCode(code.indices.gather(1, order), code.values.gather(1, order), code.n_latents)


def _off_support(code: SparseCode, read_outs: Float[Tensor, "m n_latents"]) -> dict[str, Float64[Tensor, " m"]]:
    """Number, sum and sum of squares of what the directions of inactive latents read."""
    read = read_outs.double()
    used = read.gather(1, code.indices) * (code.values != 0)
    return {
        "off": (read.shape[1] - code.l0()).double(),
        "read": read.sum(dim=1) - used.sum(dim=1),
        "read_sq": read.square().sum(dim=1) - used.square().sum(dim=1),
    }


def _threshold_over(dictionary: AbstractDictionary, floor: float) -> float | None:
    """Median over latents of what a read-out of unit norm must exceed, over the floor; None without thresholds."""
    threshold = getattr(dictionary, "threshold", None)
    if not isinstance(threshold, Tensor) or not has_encoder(dictionary) or floor == 0:
        return None
    W_enc, b_enc = encoder_weights(dictionary)
    length = torch.linalg.vector_norm(W_enc.detach(), dim=0)
    # `<w_j, x - b_dec> + b_j > theta_j`: the offset is a part of the threshold.
    relative = ((threshold.detach() - b_enc.detach()) / length)[length > 0]
    return float(relative.median()) / floor if len(relative) > 0 else None
