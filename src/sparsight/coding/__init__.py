"""Coders: pure functions that write activations as sparse combinations of given atoms."""

from sparsight.codes import SparseCode
from sparsight.coding.gradient_pursuit import gradient_pursuit
from sparsight.coding.refit import refit

__all__ = ["SparseCode", "gradient_pursuit", "refit"]
