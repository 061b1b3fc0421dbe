"""What Gated dictionaries minimise."""

from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import GatedDictionary
from sparsight.training.objectives.terms import Objective, objective_of, revival, squared_error


def gated_objective(
    dictionary: GatedDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + sparsity * l1 * mean sum_j q_j + gate_aux * FVU of q through a constant decoder + aux * revival`.

    `q = relu(pre_gate)`. The step function has no derivative, so `b_gate` learns from the second and third term only.

    Args:
        sparsity: What multiplies the weight of the penalty now: its warm-up, and a controller's gain.
    """
    config = dictionary.config
    gate, magnitudes, is_open = dictionary.paths(x)
    values = magnitudes * is_open
    x_hat = values @ dictionary.atoms + dictionary.b_dec
    detector = gate.relu()
    terms = {
        "reconstruction": squared_error(x, x_hat),
        "sparsity": sparsity * config.coefficient * detector.sum(dim=1).mean(),
    }
    if config.gate_aux > 0:
        terms["gate_reconstruction"] = config.gate_aux * squared_error(x, _through_the_gate(dictionary, x, detector))
    if config.aux > 0 and bool(dead.any()):
        gates = SimpleNamespace(
            atoms=dictionary.atoms,
            b_dec=dictionary.b_dec,
            W_enc=dictionary.W_enc,
            b_enc=dictionary.b_gate,
            d_in=dictionary.d_in,
        )
        terms["auxiliary"] = config.aux * revival(gates, x, x - x_hat, dead, config.k_aux)
    active = values.detach() > 0
    return objective_of(terms, active.sum() / len(x), active.any(dim=0))


def _through_the_gate(dictionary: GatedDictionary, x: Tensor, detector: Tensor) -> Tensor:
    """The reconstruction that the gate alone would give, by a decoder that does not learn from it."""
    config = dictionary.config
    if config.detach_aux_input:
        detector = torch.addmm(dictionary.b_gate, x - dictionary.b_dec.detach(), dictionary.W_enc).relu()
    if config.freeze_aux_decoder:
        return detector @ dictionary.atoms.detach() + dictionary.b_dec.detach()
    return detector @ dictionary.atoms + dictionary.b_dec
