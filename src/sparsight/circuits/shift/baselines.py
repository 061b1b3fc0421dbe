"""What SHIFT has to beat: words deleted, a concept erased, neurons, random nodes, and data that decide."""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import Intervention, pooled_activations
from sparsight.circuits.shift.grammar import marks_of
from sparsight.evaluation.features.leace import Leace
from sparsight.models import Edit, LanguageModel, Site, Tokens

MALE_WORD, FEMALE_WORD, OTHER_WORD = range(3)


def without_words(texts: LabelledTexts, words: Collection[str]) -> LabelledTexts:
    """The same texts with some words taken out. A text is left whole where nothing else would remain."""
    kept = []
    for text in texts.texts:
        rest = [word for word in text.split() if word not in words]
        kept.append(" ".join(rest) if rest else text)
    return texts.with_texts(kept)


def erasing(eraser: Leace, site: Site) -> Intervention:
    """Erase at every counted token of a site.

    The eraser is affine, so that erasing tokens and erasing their mean are one: it may be fitted on either.
    """

    def intervene(tokens: Tokens) -> dict[Site, Edit]:
        def edit(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
            counted = tokens.counted.to(x.device)
            edited = x.clone()
            edited[counted] = eraser.erase(x[counted])
            return edited

        return {site: edit}

    return intervene


def text_eraser(lm: LanguageModel, site: Site, texts: LabelledTexts, *, batch_size: int = 64) -> Leace:
    """Erases the spurious feature of whole texts from their mean activations.

    On fully spurious texts it is the target as well that goes: their labels are the same.
    """
    x = pooled_activations(lm, site, texts.texts, batch_size=batch_size)
    return Leace.of(x, texts.spurious_labels)


@torch.no_grad()
def word_eraser(lm: LanguageModel, site: Site, texts: LabelledTexts, *, batch_size: int = 64) -> Leace:
    """Erases which tokens are words of men, of women, or neither: names and pronouns, by the organism's labels.

    Raises:
        ValueError: the texts carry no labels of the organism.
    """
    tokens = lm.tokenize(texts.texts, context=lm.max_context)
    marks = marks_of(texts, tokens.ids.shape[1])
    if marks is None:
        raise ValueError("these texts carry no labels of the organism, so no word is known to be a man's or a woman's")
    kinds = torch.where(marks.gendered, marks.spurious, torch.tensor(OTHER_WORD))
    rows, labels = [], []
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        x = lm.activations(batch, [site])[site].cpu()
        rows.append(x[batch.counted])
        labels.append(kinds[start : start + batch_size][batch.counted])
    return Leace.of(torch.cat(rows), torch.cat(labels))
