"""One loop that trains one or many dictionaries on one stream of activations."""

from sparsight.training.loop import Run, train
from sparsight.training.settings import Training

__all__ = ["Run", "Training", "train"]
