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
    GatedDictionary,
    JumpReLUDictionary,
    ReLUDictionary,
    TopKDictionary,
)
from sparsight.training.objectives.gated import gated_objective
from sparsight.training.objectives.jumprelu import jumprelu_objective
from sparsight.training.objectives.relu import relu_objective
from sparsight.training.objectives.terms import Objective
from sparsight.training.objectives.topk import topk_objective

# The objective of each architecture; a new one joins by one entry.
OBJECTIVES: dict[type[AbstractDictionary], Callable[[Any, Tensor, Tensor, float], Objective]] = {
    TopKDictionary: topk_objective,
    JumpReLUDictionary: jumprelu_objective,
    ReLUDictionary: relu_objective,
    GatedDictionary: gated_objective,
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "gated_objective",
    "jumprelu_objective",
    "relu_objective",
    "topk_objective",
]
