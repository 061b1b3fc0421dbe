"""How far perturbations at one site move another: the objective of the search, for many perturbations at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.intervention.elicit.perturbation import Perturbations, Vectors
from sparsight.models import LanguageModel, Site, Tokens


@dataclass(frozen=True)
class Power:
    """Exponents of the objective: `sum_prompts ( sum_tokens |Z - Z0|^p )^(1/q)`.

    Attributes:
        p: How much the tokens that move most count: 2 adds up energy, large values take the one that moves furthest.
        q: 1 weighs prompts by their power sums, `q = p` by their norms. With one prompt it changes no optimum.
    """

    p: float | int = 2
    q: float | int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.p < float("inf") or not 1 <= self.q < float("inf"):
            raise ValueError(
                f"expected p >= 2 (below, nothing moved has no gradient) and q >= 1, got p={self.p} and q={self.q}"
            )

    def __call__(
        self, moved: Float[Tensor, "v prompts t d"], counted: Bool[Tensor, "prompts t"]
    ) -> Float[Tensor, " v"]:
        """The objective of every perturbation; the norm is taken over the width of each token."""
        per_token = moved.square().sum(dim=-1).pow(self.p / 2) * counted
        per_prompt = per_token.sum(dim=-1)
        # Where nothing moved, the root has an infinite slope and 0 is what is meant.
        safe = torch.where(per_prompt > 0, per_prompt, torch.ones_like(per_prompt))
        return torch.where(per_prompt > 0, safe.pow(1 / self.q), torch.zeros_like(per_prompt)).sum(dim=-1)


class Reach:
    """What perturbations added at a source site do to a target site of a model, on some prompts.

    Attributes:
        lm, tokens, source, target: The model, the prompts, and the two sites.
        counted: Tokens of the target that count.
        unperturbed: The target's activations without a perturbation.
    """

    def __init__(
        self,
        lm: LanguageModel,
        tokens: Tokens,
        source: Site | str,
        target: Site | str,
        *,
        power: Power | None = None,
        last: int | None = None,
        batch_rows: int = 512,
    ) -> None:
        """Read the target once without a perturbation.

        Args:
            lm: The model; nothing of it is written to.
            tokens: Prompts.
            source: Where perturbations are added, at every token but special ones.
            target: Where their effect is measured; it must be computed later.
            power: Exponents; p = q = 2 when None.
            last: Count only so many of the last tokens of each prompt; all but special ones when None.
            batch_rows: Most sequences in one pass.
        Raises:
            ValueError: the target is not behind the source, or no token counts.
            ModelError: a site is unknown.
        """
        self.lm, self.tokens = lm, tokens.to(lm.device)
        self.source, self.target = Site.parse(source), Site.parse(target)
        lm.width(self.source), lm.width(self.target)
        if self.target <= self.source:
            raise ValueError(
                f"the target must be computed after the source, got source {self.source} and target {self.target}"
            )
        self.power, self.batch_rows = power or Power(), batch_rows
        self.counted = self.tokens.counted
        if last is not None:
            from_end = self.counted.long().flip(1).cumsum(dim=1).flip(1)
            self.counted = self.counted & (from_end <= last)
        if not bool(self.counted.any()):
            raise ValueError(f"no token counts (last={last}); give prompts with text, and last of at least 1")
        with torch.no_grad():
            self.unperturbed = lm.activations(self.tokens, [self.target])[self.target]

    @property
    def d(self) -> int:
        """Width of perturbations."""
        return self.lm.width(self.source)

    @torch.no_grad()
    def mean_norm(self) -> float:
        """Mean norm of the source's activations, special tokens left out: what radii are held against."""
        x = self.lm.activations(self.tokens, [self.source])[self.source][self.tokens.counted]
        return float(x.norm(dim=1).mean())

    def edit(self, what: Tensor | Perturbations) -> Callable[[Tensor], Tensor]:
        """Adds perturbation `i` to the `i`-th block of rows, at every token but special ones and padding."""
        return partial(_perturbed, _as_perturbations(what), self.tokens.counted)

    def __call__(self, what: Tensor | Perturbations) -> Float[Tensor, " v"]:
        """The objective of each perturbation, differentiable; a tensor's rows are vectors to add."""
        return torch.cat([self._measured(part) for part in self.parts(what)])

    def parts(self, what: Tensor | Perturbations, batch_rows: int | None = None) -> list[Perturbations]:
        """Pieces that fit into one pass."""
        all_ = _as_perturbations(what)
        step = max(1, (batch_rows or self.batch_rows) // len(self.tokens))
        return [all_[start : start + step] for start in range(0, len(all_), step)]

    def _measured(self, part: Perturbations) -> Float[Tensor, " v"]:
        rows, edits = self.repeated(len(part)), {self.source: self.edit(part)}
        z = self.lm.activations(rows, [self.target], edits=edits)[self.target]
        moved = z.view(len(part), *self.unperturbed.shape) - self.unperturbed
        return self.power(moved, self.counted)

    def repeated(self, n: int) -> Tokens:
        """The prompts `n` times over, one block for each perturbation."""
        ids, mask, special = (part.repeat(n, 1) for part in (self.tokens.ids, self.tokens.mask, self.tokens.special))
        return Tokens(ids, mask, special)

    @torch.no_grad()
    def kl(self, what: Tensor | Perturbations) -> Float[Tensor, " v"]:
        """Mean divergence of each perturbation's next-token distribution from the model's own, after each prompt."""
        from sparsight.intervention.behaviour import last_logits

        clean = last_logits(self.lm, self.tokens).double().log_softmax(dim=-1)
        found = []
        for part in self.parts(what):
            logits = last_logits(self.lm, self.repeated(len(part)), {self.source: self.edit(part)})
            edited = logits.double().log_softmax(dim=-1).view(len(part), *clean.shape)
            found.append((clean.exp() * (clean - edited)).sum(dim=-1).mean(dim=-1).clamp_min(0))
        return torch.cat(found)


def _as_perturbations(what: Tensor | Perturbations) -> Perturbations:
    return Vectors(what) if isinstance(what, Tensor) else what


def _perturbed(
    what: Perturbations, text: Bool[Tensor, "prompts t"], x: Float[Tensor, "rows t d"]
) -> Float[Tensor, "rows t d"]:
    blocks = x.view(len(what), -1, *x.shape[1:])
    return (blocks + what.added(blocks) * text[None, :, :, None]).view_as(x)
