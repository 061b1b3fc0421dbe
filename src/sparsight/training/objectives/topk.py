"""What TopK minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import TopKDictionary
from sparsight.training.objectives.terms import Objective, objective_of, revival, squared_error
from sparsight.training.sparse_step import sparse_top_k


def topk_objective(
    dictionary: TopKDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + aux * revival`. TopK has no sparsity penalty; `sparsity` is not used."""
    config = dictionary.config
    x_hat, values, indices = sparse_top_k(
        x, dictionary.W_enc, dictionary.b_enc, dictionary.atoms, dictionary.b_dec, k=dictionary.k_now
    )
    active = values > 0
    fired = torch.zeros_like(dead)
    fired[indices[active]] = True
    terms = {"reconstruction": squared_error(x, x_hat)}
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * revival(dictionary, x, x - x_hat, dead, config.k_aux)
    return objective_of(terms, active.sum() / len(x), fired)
