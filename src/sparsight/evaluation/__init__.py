"""Measurements of a dictionary: one metric per file, pure and streaming, and functions that compose them."""

from sparsight.evaluation import benchmarks, features, metrics
from sparsight.evaluation.approximate import Approximate
from sparsight.evaluation.arms import ARMS
from sparsight.evaluation.bootstrap import DocumentSums, Interval, bootstrap, paired_difference
from sparsight.evaluation.causal import CausalPrediction, causal_prediction
from sparsight.evaluation.classification import Detection, SparseColumns
from sparsight.evaluation.comparison import ArmRecord, Comparison, Diagnostics, Difference, compare_coders
from sparsight.evaluation.cosine import Cosine
from sparsight.evaluation.density import Density, DensityHistogram
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.features import FeatureRow, FeatureTable, best_latents
from sparsight.evaluation.fvu import Fvu, FvuTokenMean, FvuUncentred
from sparsight.evaluation.joint_scale import JointScaleSums
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.loss import LossAdded
from sparsight.evaluation.record import Estimate, Evaluation, SearchRecord
from sparsight.evaluation.recovery import CodeRecovery, Recovery, Stability, recovery, stability
from sparsight.evaluation.refit_slopes import RefitSlopes
from sparsight.evaluation.shrinkage import Shrinkage, ShrinkageSums, shrinkage
from sparsight.evaluation.shrinkage_panel import PanelSums, panel_of
from sparsight.evaluation.shrinkage_panel_record import ShrinkagePanel
from sparsight.evaluation.shrinkage_profile import GroupedShrinkageSums, ValueProfile, norm_deciles, norm_group
from sparsight.evaluation.side_by_side import SideBySide, evaluate_side_by_side
from sparsight.evaluation.splice import loss_added
from sparsight.evaluation.token_policy import TokenPolicy
from sparsight.evaluation.token_scales import TokenScales

__all__ = [
    "ARMS",
    "L0",
    "Approximate",
    "ArmRecord",
    "CausalPrediction",
    "CodeRecovery",
    "Comparison",
    "Cosine",
    "Density",
    "DensityHistogram",
    "Detection",
    "Diagnostics",
    "Difference",
    "DocumentSums",
    "Estimate",
    "Evaluation",
    "FeatureRow",
    "FeatureTable",
    "Fvu",
    "FvuTokenMean",
    "FvuUncentred",
    "GroupedShrinkageSums",
    "Interval",
    "JointScaleSums",
    "LossAdded",
    "PanelSums",
    "Recovery",
    "RefitSlopes",
    "SearchRecord",
    "Shrinkage",
    "ShrinkagePanel",
    "ShrinkageSums",
    "SideBySide",
    "SparseColumns",
    "Stability",
    "TokenPolicy",
    "TokenScales",
    "ValueProfile",
    "benchmarks",
    "best_latents",
    "bootstrap",
    "causal_prediction",
    "compare_coders",
    "evaluate",
    "evaluate_side_by_side",
    "features",
    "loss_added",
    "metrics",
    "norm_deciles",
    "norm_group",
    "paired_difference",
    "panel_of",
    "recovery",
    "shrinkage",
    "stability",
]
