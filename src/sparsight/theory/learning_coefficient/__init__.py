"""The local learning coefficient: exact values, an estimator for any loss, its curve over temperatures."""

from sparsight.theory.learning_coefficient.estimate import curve, decades, learning_coefficient
from sparsight.theory.learning_coefficient.finite import (
    evidence_slope,
    local_coefficient,
    log_evidence,
    quadratic_sgld,
    zero_rank_regression,
)
from sparsight.theory.learning_coefficient.gaussian import (
    GaussianCoefficients,
    GaussianFit,
    gaussian_coefficients,
    laplace_fit,
    mean_field_fit,
)
from sparsight.theory.learning_coefficient.known import Coefficient, deep_linear, normal_crossing, reduced_rank
from sparsight.theory.learning_coefficient.losses import AbstractLoss, FunctionLoss, ModuleLoss
from sparsight.theory.learning_coefficient.record import LearningCoefficient
from sparsight.theory.learning_coefficient.sampling import Chains

__all__ = [
    "AbstractLoss",
    "Chains",
    "Coefficient",
    "FunctionLoss",
    "GaussianCoefficients",
    "GaussianFit",
    "LearningCoefficient",
    "ModuleLoss",
    "curve",
    "decades",
    "deep_linear",
    "evidence_slope",
    "gaussian_coefficients",
    "laplace_fit",
    "learning_coefficient",
    "local_coefficient",
    "log_evidence",
    "mean_field_fit",
    "normal_crossing",
    "quadratic_sgld",
    "reduced_rank",
    "zero_rank_regression",
]
