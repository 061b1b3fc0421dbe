"""One final module per architecture, and its configuration beside it."""

from sparsight.dictionaries.base import AbstractDictionary, DictionaryConfig, Normalization
from sparsight.dictionaries.jumprelu import JumpReLU, JumpReLUDictionary
from sparsight.dictionaries.pursuit import Pursuit, PursuitDictionary
from sparsight.dictionaries.topk import TopK, TopKDictionary

__all__ = [
    "AbstractDictionary",
    "DictionaryConfig",
    "JumpReLU",
    "JumpReLUDictionary",
    "Normalization",
    "Pursuit",
    "PursuitDictionary",
    "TopK",
    "TopKDictionary",
]
