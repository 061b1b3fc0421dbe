"""Which name in a file means which architecture."""

from sparsight.dictionaries import DictionaryConfig, JumpReLU, Pursuit, TopK

# A new architecture joins by one entry. The order is the one in which errors list the names.
ARCHITECTURES: dict[str, type[DictionaryConfig]] = {config.architecture: config for config in (TopK, JumpReLU, Pursuit)}
