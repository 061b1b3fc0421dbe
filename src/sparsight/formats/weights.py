"""Weights as other projects hold them, and our dictionaries made from them.

Elsewhere rows of a decoder have any norm. With `f` the code there and `n_j = |row_j|`, the same reconstruction from
unit atoms is `sum_j (f_j n_j) row_j / n_j`: **our values are theirs times the norm of the decoder's row**, in the units
of the activations. Encoder, offsets and thresholds are multiplied by `n_j` to give such values directly.

Everything is computed in float64, a few thousand latents at a time, and rounded to float32 once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    Gated,
    GatedDictionary,
    JumpReLU,
    JumpReLUDictionary,
    MatchingPursuit,
    MatchingPursuitDictionary,
    Place,
    Pursuit,
    PursuitDictionary,
    ReLU,
    ReLUDictionary,
    TopK,
    TopKDictionary,
    Transcoder,
    TranscoderDictionary,
    WeightedTopK,
    WeightedTopKDictionary,
)
from sparsight.errors import FormatError

# Float32 rows that were normalised differ in norm by about 1e-7; what is ranked by either norm is then ranked alike.
EQUAL_NORMS = 1e-6
# Latents whose weights are held in float64 at once: a file of gigabytes must not need three times its size.
BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Weights:
    """An autoencoder or a transcoder: `a = (x - b_in) W_enc + b_enc`, `y = f W_dec + b_dec [+ x W_skip]`.

    The code `f` is `relu(a)`; with `threshold`, `a` where it exceeds the latent's (or 0, if that is more); with `k`,
    the rectified `k` largest; with `r_mag`, `H(a) relu((a - b_enc) exp(r_mag) + b_mag)`.

    Attributes:
        W_enc: Encoder.
        b_enc: Its offsets; those of the gate where there is one.
        W_dec: Decoder, rows of any norm.
        b_dec: What is added at the end.
        b_in: What is subtracted from the input, nothing if None.
        k: Number of active latents.
        threshold: One for each latent.
        by_norm: Ranks and thresholds are of `a |row|`, not of `a`.
        r_mag, b_mag: Of gated ones.
        W_skip: From the input straight to the output.
        transcoder: Reads and writes different places.
    """

    W_enc: Float[Tensor, "d_in n_latents"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_out"]
    b_dec: Float[Tensor, " d_out"]
    b_in: Float[Tensor, " d_in"] | None = None
    k: int | None = None
    threshold: Float[Tensor, " n_latents"] | None = None
    by_norm: bool = False
    r_mag: Float[Tensor, " n_latents"] | None = None
    b_mag: Float[Tensor, " n_latents"] | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    transcoder: bool = False

    @property
    def norms(self) -> Float[Tensor, " n_latents"]:
        """Norm of every row of the decoder, in float64."""
        return _row_norms(self.W_dec)

    def of_scaled_input(self, scale: float, scale_out: float | None = None) -> "Weights":
        """The weights for raw `x`, where these are for `scale * x` and give `scale_out` times the output.

        `f` stays as it is; rows of the decoder become shorter by `scale_out`, and with them what is compared by norm.

        Args:
            scale_out: Default: `scale`.
        """
        out = scale if scale_out is None else scale_out
        return replace(
            self,
            W_enc=self.W_enc.double() * scale,
            W_dec=self.W_dec.double() / out,
            b_dec=self.b_dec.double() / out,
            b_in=None if self.b_in is None else self.b_in.double() / scale,
            threshold=self.threshold / out if self.by_norm and self.threshold is not None else self.threshold,
            W_skip=None if self.W_skip is None else self.W_skip.double() * (scale / out),
        )

    def of_affine_input(
        self, mean: Float[Tensor, " d"], matrix: Float[Tensor, "d d"], inverse: Float[Tensor, "d d"]
    ) -> "Weights":
        """The weights for raw `x`, where these are for `(x - mean) matrix` and what they give is mapped back."""
        folded = self._with_norms_folded() if self.by_norm else self
        b_in = mean.double() if self.b_in is None else mean.double() + self.b_in.double() @ inverse.double()
        return replace(
            folded,
            W_enc=matrix.double() @ folded.W_enc.double(),
            W_dec=folded.W_dec.double() @ inverse.double(),
            b_dec=folded.b_dec.double() @ inverse.double() + mean.double(),
            b_in=b_in,
        )

    def _with_norms_folded(self) -> "Weights":
        """The same with `a |row|` in place of `a`: ranks and thresholds then are of `a`, whatever rows become."""
        W_enc, b_enc = self.W_enc.double() * self.norms, self.b_enc.double() * self.norms
        return replace(self, W_enc=W_enc, b_enc=b_enc, W_dec=unit_atoms(self.W_dec), by_norm=False)


def dictionary_of(weights: Weights, where: Path) -> AbstractDictionary:
    """The dictionary that reconstructs as these weights do, and whose values are theirs times the decoder's norms.

    A row of norm 0 writes nothing: its latent becomes silent, with an arbitrary atom.

    Args:
        weights: Checked for shape by whoever read them.
        where: The file, for messages.
    Returns:
        Frozen, in float32, without site, model and provenance.
    Raises:
        FormatError: no architecture here codes like that.
    """
    if weights.r_mag is not None:
        dictionary: AbstractDictionary = _gated(weights)
    elif weights.transcoder:
        dictionary = _transcoder(weights, where)
    elif weights.threshold is not None:
        dictionary = _jumprelu(weights)
    elif weights.k is not None:
        dictionary = _topk(weights, where)
    else:
        dictionary = ReLUDictionary(ReLU(len(weights.W_dec), 0.0), unit_atoms(weights.W_dec))
        _fill(dictionary, **_offset_encoder(weights))
    return dictionary.requires_grad_(False)


def pursuit_of(
    W_dec: Float[Tensor, "n_latents d_in"], b_dec: Float[Tensor, " d_in"], k: int, stops: bool, limit: float
) -> PursuitDictionary | MatchingPursuitDictionary:
    """Matching pursuit over given rows.

    Args:
        W_dec: Rows, of any norm.
        b_dec: Subtracted at the start, added at the end.
        k: Steps, at most.
        stops: Whether a step that activates no new latent is the last.
        limit: Norm of the residual below which a token is finished.
    """
    n_latents, norms = len(W_dec), _row_norms(W_dec)
    fixed = not stops and limit == 0 and float((norms - 1).abs().max()) <= EQUAL_NORMS and k <= n_latents
    dictionary: PursuitDictionary | MatchingPursuitDictionary
    if fixed:
        config = Pursuit(n_latents, k, coder="matching_pursuit", polish=False)
        dictionary = PursuitDictionary(config, unit_atoms(W_dec))
        _fill(dictionary, b_dec=b_dec)
    else:
        dictionary = MatchingPursuitDictionary(MatchingPursuit(n_latents, k, stop_on_repeat=stops), unit_atoms(W_dec))
        _fill(dictionary, b_dec=b_dec, norm=norms, residual_limit=torch.tensor(limit))
    return dictionary


def unit_atoms(W_dec: Float[Tensor, "n_latents d_out"]) -> Float[Tensor, "n_latents d_out"]:
    """Rows divided by their norms; the first axis for rows of norm 0."""
    atoms = torch.empty(W_dec.shape, dtype=torch.float32)
    axis = torch.zeros(1, W_dec.shape[1], dtype=torch.float64)
    axis[0, 0] = 1
    for rows, made in zip(torch.split(W_dec, BLOCK), torch.split(atoms, BLOCK), strict=True):
        norms = _row_norms(rows)[:, None]
        made.copy_(torch.where(norms > 0, rows / norms.clamp_min(torch.finfo(torch.float64).tiny), axis))
    return atoms


def _row_norms(W_dec: Float[Tensor, "n_latents d_out"]) -> Float[Tensor, " n_latents"]:
    return torch.cat([rows.double().norm(dim=1) for rows in torch.split(W_dec, BLOCK)])


def log_threshold(threshold: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Logarithm of thresholds; 0 and below become the smallest positive normal number, as values are never negative."""
    return threshold.double().clamp_min(torch.finfo(torch.float32).tiny).log()


def _encoder(weights: Weights) -> dict[str, Tensor]:
    norms = weights.norms
    W_enc = torch.empty(weights.W_enc.shape, dtype=torch.float32)
    for columns in _blocks(len(norms)):
        W_enc[:, columns] = weights.W_enc[:, columns].double() * norms[columns]
    return {"W_enc": W_enc, "b_enc": weights.b_enc.double() * norms}


def _blocks(n: int) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, n, BLOCK)]


def _shift(weights: Weights) -> Float[Tensor, " n_latents"]:
    """What an encoder's offsets gain when `b_dec` is subtracted from its input in place of `b_in`."""
    gained = weights.b_dec.double() if weights.b_in is None else weights.b_dec.double() - weights.b_in.double()
    n_latents = weights.W_enc.shape[1]
    return torch.cat([gained @ weights.W_enc[:, columns].double() for columns in _blocks(n_latents)])


def _offset_encoder(weights: Weights) -> dict[str, Tensor]:
    """Parameters of a dictionary that subtracts `b_dec`."""
    shifted = replace(weights, b_enc=weights.b_enc.double() + _shift(weights))
    return {**_encoder(shifted), "b_dec": weights.b_dec}


def _gated(weights: Weights) -> GatedDictionary:
    assert weights.r_mag is not None
    assert weights.b_mag is not None
    dictionary = GatedDictionary(Gated(len(weights.W_dec), 0.0), unit_atoms(weights.W_dec))
    encoder = _offset_encoder(weights)
    b_mag = weights.b_mag.double() + _shift(weights) * weights.r_mag.double().exp()
    _fill(
        dictionary,
        W_enc=encoder["W_enc"],
        b_gate=encoder["b_enc"],
        b_dec=weights.b_dec,
        r_mag=weights.r_mag,
        b_mag=b_mag * weights.norms,
    )
    return dictionary


def _value_threshold(weights: Weights) -> Float[Tensor, " n_latents"]:
    """Thresholds in the units of our values."""
    assert weights.threshold is not None
    return weights.threshold.double() if weights.by_norm else weights.threshold.double() * weights.norms


def _jumprelu(weights: Weights) -> JumpReLUDictionary:
    # A weight of 0 for L0: what is read was not trained by our loss.
    config = JumpReLU(len(weights.W_dec), l0=0.0, threshold=1.0)
    dictionary = JumpReLUDictionary(config, unit_atoms(weights.W_dec))
    _fill(dictionary, **_offset_encoder(weights), log_threshold=log_threshold(_value_threshold(weights)))
    return dictionary


def _topk(weights: Weights, where: Path) -> TopKDictionary | WeightedTopKDictionary:
    assert weights.k is not None
    n_latents, norms = len(weights.W_dec), weights.norms
    _check_k(weights.k, n_latents, where)
    atoms = unit_atoms(weights.W_dec)
    if weights.by_norm or _equal(norms):
        dictionary = TopKDictionary(TopK(n_latents, weights.k), atoms)
        _fill(dictionary, **_offset_encoder(weights))
        return dictionary
    _check_no_zero_row(weights, where)
    weighted = WeightedTopKDictionary(WeightedTopK(n_latents, weights.k), atoms)
    _fill(weighted, **_offset_encoder(weights), selection=1 / norms)
    return weighted


def _check_k(k: int, n_latents: int, where: Path) -> None:
    if not 1 <= k <= n_latents:
        raise FormatError(f"{where}: k must be between 1 and the {n_latents} latents, got k={k}")


def _check_no_zero_row(weights: Weights, where: Path) -> None:
    norms = weights.norms
    if float(norms.min()) <= 0:
        raise FormatError(
            f"{where}: k={weights.k} latents are ranked without the norms of W_dec, and row {int(norms.argmin())} of "
            "W_dec is 0: its rank cannot be carried over"
        )


def _equal(norms: Float[Tensor, " n_latents"]) -> bool:
    return float(norms.max() - norms.min()) <= EQUAL_NORMS * float(norms.max())


def _transcoder(weights: Weights, where: Path) -> TranscoderDictionary:
    (d_in, n_latents), d_out = weights.W_enc.shape, weights.W_dec.shape[1]
    ranked_alike = weights.k is None or weights.by_norm or _equal(weights.norms)
    if weights.k is not None:
        _check_k(weights.k, n_latents, where)
        if not ranked_alike:
            _check_no_zero_row(weights, where)
    jump = weights.threshold is not None
    config = Transcoder(n_latents, weights.k, jump=jump, weighted=not ranked_alike, skip=weights.W_skip is not None)
    atoms = unit_atoms(weights.W_dec)
    dictionary = TranscoderDictionary(config, torch.zeros(n_latents, d_in), atoms)
    dictionary.places = (Place(d_in), Place(d_out))
    b_in = torch.zeros(d_in) if weights.b_in is None else weights.b_in
    tensors = {**_encoder(weights), "b_dec": weights.b_dec, "b_in": b_in}
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
        # The skip here sees `x - b_in`.
        tensors["b_dec"] = weights.b_dec.double() + b_in.double() @ weights.W_skip.double()
    if jump:
        tensors["log_threshold"] = log_threshold(_value_threshold(weights))
    if not ranked_alike:
        tensors["selection"] = 1 / weights.norms
    _fill(dictionary, **tensors)
    return dictionary


@torch.no_grad()
def _fill(dictionary: AbstractDictionary, **tensors: Tensor) -> None:
    parameters: dict[str, Any] = dict(dictionary.named_parameters())
    assert set(parameters) == {"atoms", *tensors}
    for name, tensor in tensors.items():
        parameters[name].data = tensor.to(torch.float32).contiguous()


def integer(value: Any, name: str, where: Path) -> int:
    """A whole number out of a configuration.

    Raises:
        FormatError: it is none.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FormatError(f"{where}: key {name!r} must be a whole number, got {value!r:.60}")
    return value
