"""Texts with answers: what an adversary attacks, and when it has won."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.intervention.adversarial.attack import Attack, attack
from sparsight.intervention.adversarial.ball import Ball
from sparsight.intervention.edits import Edits
from sparsight.models import Edit, LanguageModel, Site, Tokens


@dataclass(frozen=True)
class Answers:
    """Prompts, each followed by an answer.

    Attributes:
        tokens: Both.
        answer: Which tokens are of the answer.
        prompt: Which tokens may be perturbed: the prompt's, special ones left out.
    """

    tokens: Tokens
    answer: Bool[Tensor, "b t"]
    prompt: Bool[Tensor, "b t"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> "Answers":
        return Answers(self.tokens[rows], self.answer[rows], self.prompt[rows])

    @staticmethod
    def of(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> "Answers":
        """Prompts and answers as texts.

        Raises:
            ValueError: their numbers differ.
        """
        if len(prompts) != len(answers) or not prompts:
            raise ValueError(f"expected one answer for each prompt, got {len(prompts)} and {len(answers)}")
        tokens = lm.tokenize([f"{a} {b}" for a, b in zip(prompts, answers, strict=True)]).to(lm.device)
        start = lm.tokenize(list(prompts)).mask.sum(dim=1).to(lm.device)
        behind = torch.arange(tokens.ids.shape[1], device=lm.device)[None, :] >= start[:, None]
        return Answers(tokens, behind & tokens.mask, ~behind & tokens.counted)

    def loss(self, lm: LanguageModel, edits: Mapping[Site, Edit] | None = None) -> Float[Tensor, " b"]:
        """Mean cross-entropy of each answer's tokens, nats."""
        losses = lm.loss(self.tokens, edits=edits, reduction="none")
        counted = self.answer[:, 1:]
        return (losses * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def perturbed(site: Site, delta: Float[Tensor, "b t d"]) -> Edits:
    """The edit that adds a perturbation."""
    return Edits({site: lambda x: x + delta.to(x)})


def perturb(
    lm: LanguageModel, examples: Answers, site: Site, ball: Ball, settings: Attack, wanted: Answers | None
) -> Float[Tensor, "b t d"]:
    """The perturbation of the prompts that most raises the loss of their answers, or lowers that of other answers.

    Args:
        lm: The model; the gradients of its weights are not touched.
        examples: Prompts with the answers they should have.
        site, ball, settings: Where, how far, how.
        wanted: The same prompts with the answers an adversary wants (targeted); None: anything but the right ones.
    """
    with torch.no_grad():
        x = lm.activations(examples.tokens, [site])[site]
    if wanted is None:
        return attack(lambda d: examples.loss(lm, perturbed(site, d)), x, examples.prompt, ball, settings).delta
    width = wanted.tokens.ids.shape[1]
    with torch.no_grad():
        theirs = lm.activations(wanted.tokens, [site])[site]
    found = attack(lambda d: -wanted.loss(lm, perturbed(site, d)), theirs, wanted.prompt, ball, settings).delta
    # Prompts are the same, so only padding behind the answers may differ in length.
    more = x.shape[1] - width
    return torch.nn.functional.pad(found, (0, 0, 0, more)) if more > 0 else found[:, : x.shape[1]].contiguous()


def success(
    lm: LanguageModel,
    examples: Answers,
    wanted: Answers,
    site: Site | str,
    ball: Ball,
    settings: Attack | None = None,
    *,
    batch_size: int = 64,
) -> float:
    """Share of prompts after whose perturbation the adversary's answer begins more likely than the right one."""
    place, settings = Site.parse(site), settings or Attack(steps=20)
    won = 0
    for start in range(0, len(examples), batch_size):
        ours, theirs = examples[start : start + batch_size], wanted[start : start + batch_size]
        delta = perturb(lm, ours, place, ball, settings, theirs)
        with torch.no_grad():
            logits = lm.logits(ours.tokens, edits=perturbed(place, delta))
        first = ours.answer.long().argmax(dim=1)
        rows = torch.arange(len(ours), device=logits.device)
        at = logits[rows, first - 1]
        other = wanted.tokens.ids[start : start + batch_size][rows, first]
        won += int((at[rows, other] > at[rows, ours.tokens.ids[rows, first]]).sum())
    return won / len(examples)
