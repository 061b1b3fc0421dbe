"""Features of the input, and what in a dictionary answers to them: measured links between two kinds of thing."""

from sparsight.evaluation.features.best_latent import FeatureRow, FeatureTable, LeftOut, best_latents
from sparsight.evaluation.features.leace import CrossMoments, Leace, OracleLeace, fit_leace
from sparsight.evaluation.features.probes import (
    LinearProbe,
    MlpProbe,
    SparseProbe,
    control_labels,
    difference_in_means,
    k_sparse,
    logistic,
    mlp,
    type_folds,
)

__all__ = [
    "CrossMoments",
    "FeatureRow",
    "FeatureTable",
    "Leace",
    "LeftOut",
    "LinearProbe",
    "MlpProbe",
    "OracleLeace",
    "SparseProbe",
    "best_latents",
    "control_labels",
    "difference_in_means",
    "fit_leace",
    "k_sparse",
    "logistic",
    "mlp",
    "type_folds",
]
