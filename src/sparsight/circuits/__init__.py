"""What latents cause: nodes spliced into a model, and effects of changing them."""

from sparsight.circuits.nodes import AbstractNodes, DictionaryNodes, DirectionNodes, NeuronNodes, nodes_of
from sparsight.circuits.splice import Change, NodeValues, Splice, put_together, take_apart

__all__ = [
    "AbstractNodes",
    "Change",
    "DictionaryNodes",
    "DirectionNodes",
    "NeuronNodes",
    "NodeValues",
    "Splice",
    "nodes_of",
    "put_together",
    "take_apart",
]
