"""Training of toy models, all copies at once."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import TrainingError
from sparsight.theory.superposition.inputs import ToyInputs
from sparsight.theory.superposition.model import ToyModel
from sparsight.training.averages import Adam, Group


def train_toy(
    inputs: ToyInputs,
    hidden: int,
    importance: Float[Tensor, "#c n"],
    *,
    steps: int = 10_000,
    batch: int = 1024,
    lr: float = 1e-3,
    seed: int = 0,
) -> ToyModel:
    """Models that have seen `steps` batches; copies see different draws. The rate falls to 0 along a cosine.

    Args:
        inputs: What is drawn, for as many copies as it names densities.
        hidden: Dimensions.
        importance: Weight of each feature's error, for all copies alike or for each.
        steps: Of Adam.
        batch: Inputs of a step, for each copy.
        lr: Its rate at first.
    Raises:
        ValueError: importances of another number of features, or negative ones; `steps` or `batch` below 1.
        TrainingError: the loss is not finite.
    """
    if importance.shape[1] != inputs.n or importance.shape[0] not in (1, inputs.copies):
        expected = f"[1, {inputs.n}] or [{inputs.copies}, {inputs.n}]"
        raise ValueError(f"importance must have the shape {expected}, got {list(importance.shape)}")
    if bool((importance < 0).any()) or not bool(torch.isfinite(importance).all()):
        raise ValueError("importances must be finite and 0 or more")
    if min(steps, batch) < 1:
        raise ValueError(f"steps and batch must be 1 or more, got {steps} and {batch}")
    generator = torch.Generator().manual_seed(seed)
    model = ToyModel(inputs.copies, inputs.n, hidden, generator)
    adam = Adam([Group([model.W, model.b])], (0.9, 0.999), eps=1e-8)
    for step in range(steps):
        # Copies share no weight: the gradient of the sum is that of each.
        loss: Tensor = model.loss(inputs.draw(batch, generator), importance).sum()
        if step % 100 == 0 and not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss is {float(loss.detach()):g} after {step} steps; lower lr={lr:g}")
        adam.clear_gradients()
        torch.autograd.backward([loss])
        adam.step(lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps)))))
    return model.requires_grad_(False)
