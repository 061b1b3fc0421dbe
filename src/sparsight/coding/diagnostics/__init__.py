"""What a code shows about the coder that wrote it: optimality, crowding of its atoms, small values."""

from sparsight.coding.diagnostics.optimality import duality_gap, kkt_residual
from sparsight.coding.diagnostics.overlap import OverlapComparison, compare_span_overlap, span_overlap
from sparsight.coding.diagnostics.small_weights import (
    SmallWeightPrecision,
    interference_floor,
    small_weight_mass,
    small_weight_precision,
    threshold_code,
    threshold_for_l0,
    threshold_over_floor,
)
from sparsight.coding.diagnostics.sweep import SweepPoint, threshold_sweep

__all__ = [
    "OverlapComparison",
    "SmallWeightPrecision",
    "SweepPoint",
    "compare_span_overlap",
    "duality_gap",
    "interference_floor",
    "kkt_residual",
    "small_weight_mass",
    "small_weight_precision",
    "span_overlap",
    "threshold_code",
    "threshold_for_l0",
    "threshold_over_floor",
    "threshold_sweep",
]
