"""What training minimises: one file per architecture, all in the same units.

Activations come normalised to zero mean and unit total variance. The reconstruction term is the squared error summed
over dimensions and averaged over tokens, hence the fraction of variance unexplained (FVU). All other terms are
dimensionless, so no coefficient depends on the scale of the site.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopKDictionary,
    CrosscoderDictionary,
    GatedDictionary,
    JumpReLUDictionary,
    MatryoshkaDictionary,
    ReLUDictionary,
    TopKDictionary,
    TranscoderDictionary,
)
from sparsight.training.objectives.batchtopk import batchtopk_objective
from sparsight.training.objectives.crosscoder import crosscoder_objective
from sparsight.training.objectives.gated import gated_objective
from sparsight.training.objectives.jumprelu import jumprelu_objective
from sparsight.training.objectives.matryoshka import matryoshka_objective
from sparsight.training.objectives.relu import relu_objective
from sparsight.training.objectives.terms import Objective
from sparsight.training.objectives.topk import topk_objective
from sparsight.training.objectives.transcoder import transcoder_objective

# The objective of each architecture; a new one joins by one entry.
OBJECTIVES: dict[type[AbstractDictionary], Callable[[Any, Tensor, Tensor, float], Objective]] = {
    TopKDictionary: topk_objective,
    BatchTopKDictionary: batchtopk_objective,
    MatryoshkaDictionary: matryoshka_objective,
    JumpReLUDictionary: jumprelu_objective,
    ReLUDictionary: relu_objective,
    GatedDictionary: gated_objective,
    TranscoderDictionary: transcoder_objective,
    CrosscoderDictionary: crosscoder_objective,
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "batchtopk_objective",
    "crosscoder_objective",
    "gated_objective",
    "jumprelu_objective",
    "matryoshka_objective",
    "relu_objective",
    "topk_objective",
    "transcoder_objective",
]
