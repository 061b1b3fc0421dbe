"""The embedded default: a small language model, the corpus it was trained on, and what is true of every word of it."""

from sparsight.models.organism.corpus import corpus, heldout_corpus
from sparsight.models.organism.draft import Document
from sparsight.models.organism.features import FEATURES, Feature
from sparsight.models.organism.mixture import Mixture

__all__ = ["FEATURES", "Document", "Feature", "Mixture", "corpus", "heldout_corpus"]
