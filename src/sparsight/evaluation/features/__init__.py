"""Features of the input, and what in a dictionary answers to them: measured links between two kinds of thing."""

from sparsight.evaluation.features.best_latent import FeatureRow, FeatureTable, LeftOut, best_latents
from sparsight.evaluation.features.label_files import read_labels
from sparsight.evaluation.features.labelled import Meaning
from sparsight.evaluation.features.leace import CrossMoments, Leace, OracleLeace, fit_leace
from sparsight.evaluation.features.probes import (
    LinearProbe,
    MlpProbe,
    SparseProbe,
    control_labels,
    difference_in_means,
    discriminant,
    k_sparse,
    logistic,
    mlp,
    type_folds,
)
from sparsight.evaluation.features.report_record import (
    FeatureRecord,
    FeatureReport,
    LatentRecord,
    LatentSetRecord,
    Link,
    RepresentationRecord,
)
from sparsight.evaluation.features.reporting import report

__all__ = [
    "CrossMoments",
    "FeatureRecord",
    "FeatureReport",
    "FeatureRow",
    "FeatureTable",
    "LatentRecord",
    "LatentSetRecord",
    "Leace",
    "LeftOut",
    "LinearProbe",
    "Link",
    "Meaning",
    "MlpProbe",
    "OracleLeace",
    "RepresentationRecord",
    "SparseProbe",
    "best_latents",
    "control_labels",
    "difference_in_means",
    "discriminant",
    "fit_leace",
    "k_sparse",
    "logistic",
    "mlp",
    "read_labels",
    "report",
    "type_folds",
]
