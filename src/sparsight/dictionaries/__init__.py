"""One final module per architecture, and its configuration beside it."""

from sparsight.dictionaries.base import (
    AbstractDictionary,
    DictionaryConfig,
    JointNormalization,
    Normalization,
    Place,
)
from sparsight.dictionaries.batchtopk import BatchTopK, BatchTopKDictionary
from sparsight.dictionaries.crosscoder import Crosscoder, CrosscoderDictionary
from sparsight.dictionaries.gated import Gated, GatedDictionary
from sparsight.dictionaries.jumprelu import JumpReLU, JumpReLUDictionary
from sparsight.dictionaries.matching_pursuit import MatchingPursuit, MatchingPursuitDictionary
from sparsight.dictionaries.matryoshka import Matryoshka, MatryoshkaDictionary
from sparsight.dictionaries.pursuit import Pursuit, PursuitDictionary
from sparsight.dictionaries.relu import ReLU, ReLUDictionary
from sparsight.dictionaries.token_norm_topk import TokenNormTopK, TokenNormTopKDictionary
from sparsight.dictionaries.topk import TopK, TopKDictionary
from sparsight.dictionaries.transcoder import Transcoder, TranscoderDictionary
from sparsight.dictionaries.weighted_topk import WeightedTopK, WeightedTopKDictionary

__all__ = [
    "AbstractDictionary",
    "BatchTopK",
    "BatchTopKDictionary",
    "Crosscoder",
    "CrosscoderDictionary",
    "DictionaryConfig",
    "Gated",
    "GatedDictionary",
    "JointNormalization",
    "JumpReLU",
    "JumpReLUDictionary",
    "MatchingPursuit",
    "MatchingPursuitDictionary",
    "Matryoshka",
    "MatryoshkaDictionary",
    "Normalization",
    "Place",
    "Pursuit",
    "PursuitDictionary",
    "ReLU",
    "ReLUDictionary",
    "TokenNormTopK",
    "TokenNormTopKDictionary",
    "TopK",
    "TopKDictionary",
    "Transcoder",
    "TranscoderDictionary",
    "WeightedTopK",
    "WeightedTopKDictionary",
]
