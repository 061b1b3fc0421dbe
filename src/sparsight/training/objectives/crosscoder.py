"""What a crosscoder minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries.crosscoder import CrosscoderDictionary
from sparsight.training.objectives.terms import Objective, objective_of, revival, squared_error
from sparsight.training.sparse_step import sparse_top_k


def crosscoder_objective(
    dictionary: CrosscoderDictionary,
    x: Float[Tensor, "b d_total"],
    dead: Bool[Tensor, " n_latents"],
    sparsity: float = 1.0,
) -> Objective:
    """Mean FVU of the sites, `+ l1 *` the mean over tokens and sites of `sum_j z_j |atom of j at the site|`, `+ aux`.

    Both terms are means over sites where the source sums, so that neither they nor `l1` depend on how many there are.

    Args:
        dictionary: In training: of normalised activations.
        x: All sites side by side, each of zero mean and unit total variance.
        dead: Latents to revive.
        sparsity: Share of its full weight that the penalty has now.
    Source:
        Lindsey et al., "Sparse crosscoders for cross-layer features and model diffing", 2024.
    """
    config = dictionary.config
    n_sites = len(dictionary.columns)
    terms: dict[str, Tensor] = {}
    if config.k is not None:
        x_hat, values, indices = sparse_top_k(
            x, dictionary.W_enc, dictionary.b_enc, dictionary.atoms, dictionary.b_dec, k=config.k
        )
        active = values > 0
        fired = torch.zeros_like(dead)
        fired[indices[active]] = True
    else:
        assert config.l1 is not None
        z = torch.addmm(dictionary.b_enc, x - dictionary.b_dec, dictionary.W_enc).relu()
        x_hat = z @ dictionary.atoms + dictionary.b_dec
        norms = torch.stack([dictionary.atoms[:, at].norm(dim=1) for at in dictionary.columns]).mean(dim=0)
        terms["sparsity"] = sparsity * config.l1 * (z @ norms).mean()
        active = z > 0
        fired = active.any(dim=0)
    terms["reconstruction"] = squared_error(x, x_hat) / n_sites
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * revival(dictionary, x, x - x_hat, dead, config.k_aux)
    return objective_of(terms, active.sum() / len(x), fired)
