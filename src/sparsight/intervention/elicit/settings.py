"""What is asked of a search of perturbations, beside how they are looked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.intervention.direction import Direction


@dataclass(frozen=True, kw_only=True)
class Elicitation:
    """What counts as far, what is said of each perturbation found, and what is kept.

    The one list of these settings: `elicit` and `elicit_adapters` take it whole, or its fields by name.

    Attributes:
        radius: Norm of the perturbations; found at the knee of the next token's divergence when None.
        p, q: Exponents: `sum_prompts (sum_tokens |Z - Z0|^p)^(1/q)` is maximised.
        last: Count only so many of the last tokens of each prompt.
        max_new_tokens: Length of the completions.
        dictionary: To name the atoms that lie closest; of this model and of the source's width.
        known: Directions to compare with, by name.
        out: Folder for the record and the perturbations, if they are to be kept.
        progress: Show bars on stderr.
    """

    radius: float | int | None = None
    p: float | int = 2
    q: float | int = 2
    last: int | None = None
    max_new_tokens: int = 12
    dictionary: AbstractDictionary | None = None
    known: Mapping[str, Direction | Tensor] | None = None
    out: str | Path | None = None
    progress: bool = False
