"""Which name in a file means which architecture."""

from sparsight.dictionaries import DictionaryConfig, Gated, JumpReLU, Pursuit, ReLU, TopK

# A new architecture joins by one entry. The order is the one in which errors list the names.
ARCHITECTURES: dict[str, type[DictionaryConfig]] = {
    config.architecture: config for config in (TopK, JumpReLU, Pursuit, ReLU, Gated)
}
