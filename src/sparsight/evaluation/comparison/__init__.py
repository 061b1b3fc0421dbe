"""Coders of one dictionary compared at equal L0: what it costs, and what the codes show."""

from sparsight.evaluation.comparison.compare import compare_coders
from sparsight.evaluation.comparison.record import ArmRecord, Comparison, Diagnostics, Difference

__all__ = ["ArmRecord", "Comparison", "Diagnostics", "Difference", "compare_coders"]
