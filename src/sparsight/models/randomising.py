"""The same architecture with weights that have learnt nothing: what a model's training is to be compared with."""

import copy

import torch

from sparsight.models.language_model import LanguageModel


def randomised(lm: LanguageModel, seed: int = 0) -> LanguageModel:
    """A copy of a model, embeddings included, whose every weight is drawn anew.

    Each tensor is redrawn from a Gaussian of its own mean and standard deviation, so that activations keep about their
    size while nothing that training put into them is left.

    Args:
        lm: A model; it stays as it is.
        seed: Of the draw.
    Source:
        Heap, Lawson, Farnik & Aitchison, "Sparse autoencoders can interpret randomly initialized transformers", 2025.
    """
    model = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():  # a weight that is used twice is named once
            exact = weight.detach().double()
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(exact.device)
            weight.copy_(drawn * exact.std(correction=0) + exact.mean())
    return LanguageModel(model, lm.tokenizer, name=f"{lm.name}, weights redrawn")
