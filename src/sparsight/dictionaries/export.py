"""The same dictionary as another architecture, or in other units: one function per pair."""

import copy

import torch

from sparsight.dictionaries.base import AbstractDictionary, JointNormalization, Normalization
from sparsight.dictionaries.batchtopk import BatchTopK, BatchTopKDictionary
from sparsight.dictionaries.gated import Gated, GatedDictionary
from sparsight.dictionaries.jumprelu import JumpReLU, JumpReLUDictionary
from sparsight.dictionaries.matryoshka import Matryoshka, MatryoshkaDictionary
from sparsight.dictionaries.relu import ReLU, ReLUDictionary


@torch.no_grad()
def gated_to_jumprelu(dictionary: GatedDictionary) -> JumpReLUDictionary:
    """The JumpReLU dictionary with the same code for every activation.

    Write `a = exp(r_mag) u + b_mag` for the magnitude. The gate `u + b_gate > 0` is open exactly where `a > theta` with
    `theta = b_mag - exp(r_mag) b_gate`. Where `theta` is negative the rectifier closes first, and the threshold is 0:
    the smallest positive normal number stands for it, thresholds being held by their logarithm.

    Args:
        dictionary: Folded or not; its record goes along.
    Raises:
        ValueError: its magnitudes have weights of their own (`untied`): then no threshold on them tells the gate.
    Source:
        Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders", 2024, appendix on the
        equivalence with the jump; thresholds below 0 are not considered there.
    """
    config = dictionary.config
    if config.untied:
        raise ValueError(
            "a gated dictionary with untied magnitudes is no JumpReLU dictionary: gate and magnitude look along "
            "different directions; train with untied=False"
        )
    scale, bias = dictionary.magnitude_scale, dictionary.magnitude_bias
    threshold = bias - scale * dictionary.b_gate if config.heaviside else torch.zeros_like(bias)
    exported = _empty_jumprelu(dictionary, config)
    exported.W_enc.copy_(dictionary.W_enc * scale)
    exported.b_enc.copy_(bias)
    exported.log_threshold.copy_(_log_threshold(threshold))
    return exported


@torch.no_grad()
def relu_to_jumprelu(dictionary: ReLUDictionary) -> JumpReLUDictionary:
    """The JumpReLU dictionary with the same code: threshold 0 (see `gated_to_jumprelu`), norms in the encoder."""
    exported = _empty_jumprelu(dictionary, dictionary.config)
    W_enc, b_enc = dictionary.scaled_encoder
    exported.W_enc.copy_(W_enc)
    exported.b_enc.copy_(b_enc)
    exported.log_threshold.copy_(_log_threshold(torch.zeros_like(b_enc)))
    return exported


@torch.no_grad()
def batchtopk_to_jumprelu(dictionary: BatchTopKDictionary | MatryoshkaDictionary) -> JumpReLUDictionary:
    """The JumpReLU dictionary with the same code, bit for bit: the one threshold becomes that of every latent.

    Args:
        dictionary: Calibrated; folded or not; its record goes along.
    """
    exported = _empty_jumprelu(dictionary, dictionary.config)
    exported.W_enc.copy_(dictionary.W_enc)
    exported.b_enc.copy_(dictionary.b_enc)
    exported.log_threshold.copy_(dictionary.log_theta.expand_as(exported.log_threshold))
    return exported


def unfolded(dictionary: AbstractDictionary) -> tuple[AbstractDictionary, Normalization | JointNormalization]:
    """A copy that takes normalised activations, as in training, and the normalisation that was folded in.

    Raises:
        ValueError: none is folded in.
    """
    copied = copy.deepcopy(dictionary)
    copied.unfold_()
    assert dictionary.normalization is not None
    return copied, dictionary.normalization


def _empty_jumprelu(
    dictionary: AbstractDictionary, config: Gated | ReLU | BatchTopK | Matryoshka
) -> JumpReLUDictionary:
    """A frozen JumpReLU dictionary with atoms, offset and record of another; encoder and thresholds still to be set."""
    # A weight of 0: what is exported was not trained by a penalty on L0.
    target = float(config.k) if isinstance(config, BatchTopK | Matryoshka) else config.target_l0
    sparsity = {"l0": 0.0} if target is None else {"target_l0": target}
    jumprelu = JumpReLU(
        config.n_latents, aux=config.aux, k_aux=config.k_aux, dead_after=config.dead_after, threshold=1.0, **sparsity
    )
    exported = JumpReLUDictionary(jumprelu, dictionary.atoms.detach().clone()).requires_grad_(False)
    exported.b_dec.copy_(dictionary.b_dec)
    exported.site, exported.model = dictionary.site, dictionary.model
    exported.normalization = dictionary.normalization
    exported.provenance = {**dictionary.provenance, "exported_from": config.architecture}
    return exported


def _log_threshold(threshold: torch.Tensor) -> torch.Tensor:
    return threshold.clamp_min(torch.finfo(threshold.dtype).tiny).log()
