"""What JumpReLU minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import JumpReLU, JumpReLUDictionary
from sparsight.dictionaries.jumprelu import jump, step
from sparsight.training.objectives.terms import Objective, objective_of, revival, squared_error
from sparsight.training.parallel.processes import over_batch

# Weight of `(L0 / target - 1)^2`. The FVU pulls L0 away from its target; at weight 1 it moved a target far below the
# data's own L0 by 16 %, at 4 by 3.5 %, with the same FVU where the target suits the data (docs/training.md).
TARGET_WEIGHT = 4.0


def jumprelu_objective(
    dictionary: JumpReLUDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + sparsity * penalty + aux * revival`; the penalty is `l0 * L0` or `(L0 / target_l0 - 1)^2`.

    Args:
        sparsity: Share of its full weight that the penalty has now.
    """
    config = dictionary.config
    # bfloat16 has some ten numbers within a window of the threshold, so this product stays out of its reach.
    with torch.autocast(x.device.type, enabled=False):
        pre = torch.addmm(dictionary.b_enc, x - dictionary.b_dec, dictionary.W_enc)
    pre = pre.to(torch.promote_types(pre.dtype, torch.float32))
    threshold = dictionary.threshold.to(pre.dtype)
    values = jump(pre, threshold, dictionary.bandwidth)
    active = step(pre, threshold, dictionary.bandwidth)
    x_hat = values.to(x.dtype) @ dictionary.atoms + dictionary.b_dec
    l0 = active.sum(dim=1).mean()
    terms = {"reconstruction": squared_error(x, x_hat), "sparsity": sparsity * sparsity_penalty(config, l0)}
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * revival(dictionary, x, x - x_hat, dead, config.k_aux)
    return objective_of(terms, l0.detach(), active.detach().any(dim=0))


def sparsity_penalty(config: JumpReLU, l0: Tensor) -> Tensor:
    """The penalty of an L0: linear in it with a given weight, or quadratic about a target."""
    if config.target_l0 is not None:
        return TARGET_WEIGHT * (over_batch(l0) / config.target_l0 - 1).square()
    assert config.l0 is not None
    return config.l0 * l0
