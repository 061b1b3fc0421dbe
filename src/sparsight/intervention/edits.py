"""Edits: what stands in the place of a site's activations, at which tokens, and how several go together.

`Edits` maps sites to functions, so it is what `lm.logits(tokens, edits=...)` and every other pass takes. `a + b` is
first `a`, then `b`. Each edit sees one token at a time and is told its position, so the same edits hold in a whole
pass, in generation behind a cache of keys and values, and inside automatic differentiation. Nothing changes in place.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.intervention.positions import Where, chosen_tokens
from sparsight.models import Edit, LanguageModel, Site
from sparsight.models.forward_pass import chained

Change = Callable[[Tensor, Tensor], Tensor]
"""From activations `[b, t, d]` and positions `[b, t]` to new activations; each token on its own."""


@dataclass(frozen=True)
class TokenEdit:
    """A change of the activations at some tokens, each on its own; the others come back bit for bit.

    Attributes:
        change: What is done.
        where: Positions at which it is done, counted from the first real token of a row; None for all.
        name: For messages.
    """

    change: Change
    where: Where = None
    name: str = "edit"
    per_token = True

    def __call__(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.at(x, torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]))

    def at(self, x: Float[Tensor, "b t d"], positions: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The edit of tokens that stand at these positions."""
        positions = positions.to(x.device)
        chosen = chosen_tokens(self.where, positions, self.name)
        changed = self.change(x, positions).to(x.dtype)
        return changed if chosen is None else torch.where(chosen.unsqueeze(-1), changed, x)


class Edits(Mapping[Site, Edit]):
    """Functions that change activations, by site.

    Example:
        `lm.logits(tokens, edits=clamp(dictionary, 7, to=3.0) + ablate_direction(lm, direction))`
    """

    def __init__(self, edits: Mapping[Site, Edit] | None = None) -> None:
        self._edits: dict[Site, Edit] = dict(sorted((edits or {}).items(), key=lambda pair: pair[0]))

    def __getitem__(self, site: Site) -> Edit:
        return self._edits[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._edits)

    def __len__(self) -> int:
        return len(self._edits)

    def __add__(self, other: Mapping[Site, Edit]) -> "Edits":
        """First these, then the others."""
        return Edits(chained([self, other]))

    def __repr__(self) -> str:
        return f"Edits at {', '.join(map(str, self)) or 'no site'}"

    @contextmanager
    def on(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Let these edits stand for every pass of a model made inside this."""
        with lm.edited(self):
            yield lm


def everywhere(change: Change, sites: list[Site], where: Where, name: str) -> Edits:
    """One change at several sites."""
    return Edits({site: TokenEdit(change, where, f"{name} at {site}") for site in sites})
