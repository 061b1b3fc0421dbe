"""Which name in a file means which architecture."""

from sparsight.dictionaries import (
    BatchTopK,
    Crosscoder,
    DictionaryConfig,
    Gated,
    JumpReLU,
    MatchingPursuit,
    Matryoshka,
    Pursuit,
    ReLU,
    TokenNormTopK,
    TopK,
    Transcoder,
    WeightedTopK,
)

# A new architecture joins by one entry. The order is the one in which errors list the names.
ARCHITECTURES: dict[str, type[DictionaryConfig]] = {
    config.architecture: config
    for config in (
        *(TopK, BatchTopK, Matryoshka, JumpReLU, Pursuit, ReLU, Gated, Transcoder, Crosscoder),
        *(WeightedTopK, TokenNormTopK, MatchingPursuit),
    )
}
