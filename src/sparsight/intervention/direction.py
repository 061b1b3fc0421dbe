"""A direction in activation space: where it was found, in which model, and that it can be used at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import DataError
from sparsight.evaluation.reading import same_model
from sparsight.models import LanguageModel, Site


@dataclass(frozen=True)
class Direction:
    """A vector in activation space, and where it comes from.

    Attributes:
        vector: In the units of the activations; its length means something for a difference of means.
        site: Where it was found, if known.
        model: Name of the model it was found in, if known.
        name: How it was found.
    """

    vector: Float[Tensor, " d"]
    site: Site | None = None
    model: str | None = None
    name: str = "direction"

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.vector).all()):
            raise ValueError(f"the {self.name} must be finite, got NaN or infinity")
        if float(self.vector.norm()) == 0:
            raise ValueError(f"the {self.name} is zero, so it points nowhere; use classes whose means differ")

    @property
    def d(self) -> int:
        return int(self.vector.shape[0])

    @property
    def norm(self) -> float:
        return float(self.vector.norm())

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The vector, scaled to length 1."""
        unit: Tensor = self.vector / self.vector.norm()
        return unit

    def cosine(self, other: "Direction | Tensor") -> float:
        """Cosine with another direction.

        Raises:
            ValueError: it has another width.
        """
        theirs = as_direction(other).unit.double()
        if len(theirs) != self.d:
            raise ValueError(f"directions must be of one width, got {self.d} and {len(theirs)}")
        return float(self.unit.double().cpu() @ theirs.cpu())


def as_direction(direction: Direction | Tensor) -> Direction:
    """A direction of a plain vector; a `Direction` as it is.

    Raises:
        ValueError: the vector is not of one axis, is zero, or is not finite.
    """
    if isinstance(direction, Direction):
        return direction
    if direction.dim() != 1:
        raise ValueError(f"a direction must be a vector [d], got {list(direction.shape)}")
    return Direction(direction)


def fitting(direction: Direction | Tensor, lm: LanguageModel, sites: Sequence[Site]) -> Direction:
    """The direction, once it is known to fit a model at some sites.

    Raises:
        ValueError: its width is not theirs.
        DataError: it was found in another model.
        ModelError: the model has no such site.
    """
    direction = as_direction(direction)
    for site in sites:
        if (width := lm.width(site)) != direction.d:
            raise ValueError(
                f"the {direction.name} has width {direction.d}, activations at {site} of {lm.name} have {width}; "
                "use a direction found at a site of that width"
            )
    if direction.model is not None and not same_model(direction.model, lm.name):
        raise DataError(
            f"the {direction.name} was found in {direction.model}, got model {lm.name}; "
            "find it there, or pass its plain vector to use it all the same"
        )
    return direction


def orthonormal(directions: Direction | Tensor | Sequence[Direction | Tensor]) -> Float[Tensor, "k d"]:
    """An orthonormal basis of the span of one or several directions, its rows in float64.

    Args:
        directions: One direction, several, or a matrix `[k, d]` whose rows they are.
    Raises:
        ValueError: there is none, or they are linearly dependent: their span has fewer dimensions than that.
    """
    if isinstance(directions, Direction) or (isinstance(directions, Tensor) and directions.dim() == 1):
        rows = as_direction(directions).unit.double().unsqueeze(0)
    elif len(directions) == 0:
        raise ValueError("expected at least one direction, got none")
    else:
        rows = torch.stack([as_direction(one).unit.double() for one in directions])
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    if float(singular[-1]) <= 1e-7 * float(singular[0]):
        raise ValueError(f"{len(rows)} directions span fewer dimensions than that; leave out those that repeat others")
    return right if len(rows) > 1 else rows
