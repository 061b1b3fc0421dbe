"""The outer loop: a copy of the model learns to answer rightly under perturbation, and to stay as it was elsewhere."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sparsight.errors import TrainingError
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import reported
from sparsight.intervention.adversarial.attack import Attack
from sparsight.intervention.adversarial.ball import Ball
from sparsight.intervention.adversarial.examples import Answers, perturb, perturbed
from sparsight.models import LanguageModel, Site, Tokens


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Settings of the outer loop.

    Attributes:
        sites: One is drawn for each step.
        ball: Where the adversary may go; radius 0 is ordinary training on the same examples.
        attack: Its steps.
        targeted: The adversary pushes towards the answers it wants, not only away from the right ones.
        steps: Steps of the weights.
        batch_size: Examples in a step.
        retention_batch: Texts in a step on which the model is to stay as it was.
        retention: Weight of `KL(before || after)` on them, per token.
        lr: Of AdamW.
        seed: Of batches, sites and the adversary's starts.
    """

    sites: tuple[Site, ...]
    ball: Ball
    attack: Attack = Attack()  # noqa: RUF009  # frozen, so it may be shared
    targeted: bool = False
    steps: int = 100
    batch_size: int = 16
    retention_batch: int = 16
    retention: float | int = 1.0
    lr: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sites or self.steps < 1 or self.batch_size < 1 or self.retention_batch < 1:
            raise ValueError("expected one site at least, and steps and batch sizes of at least 1")
        if not 0 < self.lr < 1 or not 0 <= self.retention < float("inf"):
            raise ValueError(f"expected lr in (0, 1) and retention >= 0, got {self.lr} and {self.retention}")


class Hardened(Record):
    """What the outer loop did.

    Attributes:
        attacked: Loss of the right answers under attack, at each step, before the weights moved.
        kl: Divergence from the model before, on the retention texts, nats per token.
    """

    schema_version: Literal[1] = 1
    attacked: list[float]
    kl: list[float]


def latent_adversarial_training(
    lm: LanguageModel,
    examples: Answers,
    retention: Sequence[str],
    settings: AdversarialTraining,
    *,
    wanted: Answers | None = None,
    progress: bool = False,
) -> tuple[LanguageModel, Hardened]:
    """Train a copy of a model on the right answers under the worst perturbation that is found.

    Each step: an adversary perturbs the prompts' activations at one site; the weights go down the loss of the right
    answers under that perturbation, plus `retention` times the divergence from the old model on other texts. The model
    stays in evaluation mode; the adversary leaves no gradient on the weights; the model given is not changed.

    Args:
        lm: A causal model.
        examples: Prompts with the answers they should have.
        retention: Texts on which nothing should change.
        settings: The loop.
        wanted: The same prompts with the answers an adversary wants, for a targeted one.
        progress: Show a bar on stderr.
    Returns:
        The hardened copy, and the losses on the way.
    Raises:
        ValueError: a targeted adversary was asked for without `wanted`.
        TrainingError: the loss is not finite; the step is named.
    Source:
        Casper et al., 2024; targeted: Sheshadri et al., "Latent Adversarial Training Improves Robustness to Persistent
        Harmful Behaviors in LLMs", 2024.
    """
    if settings.targeted and (wanted is None or len(wanted) != len(examples)):
        raise ValueError("a targeted adversary needs wanted=, one answer for each example")
    student = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, name=lm.name)
    weights = [parameter.requires_grad_(True) for parameter in student.model.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(settings.seed)
    texts = lm.tokenize(list(retention)).to(lm.device)
    attacked, kept = [], []
    with reported("hardening", settings.steps, shown=progress) as advance:
        for step in range(settings.steps):
            rows = torch.randperm(len(examples), generator=generator)[: settings.batch_size]
            others = torch.randperm(len(texts), generator=generator)[: settings.retention_batch]
            site = settings.sites[int(torch.randint(len(settings.sites), (1,), generator=generator))]
            theirs = wanted[rows] if settings.targeted and wanted is not None else None
            inner = replace(settings.attack, seed=settings.attack.seed + step)
            delta = perturb(student, examples[rows], site, settings.ball, inner, theirs)
            with torch.enable_grad():
                worst = examples[rows].loss(student, perturbed(site, delta)).mean()
                kl = _divergence(lm, student, texts[others])
                total = worst + settings.retention * kl
            if not math.isfinite(float(total.detach())):
                raise TrainingError(f"the loss is not finite at step {step}; lower lr or the radius")
            optimiser.zero_grad()
            torch.autograd.backward(total)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            attacked.append(float(worst.detach()))
            kept.append(float(kl.detach()))
            advance(1)
    student.model.requires_grad_(False)
    optimiser.zero_grad()
    return student, Hardened(attacked=attacked, kl=kept)


def _divergence(before: LanguageModel, after: LanguageModel, tokens: Tokens) -> torch.Tensor:
    with torch.no_grad():
        log_p = before.logits(tokens)[tokens.mask].log_softmax(dim=-1)
    log_q = after.logits(tokens)[tokens.mask].log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
