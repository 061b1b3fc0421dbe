"""What ReLU dictionaries minimise."""

from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import ReLUDictionary
from sparsight.training.objectives.terms import Objective, objective_of, revival, squared_error
from sparsight.training.parallel.processes import over_batch

# Values below this count as 0 where a power below 1 is taken: its slope there would be without bound.
FLOOR = 1e-8


def relu_objective(
    dictionary: ReLUDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + sparsity * l1 * mean sum_j z_j + aux * revival`, where `z_j = f_j |row_j|`.

    With annealing the penalty is `sparsity * l1 * factor * mean sum_j z_j^p`; p and factor stand in the dictionary,
    where this also leaves the batch's penalty under the present and the next power (`ReLUDictionary.schedule_`).

    Args:
        sparsity: What multiplies the weight of the penalty now: its warm-up, and a controller's gain.
    """
    config = dictionary.config
    W_enc, b_enc = dictionary.scaled_encoder
    values = torch.addmm(b_enc, x - dictionary.b_dec, W_enc).relu()
    x_hat = values @ dictionary.atoms + dictionary.b_dec
    terms = {
        "reconstruction": squared_error(x, x_hat),
        "sparsity": sparsity * config.coefficient * penalty(dictionary, values, len(x)),
    }
    if config.aux > 0 and bool(dead.any()):
        plain = SimpleNamespace(
            atoms=dictionary.atoms, b_dec=dictionary.b_dec, W_enc=W_enc, b_enc=b_enc, d_in=dictionary.d_in
        )
        terms["auxiliary"] = config.aux * revival(plain, x, x - x_hat, dead, config.k_aux)
    active = values.detach() > 0
    return objective_of(terms, active.sum() / len(x), active.any(dim=0))


def penalty(dictionary: ReLUDictionary, values: Float[Tensor, "*n"], n_tokens: int) -> Float[Tensor, ""]:
    """Mean over tokens of the sum of the values, or of their powers times the factor that keeps it as it was before.

    Args:
        values: Those of all tokens; zeros may be left out.
    """
    config = dictionary.config
    if config.p_end is None:
        return values.sum() / n_tokens
    stage = int(dictionary.anneal_stage)
    now = sum_of_powers(values, config.power(stage), n_tokens)
    following = sum_of_powers(values.detach(), config.power(min(stage + 1, config.n_powers)), n_tokens)
    # All processes of a run must match the weight alike.
    dictionary.remember_penalties_(*over_batch(torch.stack([now.detach(), following])))
    return dictionary.anneal_factor * now


def sum_of_powers(values: Float[Tensor, "*n"], p: float, n_tokens: int) -> Float[Tensor, ""]:
    """Mean over tokens of `sum_j values_j^p`."""
    counted = values > FLOOR
    return (torch.where(counted, values, 1.0).pow(p) * counted).sum() / n_tokens
