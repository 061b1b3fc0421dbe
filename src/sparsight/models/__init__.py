"""Hugging Face models, read and edited at named sites.

`load_model` gives a `LanguageModel`: its sites are the same for every family, reads and edits pass through the model's
own code, and gradients flow through edits. `organism` is the model that ships with the package.
"""

from sparsight.models import organism as organism
from sparsight.models.forward_pass import Edit, Replacement
from sparsight.models.language_model import LanguageModel
from sparsight.models.loading import load_model
from sparsight.models.randomising import randomised
from sparsight.models.site import KINDS, Site
from sparsight.models.site_choice import choose_sites
from sparsight.models.tokens import Tokens

__all__ = [
    "KINDS",
    "Edit",
    "LanguageModel",
    "Replacement",
    "Site",
    "Tokens",
    "choose_sites",
    "load_model",
    "organism",
    "randomised",
]
