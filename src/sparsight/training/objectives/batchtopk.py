"""What BatchTopK minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import BatchTopKDictionary
from sparsight.training.objectives.terms import Objective, objective_of, revival, squared_error
from sparsight.training.sparse_step import sparse_batch_top_k


def batchtopk_objective(
    dictionary: BatchTopKDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + aux * revival`, with the `k b` largest positive pre-activations of the batch's `b` tokens as its code.

    BatchTopK has no sparsity penalty; `sparsity` is not used.
    """
    config = dictionary.config
    x_hat, slots = sparse_batch_top_k(
        x,
        dictionary.W_enc,
        dictionary.b_enc,
        dictionary.atoms,
        dictionary.b_dec,
        n_kept=dictionary.k_now * len(x),
    )
    fired = torch.zeros_like(dead)
    fired[slots.latents] = True
    terms = {"reconstruction": squared_error(x, x_hat)}
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * revival(dictionary, x, x - x_hat, dead, config.k_aux)
    return objective_of(terms, x.new_tensor(len(slots.values) / len(x)), fired)
