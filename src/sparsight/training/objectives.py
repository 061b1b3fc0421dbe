"""What training minimises: one function per architecture, all in the same units.

Activations come normalised to zero mean and unit total variance. The reconstruction term is the squared error summed
over dimensions and averaged over tokens, hence the fraction of variance unexplained (FVU). All other terms are
dimensionless, so no coefficient depends on the scale of the site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, JumpReLU, JumpReLUDictionary, TopKDictionary
from sparsight.dictionaries.jumprelu import jump, step
from sparsight.training.sparse_step import sparse_top_k

# Weight of `(L0 / target - 1)^2`. The FVU pulls L0 away from its target; at weight 1 it moved a target far below the
# data's own L0 by 16 %, at 4 by 3.5 %, with the same FVU where the target suits the data (docs/training.md).
TARGET_WEIGHT = 4.0


@dataclass(frozen=True)
class Objective:
    """The loss of one batch, and what it was made of.

    Attributes:
        loss: To be minimised; the sum of `parts`.
        parts: Its terms, weighted as in the loss, detached.
        l0: Mean number of active latents in a token.
        fired: Latents active in at least one token.
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    l0: Float[Tensor, ""]
    fired: Bool[Tensor, " n_latents"]


def topk_objective(
    dictionary: TopKDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + aux * revival`. TopK has no sparsity penalty; `sparsity` is not used."""
    config = dictionary.config
    x_hat, values, indices = sparse_top_k(
        x, dictionary.W_enc, dictionary.b_enc, dictionary.atoms, dictionary.b_dec, k=config.k
    )
    active = values > 0
    fired = torch.zeros_like(dead)
    fired[indices[active]] = True
    terms = {"reconstruction": _squared_error(x, x_hat)}
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * _revival(dictionary, x, x - x_hat, dead, config.k_aux)
    return _objective(terms, active.sum() / len(x), fired)


def jumprelu_objective(
    dictionary: JumpReLUDictionary, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], sparsity: float = 1.0
) -> Objective:
    """`FVU + sparsity * penalty + aux * revival`; the penalty is `l0 * L0` or `(L0 / target_l0 - 1)^2`.

    Args:
        sparsity: Share of its full weight that the penalty has now.
    """
    config = dictionary.config
    pre = torch.addmm(dictionary.b_enc, x - dictionary.b_dec, dictionary.W_enc)
    # The window of the threshold is narrower than bfloat16 can resolve.
    pre = pre.to(torch.promote_types(pre.dtype, torch.float32))
    threshold = dictionary.threshold.to(pre.dtype)
    values = jump(pre, threshold, config.bandwidth)
    active = step(pre, threshold, config.bandwidth)
    x_hat = values.to(x.dtype) @ dictionary.atoms + dictionary.b_dec
    l0 = active.sum(dim=1).mean()
    terms = {"reconstruction": _squared_error(x, x_hat), "sparsity": sparsity * _penalty(config, l0)}
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * _revival(dictionary, x, x - x_hat, dead, config.k_aux)
    return _objective(terms, l0.detach(), active.detach().any(dim=0))


# The objective of each architecture; a new one joins by one entry.
OBJECTIVES: dict[type[AbstractDictionary], Callable[[Any, Tensor, Tensor, float], Objective]] = {
    TopKDictionary: topk_objective,
    JumpReLUDictionary: jumprelu_objective,
}


def _objective(terms: dict[str, Tensor], l0: Tensor, fired: Tensor) -> Objective:
    loss = torch.stack(list(terms.values())).sum()
    return Objective(loss, {name: term.detach() for name, term in terms.items()}, l0, fired)


def _penalty(config: JumpReLU, l0: Tensor) -> Tensor:
    """Linear in L0 with a given weight, or quadratic about a target."""
    if config.target_l0 is not None:
        return TARGET_WEIGHT * (l0 / config.target_l0 - 1).square()
    assert config.l0 is not None
    return config.l0 * l0


def _squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    return (x - x_hat).square().sum(dim=1).mean()


def _revival(
    dictionary: TopKDictionary | JumpReLUDictionary,
    x: Tensor,
    residual: Tensor,
    dead: Tensor,
    k_aux: int | None,
) -> Tensor:
    """Fraction of the residual's variance that dead latents leave unexplained.

    In each token the `k_aux` dead latents of largest pre-activation reconstruct the residual, without offset. Values
    are *not* rectified: a latent whose pre-activation is negative everywhere would never hear from the loss. Residual
    and offset are constants here: reviving the dead does not bend the living.

    Source:
        Gao et al., "Scaling and evaluating sparse autoencoders", 2024, appendix A.2 (they rectify).
    """
    latents = dead.nonzero()[:, 0]
    W_enc, b_enc = dictionary.W_enc[:, latents], dictionary.b_enc[latents]
    atoms = dictionary.atoms[latents]
    centred = x - dictionary.b_dec.detach()
    residual = residual.detach()
    k = min(k_aux or max(1, dictionary.d_in // 2), len(latents))
    if k == len(latents):
        explained = torch.addmm(b_enc, centred, W_enc) @ atoms
    else:
        no_offset = torch.zeros_like(dictionary.b_dec)
        explained, _, _ = sparse_top_k(centred, W_enc, b_enc, atoms, no_offset, k=k, rectify=False)
    variance = (residual - residual.mean(dim=0)).square().sum()
    # An exact reconstruction leaves nothing to explain: 0 / tiny = 0.
    return (residual - explained).square().sum() / variance.clamp_min(torch.finfo(x.dtype).tiny)
