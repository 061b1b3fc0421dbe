"""Coders: pure functions that write activations as sparse combinations of given atoms; and what their codes show."""

from sparsight.codes import SparseCode
from sparsight.coding.diagnostics import (
    OverlapComparison,
    SmallWeightPrecision,
    SweepPoint,
    compare_span_overlap,
    duality_gap,
    interference_floor,
    kkt_residual,
    small_weight_mass,
    small_weight_precision,
    span_overlap,
    threshold_code,
    threshold_for_l0,
    threshold_over_floor,
    threshold_sweep,
)
from sparsight.coding.fista import fista
from sparsight.coding.gradient_pursuit import gradient_pursuit
from sparsight.coding.kernels.choice import SearchMethod, kept_search
from sparsight.coding.kernels.gram import GramTable
from sparsight.coding.kernels.screening import Screening, ScreeningReport
from sparsight.coding.matching_pursuit import matching_pursuit
from sparsight.coding.nonnegative_lasso import nonnegative_lasso
from sparsight.coding.orthogonal_matching_pursuit import orthogonal_matching_pursuit
from sparsight.coding.refit import refit
from sparsight.coding.scale import fit_scale

__all__ = [
    "GramTable",
    "OverlapComparison",
    "Screening",
    "ScreeningReport",
    "SearchMethod",
    "SmallWeightPrecision",
    "SparseCode",
    "SweepPoint",
    "compare_span_overlap",
    "duality_gap",
    "fista",
    "fit_scale",
    "gradient_pursuit",
    "interference_floor",
    "kept_search",
    "kkt_residual",
    "matching_pursuit",
    "nonnegative_lasso",
    "orthogonal_matching_pursuit",
    "refit",
    "small_weight_mass",
    "small_weight_precision",
    "span_overlap",
    "threshold_code",
    "threshold_for_l0",
    "threshold_over_floor",
    "threshold_sweep",
]
