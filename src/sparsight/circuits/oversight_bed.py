"""Beds for oversight by cognition: heads that agree at hand, and what each goes by known.

Planted: two directions among many. Hard: latents are judged from what is at hand and the model's own directions.
Relaxed: a few activations where the two properties differ may be used to judge.

Of words: heads on the organism's embeddings, each with weights of its own on words of professions, or on words of men
and women. All give one answer to every biased text, and no two go by the same words to the same degree.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.circuits.oversight import INTENDED, UNINTENDED
from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import Classifier
from sparsight.circuits.shift.grammar import gendered_words, profession_words
from sparsight.dictionaries import AbstractDictionary
from sparsight.models import LanguageModel, Site


@dataclass(frozen=True, eq=False)
class Bed:
    """A planted benchmark: two properties in superposition with others, always together on the texts at hand.

    Attributes:
        directions: Unit directions of all properties; row 0 is the intended one, row 1 the other.
        at_hand: Activations where the two always go together.
        broad: Activations where all properties are independent: what a general dictionary is trained on.
        heads: Linear classifiers with equal outputs at hand, one row each.
        intended: Whether each goes by the intended property.
        deciding, deciding_labels: Few activations where the two differ, and which of the two is present (0, 1).
    """

    directions: Float[Tensor, "p d"]
    at_hand: Float[Tensor, "n d"]
    broad: Float[Tensor, "m d"]
    heads: Float[Tensor, "c d"]
    intended: list[bool]
    deciding: Float[Tensor, "k d"]
    deciding_labels: Int64[Tensor, " k"]


def planted_bed(
    seed: int, *, d: int = 24, n_properties: int = 32, n: int = 2000, n_broad: int = 20_000, n_heads: int = 8
) -> Bed:
    """Draw a bed: activations are sums of about three of `n_properties` directions, more than `d`, with weights 1 to 2.

    The first two directions span a plane that no other direction reaches into. A head reads `1 - e` of one of them and
    `e` of the other, `e` below 0.3, and nothing else: where both are present with one weight, all heads agree exactly.

    Args:
        seed: Of everything.
        d, n_properties, n, n_broad, n_heads: Sizes; half of the heads go by each property.
    """
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_properties, d, generator=g)
    plane = torch.linalg.qr(directions[:2].T).Q
    directions[2:] -= directions[2:] @ plane @ plane.T
    directions = torch.nn.functional.normalize(directions, dim=1)

    def weights(rows: int) -> Tensor:
        active = torch.rand(rows, n_properties, generator=g) < 3 / n_properties
        return active * (1 + torch.rand(rows, n_properties, generator=g))

    at_hand, broad, deciding = weights(n), weights(n_broad), weights(64)
    at_hand[:, :2] = (torch.rand(n, 1, generator=g) < 0.5) * (1 + torch.rand(n, 1, generator=g))
    labels = torch.arange(64) % 2
    deciding[:, :2] = torch.nn.functional.one_hot(labels, 2) * (1 + torch.rand(64, 1, generator=g))
    duals = torch.linalg.pinv(directions[:2]).T
    intended = [i % 2 == 0 for i in range(n_heads)]
    part = 0.3 * torch.rand(n_heads, 1, generator=g)
    part = torch.where(torch.tensor(intended)[:, None], part, 1 - part)
    heads = (1 - part) * duals[0] + part * duals[1]
    return Bed(directions, at_hand @ directions, broad @ directions, heads, intended, deciding @ directions, labels)


def head_effects(dictionary: AbstractDictionary, heads: Float[Tensor, "c d"], x: Float[Tensor, "n d"]) -> Tensor:
    """Mean absolute effect of each latent on each linear head: `mean |z_j| |atom_j . w|`, exact as heads are linear."""
    with torch.no_grad():
        values = dictionary.encode(x).to_dense().abs().double().mean(dim=0)
        return (heads.double() @ dictionary.atoms.double().T).abs() * values


def judge_latents(
    dictionary: AbstractDictionary, bed: Bed, how: Literal["hard", "relaxed"], *, margin: float = 0.2
) -> Int64[Tensor, " n_latents"]:
    """Verdicts on the latents of a planted bed, without a look at any head.

    Args:
        dictionary: Whose latents.
        bed: What is at hand.
        how: "hard": by the cosines of a latent's atom with the model's own directions of the two properties, which
            stand for its words. "relaxed": by its mean on the few deciding activations of either kind.
        margin: Relative difference below which a latent is unclear.
    """
    with torch.no_grad():
        if how == "hard":
            two = (dictionary.atoms @ bed.directions[:2].T).clamp_min(0).T
        else:
            values = dictionary.encode(bed.deciding).to_dense()
            two = torch.stack([values[bed.deciding_labels == c].mean(dim=0) for c in (0, 1)])
    gap = (two[0] - two[1]) / two.sum(dim=0).clamp_min(1e-12)
    strong = two.amax(dim=0) > (0.5 if how == "hard" else 0.05 * float(two.max()))
    verdicts = torch.zeros(len(gap), dtype=torch.int64)
    verdicts[strong & (gap > margin)] = INTENDED
    verdicts[strong & (gap < -margin)] = UNINTENDED
    return verdicts


@dataclass(frozen=True, eq=False)
class WordHeads:
    """Linear heads on mean embeddings, and what they go by.

    Attributes:
        heads: Classifiers of one language's biographies, half of them by professions.
        intended: Whether each was made to go by professions.
        by_profession: Of the absolute logits that words of either property give each head on the biased texts, the
            part of those of professions: near 1 where `intended`, near 0 elsewhere, by as much as the ridge leaves.
    """

    heads: list[Classifier]
    intended: list[bool]
    by_profession: list[float]


def word_heads(
    lm: LanguageModel, texts: LabelledTexts, *, n: int, spread: float = 1.0, ridge: float = 0.1, seed: int
) -> WordHeads:
    """Draw heads: `logit = mean over tokens of w . embedding`, with `w . embedding = s u` for the words a head reads.

    `s` is the class in whose texts a word stands, 1 or -1, so that a head answers texts rightly whatever its `u > 0`;
    `u` is drawn for each head and word, log-normal: a few words rule each head, and others the next one. At all other
    words `w . embedding` should be 0. Both are met by ridge regression over the tokens of the texts: exactly they could
    be met by heads alone that live where embeddings hardly differ.

    Args:
        lm: The organism.
        texts: Fully spurious biographies of one language.
        n: Heads of either sort.
        spread: Standard deviation of `log u`; 0 makes all heads of a sort equal.
        ridge: Penalty on `w`, in units of the mean square of an embedding's coordinate.
        seed: Of the weights.
    """
    g = torch.Generator().manual_seed(seed)
    words = sorted({word for text in texts.texts for word in text.split()})
    counts = torch.tensor([[text.split().count(word) for word in words] for text in texts.texts]).float()
    ids = torch.cat([lm.tokenize(word).ids[0, 1:2] for word in words])
    rows = lm.model.get_input_embeddings().weight.detach()[ids.to(lm.device)].float().cpu()
    side = torch.sign((2.0 * texts.target_labels - 1) @ counts)
    read = [torch.tensor([word in known for word in words]) for known in (profession_words(), gendered_words(texts))]
    weighted = counts.sum(dim=0)[:, None] * rows  # words that are often there are met best
    moments = rows.T @ weighted
    moments += ridge * moments.diagonal().mean() * torch.eye(rows.shape[1])
    heads, intended, shares = [], [], []
    for i in range(2 * n):
        wanted = side * read[i % 2] * torch.exp(spread * torch.randn(len(words), generator=g))
        weight = torch.linalg.solve(moments, weighted.T @ wanted)
        heads.append(Classifier(lm, Site(None, "embed"), weight, 0.0))
        intended.append(i % 2 == 0)
        given = counts.sum(dim=0) * (rows @ weight).abs()
        shares.append(float(given[read[0]].sum() / given[read[0] | read[1]].sum()))
    return WordHeads(heads, intended, shares)
