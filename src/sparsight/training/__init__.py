"""One loop that trains one or many dictionaries on one stream of activations."""

from sparsight.training.listeners import Listener, TensorBoard, WandB
from sparsight.training.loop import Run, train
from sparsight.training.settings import Training
from sparsight.training.starting_point import FineTune

__all__ = ["FineTune", "Listener", "Run", "TensorBoard", "Training", "WandB", "train"]
