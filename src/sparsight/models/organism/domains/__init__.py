"""One module per kind of document. Each writes into a draft with its own random generator and nothing else."""

from collections.abc import Callable
from random import Random

from sparsight.models.organism.domains import (
    biography,
    brackets,
    calendar,
    numbers,
    parity,
    plain,
    quotes,
    request,
    review,
)
from sparsight.models.organism.draft import Draft
from sparsight.models.organism.mixture import Mixture

WRITERS: dict[str, Callable[[Draft, Random, Mixture], None]] = {
    "plain": plain.write,
    "numbers": numbers.write,
    "days": calendar.write_days,
    "months": calendar.write_months,
    "biography": biography.write,
    "review": review.write,
    "brackets": brackets.write,
    "quotes": quotes.write,
    "request": request.write,
    "parity": parity.write,
}

__all__ = ["WRITERS"]
