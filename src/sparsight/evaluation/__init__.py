"""Measurements of a dictionary: one metric per file, pure and streaming, and functions that compose them."""

from sparsight.evaluation import metrics
from sparsight.evaluation.bootstrap import DocumentSums, Interval, bootstrap, paired_difference
from sparsight.evaluation.classification import Detection, SparseColumns
from sparsight.evaluation.cosine import Cosine
from sparsight.evaluation.density import Density, DensityHistogram
from sparsight.evaluation.fvu import Fvu, FvuTokenMean, FvuUncentred
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.loss import LossAdded
from sparsight.evaluation.recovery import CodeRecovery, Recovery, recovery
from sparsight.evaluation.shrinkage import Shrinkage, ShrinkageSums, shrinkage

__all__ = [
    "L0",
    "CodeRecovery",
    "Cosine",
    "Density",
    "DensityHistogram",
    "Detection",
    "DocumentSums",
    "Fvu",
    "FvuTokenMean",
    "FvuUncentred",
    "Interval",
    "LossAdded",
    "Recovery",
    "Shrinkage",
    "ShrinkageSums",
    "SparseColumns",
    "bootstrap",
    "metrics",
    "paired_difference",
    "recovery",
    "shrinkage",
]
