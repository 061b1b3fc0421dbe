"""Toy superposition: more features than dimensions, where all that can be known is known."""

from sparsight.theory.superposition.exact import (
    TwoInOne,
    antipodal_loss,
    best_two_in_one,
    expected_loss,
    ignoring_loss,
    superposition_below,
)
from sparsight.theory.superposition.geometry import Group, dimensionality, groups, interference, lengths
from sparsight.theory.superposition.inputs import ToyInputs
from sparsight.theory.superposition.model import ToyModel
from sparsight.theory.superposition.training import train_toy

__all__ = [
    "Group",
    "ToyInputs",
    "ToyModel",
    "TwoInOne",
    "antipodal_loss",
    "best_two_in_one",
    "dimensionality",
    "expected_loss",
    "groups",
    "ignoring_loss",
    "interference",
    "lengths",
    "superposition_below",
    "train_toy",
]
