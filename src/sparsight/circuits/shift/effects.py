"""What each node does for a classifier: by one backward pass for all of them, and exactly for a chosen few."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import Chosen, Classifier
from sparsight.circuits.shift.removal import ablation
from sparsight.circuits.splice import Splice
from sparsight.models import Site

Ranking = Literal["support", "magnitude"]


@dataclass(frozen=True, eq=False)
class ClassifierEffects:
    """Effects of nodes on the logit of the right class, `+logit` for texts of class 1 and `-logit` for class 0.

    Attributes:
        support: By site, mean over texts of each node's effect; above 0 it helps the classifier to be right.
        magnitude: By site, mean over texts of the effect's absolute value.
        errors: Mean effect of what the nodes of a site leave unexplained, all tokens together.
        n_texts: Texts.
    """

    support: dict[Site, Float64[Tensor, " n_latents"]]
    magnitude: dict[Site, Float64[Tensor, " n_latents"]]
    errors: dict[Site, float]
    n_texts: int

    def strongest(self, n: int, by: Ranking = "support") -> dict[Site, list[int]]:
        """The `n` nodes of all sites with the largest support, or magnitude; those without any are left out."""
        values = self.support if by == "support" else self.magnitude
        sites = sorted(values)
        flat = torch.cat([values[site] for site in sites])
        order = flat.argsort(descending=True, stable=True)[:n]
        order = order[flat[order] > 0]
        ends = torch.tensor([len(values[site]) for site in sites]).cumsum(0)
        chosen: dict[Site, list[int]] = {}
        for place in order.tolist():
            i = int(torch.searchsorted(ends, place, right=True))
            first = 0 if i == 0 else int(ends[i - 1])
            chosen.setdefault(sites[i], []).append(place - first)
        return dict(sorted(chosen.items()))


def attribute(
    classifier: Classifier, nodes: Mapping[Site, AbstractNodes], texts: LabelledTexts, *, batch_size: int = 64
) -> ClassifierEffects:
    """First-order effect of setting each node to 0 at all tokens: `-value * d logit / d value`, summed over tokens.

    Two passes a batch, one of them backward, for all nodes of all sites. It is exact at the site that the classifier
    reads, where its logit is linear in the nodes. Gradients run through the model itself and not through the encoders.

    Raises:
        ValueError: a site lies behind the one that the classifier reads.
    """
    _check(classifier, nodes)
    sites = sorted(nodes)
    support = {s: torch.zeros(nodes[s].n_latents, dtype=torch.float64) for s in sites}
    magnitude = {s: torch.zeros(nodes[s].n_latents, dtype=torch.float64) for s in sites}
    errors = dict.fromkeys(sites, 0.0)
    for start in range(0, len(texts), batch_size):
        tokens = classifier.lm.tokenize(texts.texts[start : start + batch_size], context=classifier.lm.max_context)
        sign = 2.0 * texts.target_labels[start : start + batch_size] - 1
        splice = Splice(nodes, where=tokens.counted, gradient="passed")
        edits = splice.edits()
        logits = classifier.logits(tokens, edits)
        leaves = [leaf for s in sites for leaf in (splice.placed[s].values, splice.placed[s].error)]
        gradients = torch.autograd.grad((logits * sign.to(logits)).sum(), leaves)
        for i, site in enumerate(sites):
            placed = splice.placed[site].detach()
            effect = (gradients[2 * i] * placed.values).double().cpu()
            by_text = torch.zeros(len(tokens), nodes[site].n_latents, dtype=torch.float64)
            by_text.scatter_add_(1, placed.indices.cpu().flatten(1), effect.flatten(1))
            support[site] += by_text.sum(dim=0)
            magnitude[site] += by_text.abs().sum(dim=0)
            counted = tokens.counted.to(placed.error.device)
            errors[site] += float((gradients[2 * i + 1] * placed.error).double().sum(dim=-1)[counted].sum())
    n = len(texts)
    return ClassifierEffects(
        {s: v / n for s, v in support.items()},
        {s: v / n for s, v in magnitude.items()},
        {s: v / n for s, v in errors.items()},
        n,
    )


@torch.no_grad()
def exact_effects(
    classifier: Classifier,
    nodes: Mapping[Site, AbstractNodes],
    texts: LabelledTexts,
    chosen: Chosen,
    *,
    batch_size: int = 64,
) -> dict[Site, dict[int, float]]:
    """Mean over texts of the right class's logit less that with one node set to 0 everywhere: one pass per node."""
    _check(classifier, nodes)
    found: dict[Site, dict[int, float]] = {site: dict.fromkeys(latents, 0.0) for site, latents in chosen.items()}
    for start in range(0, len(texts), batch_size):
        tokens = classifier.lm.tokenize(texts.texts[start : start + batch_size], context=classifier.lm.max_context)
        sign = 2.0 * texts.target_labels[start : start + batch_size] - 1
        splice = Splice(nodes, where=tokens.counted)
        whole = classifier.logits(tokens, splice.edits())
        for site, latents in chosen.items():
            own = splice.found[site]
            for latent in latents:
                active = ((own.indices == latent) & (own.values != 0)).any(dim=-1).any(dim=-1).cpu()
                if not active.any():
                    continue
                without = classifier.logits(tokens[active], ablation(nodes, {site: [latent]})(tokens[active]))
                lost = (whole[active.to(whole.device)] - without).double().cpu()
                found[site][latent] += float((lost * sign[active]).sum()) / len(texts)
    return found


def _check(classifier: Classifier, nodes: Mapping[Site, AbstractNodes]) -> None:
    late: Sequence[Site] = [site for site in nodes if site > classifier.site]
    if late:
        raise ValueError(f"the classifier reads {classifier.site}; nodes at {late[0]} come after it and do nothing")
    if not nodes:
        raise ValueError("expected nodes at one site at least, got none")
