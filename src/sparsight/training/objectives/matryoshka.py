"""What Matryoshka minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import MatryoshkaDictionary
from sparsight.training.objectives.terms import Objective, objective_of, revival
from sparsight.training.sparse_step import sparse_prefixes


def matryoshka_objective(
    dictionary: MatryoshkaDictionary,
    x: Float[Tensor, "b d_in"],
    dead: Bool[Tensor, " n_latents"],
    sparsity: float = 1.0,
) -> Objective:
    """`FVU + sum_j weights_j FVU_j + aux * revival`: of the whole width, and of each inner prefix `j` by itself.

    The code is BatchTopK's, chosen once over the whole width: a prefix has no budget of its own. The residual to revive
    with is that of the whole width. Matryoshka has no sparsity penalty; `sparsity` is not used.
    """
    config = dictionary.config
    widths = torch.tensor(dictionary.widths_now, device=x.device)
    x_hats, slots = sparse_prefixes(
        x,
        dictionary.W_enc,
        dictionary.b_enc,
        dictionary.atoms,
        dictionary.b_dec,
        n_kept=dictionary.k_now * len(x),
        widths=widths,
    )
    errors = (x - x_hats).square().sum(dim=(1, 2)) / len(x)
    fired = torch.zeros_like(dead)
    fired[slots.latents] = True
    terms = {"reconstruction": errors[-1]}
    if len(widths) > 1:
        weights = torch.ones_like(errors[:-1]) if config.weights is None else errors.new_tensor(config.weights)
        terms["prefixes"] = (weights * errors[:-1]).sum()
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * revival(dictionary, x, x - x_hats[-1], dead, config.k_aux)
    return objective_of(terms, x.new_tensor(len(slots.values) / len(x)), fired)
