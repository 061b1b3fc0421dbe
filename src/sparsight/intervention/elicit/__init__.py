"""Latent perturbation search: what at one site changes another site most, and what it makes a model do."""

from sparsight.intervention.elicit.perturbation import Adapters, Vectors
from sparsight.intervention.elicit.reach import Reach
from sparsight.intervention.elicit.record import Elicited, FoundVector, RadiusPoint
from sparsight.intervention.elicit.run import elicit, elicit_adapters
from sparsight.intervention.elicit.search import Search, find_adapters, find_vectors, first_singular_vectors
from sparsight.intervention.elicit.settings import Elicitation

__all__ = [
    "Adapters",
    "Elicitation",
    "Elicited",
    "FoundVector",
    "RadiusPoint",
    "Reach",
    "Search",
    "Vectors",
    "elicit",
    "elicit_adapters",
    "find_adapters",
    "find_vectors",
    "first_singular_vectors",
]
