"""One pass over the activations: every arm codes every batch, and what it costs and gives is added up by document."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import refit
from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation.arms import Coder, Lasso
from sparsight.evaluation.bootstrap import DocumentSums, Statistic
from sparsight.evaluation.comparison.diagnosis import Diagnosis, Sample, SmallValues
from sparsight.evaluation.comparison.overlap import jaccard, members
from sparsight.evaluation.comparison.record import ArmRecord, Level
from sparsight.evaluation.evaluate import ratio
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.pairs import float64_pair
from sparsight.evaluation.record import Estimate, SearchRecord

TOKENS, LATENTS, RESIDUAL, CENTRED, JACCARD, FOUND, PLANTED = range(7)

Estimator = Callable[[DocumentSums, Statistic], Estimate]


@dataclass(frozen=True, eq=False)
class Batch:
    """Activations to be coded by every arm.

    Attributes:
        x: Raw activations.
        document_ids: Document of each row.
        centred_sq: `|x - mean|^2`, about the mean of all rows to be coded.
        planted: True latents of each row, where they are known.
        sample: The rows whose codes are looked at more closely.
    """

    x: Float[Tensor, "n d_in"]
    document_ids: Int64[Tensor, " n"]
    centred_sq: Float64[Tensor, " n"]
    planted: Int64[Tensor, "n k_true"] | None
    sample: Sample | None


class Runner:
    """One arm at one sparsity, and what it has cost and given so far.

    Attributes:
        arm: Name of the coder.
        k: Sparsity asked for.
        coder: From activations and budgets to codes; None for the oracle, which is told the truth.
        own: Whether each token keeps the L0 of the dictionary's own code.
        documents: Terms summed within each document.
        seconds: Time spent coding.
        compared: Whether supports were compared with the encoder's.
        planted: Whether supports were compared with the truth.
        searched: What an approximate search did, told when the pass is over.
    """

    def __init__(self, arm: str, k: Level, coder: Coder | None, own: bool, diagnosis: Diagnosis | None) -> None:
        self.arm, self.k, self.coder, self.own, self.diagnosis = arm, k, coder, own, diagnosis
        self.documents = DocumentSums(7)
        self.lengths = L0(torch.zeros(1, dtype=torch.int64))
        self.small = SmallValues()
        self.seconds = 0.0
        self.compared = self.planted = False
        self.searched: SearchRecord | None = None

    @property
    def l0(self) -> float:
        """Mean L0 realised."""
        totals = self.documents.sums.sum(dim=0)
        return (totals[LATENTS] / totals[TOKENS]).item()

    def code(self, dictionary: AbstractDictionary, batch: Batch) -> SparseCode:
        """The arm's code of a batch, its time taken."""
        budget = budgets(dictionary, batch.x, self)
        began = time.perf_counter()
        if self.coder is not None:
            code = self.coder(batch.x, budget)
        else:
            assert batch.planted is not None
            code = refit(batch.x - dictionary.b_dec.detach(), dictionary.atoms.detach(), batch.planted)
        if batch.x.is_cuda:
            torch.cuda.synchronize(batch.x.device)
        self.seconds += time.perf_counter() - began
        return code

    @torch.no_grad()
    def add(self, dictionary: AbstractDictionary, batch: Batch, code: SparseCode, reference: SparseCode | None) -> None:
        """Add up what a code of a batch gives.

        Args:
            dictionary: Decodes it.
            batch: What was coded.
            code: The arm's.
            reference: The encoder arm's, at the same sparsity.
        """
        exact, x_hat = float64_pair(batch.x, dictionary.decode(code))
        shared = found = planted = torch.zeros_like(batch.centred_sq)
        hits = None
        if reference is not None:
            shared, self.compared = jaccard(code, reference), True
        if batch.planted is not None:
            hits, self.planted = members(code.support(), batch.planted), True
            found, planted = hits.sum(dim=1), (batch.planted != -1).sum(dim=1)
        residual_sq = (exact - x_hat).square().sum(dim=1)
        one = torch.ones_like(batch.centred_sq)
        columns = [one, code.l0(), residual_sq, batch.centred_sq, shared, found, planted]
        self.documents.add(batch.document_ids, torch.stack([column.double() for column in columns], dim=1))
        self.lengths += L0.of(code)
        self.small.add(code, batch.document_ids, hits)
        if self.diagnosis is not None:
            penalty = self.coder if isinstance(self.coder, Lasso) else None
            self.diagnosis.add(code, batch.sample, reference, penalty)

    def record(self, estimator: Estimator, loss_added: Estimate | None) -> ArmRecord:
        """The row of the comparison."""
        documents = self.documents
        small = self.small.summed()
        return ArmRecord(
            arm=self.arm,
            k=self.k,
            l0=self.l0,
            l0_p5=self.lengths.percentile(5),
            l0_p95=self.lengths.percentile(95),
            fvu=estimator(documents, ratio(RESIDUAL, CENTRED)),
            jaccard=estimator(documents, ratio(JACCARD, TOKENS)) if self.compared else None,
            loss_added=loss_added,
            seconds=self.seconds,
            own_l0=self.own,
            recall=estimator(documents, ratio(FOUND, PLANTED)) if self.planted else None,
            precision_small=small.precision(estimator, small=True) if self.planted else None,
            precision_large=small.precision(estimator, small=False) if self.planted else None,
            search=self.searched,
            diagnostics=None if self.diagnosis is None else self.diagnosis.record(estimator, small),
        )


def budgets(dictionary: AbstractDictionary, x: Float[Tensor, "n d_in"], runner: Runner) -> Int64[Tensor, " n"]:
    """Largest L0 of each row in an arm: that of the dictionary's own code, or `k`."""
    if runner.own:
        with torch.no_grad():
            return dictionary.encode(x).l0()
    return torch.full((len(x),), int(runner.k), device=x.device)


def run_arms(dictionary: AbstractDictionary, runners: Sequence[Runner], batch: Batch) -> None:
    """Code one batch in every arm. The encoder comes first at each sparsity: the others are compared with it."""
    reference: dict[Level, SparseCode] = {}
    for runner in runners:
        code = runner.code(dictionary, batch)
        if runner.arm == "encoder":
            reference[runner.k] = code
        runner.add(dictionary, batch, code, reference.get(runner.k))
