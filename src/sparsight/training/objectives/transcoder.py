"""What a transcoder minimises."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries.transcoder import TranscoderDictionary
from sparsight.training.objectives.terms import Objective, objective_of, squared_error, unexplained_by_dead
from sparsight.training.sparse_map import sparse_map


def transcoder_objective(
    dictionary: TranscoderDictionary,
    xy: Float[Tensor, "b d_total"],
    dead: Bool[Tensor, " n_latents"],
    sparsity: float = 1.0,
) -> Objective:
    """FVU of the output given the input, `+ aux *` the share of what is left that dead latents leave unexplained.

    Args:
        dictionary: In training: of normalised activations.
        xy: Input and output side by side, each of zero mean and unit total variance.
        dead: Latents to revive.
        sparsity: Not used: there is no penalty.
    Raises:
        ValueError: the transcoder has no `k`, or is a weighted one.
    """
    config = dictionary.config
    if config.k is None:
        raise ValueError("a transcoder is trained with a k; those without one are for published weights")
    if config.weighted:
        raise ValueError("a weighted transcoder is not trained; train one without weighted=True")
    x, y = torch.split(xy, [dictionary.d_in, dictionary.d_out], dim=1)
    centred = x - dictionary.b_in
    decoded, values, indices = sparse_map(centred, dictionary.W_enc, dictionary.b_enc, dictionary.atoms, k=config.k)
    y_hat = decoded + dictionary.b_dec
    if dictionary.W_skip is not None:
        y_hat = y_hat + centred @ dictionary.W_skip
    active = values > 0
    fired = torch.zeros_like(dead)
    fired[indices[active]] = True
    terms = {"reconstruction": squared_error(y, y_hat)}
    if config.aux > 0 and bool(dead.any()):
        terms["auxiliary"] = config.aux * unexplained_by_dead(
            centred.detach(),
            dictionary.W_enc,
            dictionary.b_enc,
            dictionary.atoms,
            y - y_hat,
            dead,
            config.k_aux,
        )
    return objective_of(terms, active.sum() / len(x), fired)
