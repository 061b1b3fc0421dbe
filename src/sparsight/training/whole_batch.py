"""The objective of a batch from those of its parts, one after the other or one on each process."""

from collections.abc import Sequence

import torch

from sparsight.training.objectives import Objective
from sparsight.training.parallel.processes import Processes


def whole_batch(parts: Sequence[Objective], shares: Sequence[float]) -> Objective:
    """The mean of the parts' objectives, weighted by their shares of the rows; a latent fired if it did in any part.

    Exact for terms that are means over rows. What is not (the quotient of the auxiliary loss, the square about a
    target L0, the selection over a batch of BatchTopK) is what each part made of it.

    Args:
        parts: Objectives of the parts, gradients already taken where there is more than one.
        shares: Fractions of the rows, which add up to 1.
    """
    if len(parts) == 1:
        return parts[0]
    names = {name: None for part in parts for name in part.parts}
    zero = torch.zeros_like(parts[0].loss.detach())
    weighted = list(zip(parts, shares, strict=True))
    return Objective(
        torch.stack([share * part.loss.detach() for part, share in weighted]).sum(),
        {name: torch.stack([share * part.parts.get(name, zero) for part, share in weighted]).sum() for name in names},
        torch.stack([share * part.l0 for part, share in weighted]).sum(),
        torch.stack([part.fired for part in parts]).any(dim=0),
    )


def agree_on(mine: Objective, processes: Processes) -> Objective:
    """The objective of the batch of which every process had an equal share."""
    names = list(mine.parts)
    means = torch.stack([value.detach().float() for value in (mine.loss, mine.l0, *mine.parts.values())])
    processes.mean_([means])
    parts = {name: means[2 + i] for i, name in enumerate(names)}
    return Objective(means[0], parts, means[1], processes.any_(mine.fired))
