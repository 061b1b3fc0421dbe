"""Dead latents start anew where the reconstruction is worst."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, BatchTopKDictionary, MatryoshkaDictionary, TranscoderDictionary
from sparsight.training.sparse_step import sparse_batch_top_k

# Offsets and logarithms of gains, all 0 in a fresh dictionary.
_ZERO_AT_FIRST = ("b_enc", "b_gate", "b_mag", "r_mag", "log_norm")


@torch.no_grad()
def resample_(
    dictionary: AbstractDictionary,
    x: Float[Tensor, "b d_total"],
    dead: Bool[Tensor, " n_latents"],
    generator: torch.Generator,
) -> tuple[Int64[Tensor, " c"], Bool[Tensor, " n_latents"]]:
    """Give dead latents the residual directions of badly reconstructed tokens, in place.

    Tokens are drawn without replacement with chances proportional to the square of their squared error. The atom is
    the unit residual of the token, the encoder its transpose (a transcoder's: the unit input of the token), offsets are
    0. A threshold becomes the geometric mean of the living latents'; where none lives, half of the pre-activation.

    Args:
        dictionary: In training: of normalised activations.
        x: A batch; all sites of a row side by side.
        dead: Latents to start anew.
        generator: Of the draw; on the CPU.
    Returns:
        The latents that started anew, fewer than are dead where fewer tokens have an error; the same as flags.
    Source:
        Bricken et al., "Towards monosemanticity", 2023, for the chances. We depart from it by the residual in place of
        the activation, by the full norm of the encoder, and by doing so whenever a latent has been silent long enough.
    """
    centred, residual = _input_and_residual(dictionary, x)
    chances = residual.square().sum(dim=1).double().square().cpu()
    count = min(int(dead.sum()), int((chances > 0).sum()))
    flags = torch.zeros_like(dead)
    latents = dead.nonzero()[:count, 0]
    if count == 0:
        return latents, flags
    tokens = torch.multinomial(chances, count, generator=generator).to(x.device)
    directions = torch.nn.functional.normalize(residual[tokens], dim=1)
    readers = directions
    if isinstance(dictionary, TranscoderDictionary):
        readers = torch.nn.functional.normalize(centred[tokens], dim=1)
    parameters = dict(dictionary.named_parameters())
    dictionary.atoms[latents] = directions
    for name in ("W_enc", "W_mag"):
        if name in parameters:
            parameters[name][:, latents] = readers.T
    for name in _ZERO_AT_FIRST:
        if name in parameters:
            parameters[name][latents] = 0
    if "log_threshold" in parameters:
        log_threshold = parameters["log_threshold"]
        own = (centred[tokens] * readers).sum(dim=1).clamp_min(1e-3).log()
        log_threshold[latents] = own - math.log(2) if bool(dead.all()) else log_threshold[~dead].mean()
    flags[latents] = True
    return latents, flags


def _input_and_residual(dictionary: AbstractDictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder reads, centred, and what the reconstruction lacks."""
    if isinstance(dictionary, TranscoderDictionary):
        read, written = torch.split(x, [dictionary.d_in, dictionary.d_out], dim=1)
        return read - dictionary.b_in, written - dictionary(read)
    if isinstance(dictionary, BatchTopKDictionary | MatryoshkaDictionary):  # in training the threshold is not yet set
        x_hat, _ = sparse_batch_top_k(
            x,
            dictionary.W_enc,
            dictionary.b_enc,
            dictionary.atoms,
            dictionary.b_dec,
            n_kept=dictionary.k_now * len(x),
        )
        return x - dictionary.b_dec, x - x_hat
    return x - dictionary.b_dec, x - dictionary(x)


def forget_(averages: Tensor, latents: Int64[Tensor, " c"], living: Bool[Tensor, " n_latents"], axis: int) -> None:
    """Set a running average of squared gradients to the mean of the living latents, in place; where none lives, to 0.

    At 0 the first steps of a latent would be several times as long as those of the others.
    """
    others = averages.index_select(axis, living.nonzero()[:, 0])
    averages.index_fill_(axis, latents, float(others.mean()) if others.numel() else 0.0)
