"""One final module per architecture, and its configuration beside it."""

from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Normalization
from sparsight.dictionaries.gated import Gated, GatedDictionary
from sparsight.dictionaries.jumprelu import JumpReLU, JumpReLUDictionary
from sparsight.dictionaries.pursuit import Pursuit, PursuitDictionary
from sparsight.dictionaries.relu import ReLU, ReLUDictionary
from sparsight.dictionaries.topk import TopK, TopKDictionary

__all__ = [
    "AbstractDictionary",
    "DictionaryConfig",
    "Gated",
    "GatedDictionary",
    "JumpReLU",
    "JumpReLUDictionary",
    "Normalization",
    "Pursuit",
    "PursuitDictionary",
    "ReLU",
    "ReLUDictionary",
    "TopK",
    "TopKDictionary",
]
