"""A linear classifier on a model's activations, averaged over the tokens of a text; fitted, read and scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.frozen_record import Record
from sparsight.models import Edit, LanguageModel, Site, Tokens

Intervention = Callable[[Tokens], dict[Site, Edit]]
"""From a batch of tokens to the edits of its forward pass."""

Chosen = Mapping[Site, Sequence[int]]
"""Nodes by the site where they stand."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """`logit = weight . mean over counted tokens of the activation + bias`; class 1 where it is above 0.

    Attributes:
        lm: The model whose activations are read.
        site: Where.
        weight: In one over the units of the activations.
        bias: Logit of the zero activation.
    """

    lm: LanguageModel
    site: Site
    weight: Float[Tensor, " d"]
    bias: float

    def logits(self, tokens: Tokens, edits: Mapping[Site, Edit] | None = None) -> Float[Tensor, " b"]:
        """One logit for each text; differentiable through the edits."""
        x = self.lm.activations(tokens, [self.site], edits=edits)[self.site]
        return self.of_pooled(token_mean(x, tokens.counted.to(x.device)))

    def of_pooled(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Logits of activations that are averaged already."""
        return x @ self.weight.to(x) + self.bias


class Accuracies(Record):
    """How often a classifier is right, by group.

    Attributes:
        accuracy: Share of the texts whose target class is told rightly.
        worst_group: The least accuracy of a (target, spurious) cell.
        spurious: Share of the texts whose *spurious* class the prediction equals: 0.5 says that it is not used.
        groups: Accuracy of each cell, under "target class, spurious class".
        n: Texts.
    """

    accuracy: float
    worst_group: float
    spurious: float
    groups: dict[str, float]
    n: int


def token_mean(x: Float[Tensor, "b t d"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """Mean over counted tokens."""
    weights = counted.to(x.dtype)
    return (x * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1)


@torch.no_grad()
def pooled_activations(
    lm: LanguageModel,
    site: Site,
    texts: Sequence[str],
    intervention: Intervention | None = None,
    *,
    batch_size: int = 64,
) -> Float[Tensor, "n d"]:
    """The mean activation of each text, under an intervention.

    Texts are cut to the model's context.
    """
    found = []
    for start in range(0, len(texts), batch_size):
        tokens = lm.tokenize(list(texts[start : start + batch_size]), context=lm.max_context)
        edits = None if intervention is None else intervention(tokens)
        x = lm.activations(tokens, [site], edits=edits)[site]
        found.append(token_mean(x, tokens.counted.to(x.device)).cpu())
    return torch.cat(found)


def fit_head(
    x: Float[Tensor, "n d"], target: Int64[Tensor, " n"], *, l2: float = 1.0
) -> tuple[Float[Tensor, " d"], float]:
    """Logistic regression on standardised inputs: the minimum of `sum log loss + l2 |w|^2 / 2`, which is one point.

    Args:
        x: Inputs.
        target: Classes 0 and 1.
        l2: Weight of the penalty, above 0: separable classes have no minimum without it.
    Returns:
        Weight and bias for inputs that are not standardised.
    Raises:
        ValueError: `l2` is not positive.
        UndefinedMetric: one class has no text.
    """
    from sklearn.linear_model import LogisticRegression

    if l2 <= 0:
        raise ValueError(f"l2 must be positive, got l2={l2}; without it separable classes have no best weights")
    if len(torch.unique(target)) != 2:
        raise UndefinedMetric("a classifier needs texts of both classes, got one class only")
    x = x.double()
    mean, spread = x.mean(dim=0), x.std(dim=0)
    spread = torch.where(spread > 1e-9 * spread.max(), spread, torch.inf)  # constant inputs get weight 0
    fitted = LogisticRegression(C=1 / l2, max_iter=2000, tol=1e-6).fit(((x - mean) / spread).numpy(), target.numpy())
    weight = torch.from_numpy(fitted.coef_[0]).double() / spread
    return weight.float(), float(fitted.intercept_[0] - mean @ weight)


def fit_classifier(
    lm: LanguageModel,
    site: Site,
    texts: LabelledTexts,
    intervention: Intervention | None = None,
    *,
    l2: float = 1.0,
    batch_size: int = 64,
) -> Classifier:
    """A classifier of the target class, fitted on activations under an intervention."""
    x = pooled_activations(lm, site, texts.texts, intervention, batch_size=batch_size)
    weight, bias = fit_head(x, texts.target_labels, l2=l2)
    return Classifier(lm, site, weight, bias)


def accuracies(
    classifier: Classifier, texts: LabelledTexts, intervention: Intervention | None = None, *, batch_size: int = 64
) -> Accuracies:
    """Score a classifier under an intervention."""
    x = pooled_activations(classifier.lm, classifier.site, texts.texts, intervention, batch_size=batch_size)
    return score(classifier.of_pooled(x), texts)


def score(logits: Float[Tensor, " n"], texts: LabelledTexts) -> Accuracies:
    """Accuracies of logits, one for each text."""
    predicted = (logits > 0).long()
    target, spurious = texts.target_labels, texts.spurious_labels
    groups = {}
    for t, s in texts.cells:
        cell = (target == t) & (spurious == s)
        name = f"{texts.target_classes[t]}, {texts.spurious_classes[s]}"
        groups[name] = float((predicted[cell] == t).double().mean())
    return Accuracies(
        accuracy=float((predicted == target).double().mean()),
        worst_group=min(groups.values()),
        spurious=float((predicted == spurious).double().mean()),
        groups=groups,
        n=len(texts),
    )
