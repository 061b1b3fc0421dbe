"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors` (docs/formats.md has the table of keys).

Written against versions 3 to 6.54 of that library, whose current reader accepts what is written here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    MatchingPursuitDictionary,
    PursuitDictionary,
)
from sparsight.errors import FormatError
from sparsight.formats import saelens_writing
from sparsight.formats.restoring import restored
from sparsight.formats.safe_reading import Tensors, read_json, read_safetensors
from sparsight.formats.sites import hub_name, put_at, site_of_hook
from sparsight.formats.weights import Weights, dictionary_of, integer, pursuit_of

WEIGHTS_FILE, CONFIG_FILE = "sae_weights.safetensors", "cfg.json"
# Beside checkpoints only: what activations were multiplied by before they came in.
SCALER_FILE, WHITENING_FILE = "activation_scaler.json", "activation_whitening.safetensors"

TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
# Named in files of training checkpoints; the finished dictionary is written as a jumprelu.
BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", *BATCH_TOPK, "matching_pursuit", *TRANSCODERS)
WHY_NOT = {
    "abstopk": "its values have either sign, and values here are never negative",
    "temporal": "it codes a token from earlier ones, and a dictionary here codes each by itself",
}
# What the policies of a model's text are called in `provenance`, after the names there.
POLICIES = ("prepend_bos", "context_size", "exclude_special_tokens", "seqpos_slice", "hook_name", "hook_name_out")

write = saelens_writing.write


def can_read(path: Path) -> bool:
    """Whether a folder holds `sae_weights.safetensors` and `cfg.json`."""
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def read(path: Path) -> AbstractDictionary:
    """Read a dictionary of SAELens, finished or a checkpoint; a normalisation of the input by one number is folded in.

    Values are those of SAELens times the norm of the decoder's row.

    Raises:
        FormatError: a file is damaged, or holds something that cannot be carried over; the key or tensor is named.
    """
    where = path / CONFIG_FILE
    written = read_json(where)
    cfg = _current(written, where)
    architecture = _architecture(cfg, where)
    tensors = Tensors(read_safetensors(path / WEIGHTS_FILE), path / WEIGHTS_FILE)
    if architecture == "matching_pursuit":
        dictionary: AbstractDictionary = _pursuit(cfg, tensors, where)
    else:
        weights = _normalised(_weights(architecture, cfg, tensors, where), cfg, path)
        dictionary = restored(dictionary_of(weights, where), cfg["metadata"])
    tensors.refuse_rest(architecture)
    _locate(dictionary, cfg["metadata"])
    dictionary.provenance = {
        "imported_from": {"format": "saelens", "config": written},
        **{name: cfg["metadata"][name] for name in POLICIES if cfg["metadata"].get(name) is not None},
    }
    return dictionary.requires_grad_(False)


def _current(cfg: dict[str, Any], where: Path) -> dict[str, Any]:
    """A configuration of any version under the keys of version 6, the model's part of it under `metadata`."""
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise FormatError(f"{where}: key 'metadata' must be an object, got {metadata!r:.60}")
    version = str(cfg.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    major = version.split(".")[0]
    if not major.isdecimal():
        raise FormatError(f"{where}: key 'sae_lens_version' must be a version, got {version!r:.40}")
    if int(major) >= 6:
        return {**cfg, "metadata": metadata, "normalize_activations": cfg.get("normalize_activations") or "none"}
    return _from_before_6(cfg, where)


def _from_before_6(cfg: dict[str, Any], where: Path) -> dict[str, Any]:
    """Flat configurations: keys were renamed, defaults changed, and a flag said what `normalize_activations` says."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    found = {renamed.get(key, key): value for key, value in cfg.items()}
    activation = found.get("activation_fn", found.get("activation_fn_str", "relu"))
    if activation not in ("relu", "topk"):
        raise FormatError(f"{where}: key 'activation_fn' must be 'relu' or 'topk', got {activation!r:.60}")
    found.setdefault("architecture", "standard")
    if activation == "topk":
        options = found.get("activation_fn_kwargs") or {}
        found["architecture"] = "topk"
        found["k"] = options.get("k") if isinstance(options, dict) else None
    found.setdefault("prepend_bos", True)
    found.setdefault("apply_b_dec_to_input", True)
    flag = found.get("normalize_activations")
    if flag is None or isinstance(flag, bool):
        found["normalize_activations"] = "expected_average_only_in" if flag else "none"
    return {**found, "metadata": found}


def _architecture(cfg: dict[str, Any], where: Path) -> str:
    name = cfg.get("architecture")
    if name not in ARCHITECTURES:
        reason = WHY_NOT.get(str(name), f"known are {', '.join(ARCHITECTURES)}")
        raise FormatError(f"{where}: key 'architecture' is {name!r:.40}: {reason}")
    return str(name)


def _width(cfg: dict[str, Any], key: str, where: Path) -> int:
    if cfg.get(key) is None:
        raise FormatError(f"{where}: key {key!r} is missing")
    return integer(cfg[key], key, where)


def _weights(architecture: str, cfg: dict[str, Any], tensors: Tensors, where: Path) -> Weights:
    """Take out of the tensors what the architecture has."""
    d_in, n = _width(cfg, "d_in", where), _width(cfg, "d_sae", where)
    transcoder = architecture in TRANSCODERS
    d_out = _width(cfg, "d_out", where) if transcoder else d_in
    gated = architecture == "gated"
    b_dec = tensors.take("b_dec", d_out)
    by_norm = architecture in ("topk", *BATCH_TOPK) and bool(cfg.get("rescale_acts_by_decoder_norm", False))
    return Weights(
        W_enc=tensors.take("W_enc", d_in, n),
        b_enc=tensors.take("b_gate" if gated else "b_enc", n),
        W_dec=_tuned(tensors.take("W_dec", n, d_out), cfg, tensors, where),
        b_dec=b_dec,
        b_in=b_dec if cfg.get("apply_b_dec_to_input", True) and not transcoder else None,
        k=_width(cfg, "k", where) if architecture == "topk" else None,
        threshold=_threshold(architecture, n, tensors),
        by_norm=by_norm,
        r_mag=tensors.take("r_mag", n) if gated else None,
        b_mag=tensors.take("b_mag", n) if gated else None,
        W_skip=tensors.take("W_skip", d_out, d_in).T if "skip" in architecture else None,
        transcoder=transcoder,
    )


def _threshold(architecture: str, n: int, tensors: Tensors) -> Tensor | None:
    if architecture in BATCH_TOPK:
        if "threshold" in tensors:
            return tensors.take("threshold", n)
        return torch.full((n,), tensors.number("topk_threshold"), dtype=torch.float64)
    if not architecture.startswith("jumprelu"):
        return None
    # Checkpoints held the logarithm for a time.
    if "log_threshold" in tensors and "threshold" not in tensors:
        return tensors.take("log_threshold", n).double().exp()
    return tensors.take("threshold", n)


def _tuned(W_dec: Tensor, cfg: dict[str, Any], tensors: Tensors, where: Path) -> Tensor:
    """Rows of the decoder, times the factors by which some older files multiply the code."""
    if "scaling_factor" not in tensors:
        return W_dec
    factor = tensors.take("scaling_factor", len(W_dec))
    if bool((factor - 1).abs().max() <= 1e-5):  # for a time it was written without having been fitted
        return W_dec
    if not cfg.get("finetuning_scaling_factor"):
        raise FormatError(
            f"{where}: key 'finetuning_scaling_factor' is false, but the tensor 'scaling_factor' is not 1 everywhere; "
            "which of the two holds cannot be known"
        )
    if bool((factor < 0).any()):
        raise FormatError(f"{tensors.path}: scaling_factor has negative entries, and values here are never negative")
    return W_dec * factor[:, None]


def _normalised(weights: Weights, cfg: dict[str, Any], path: Path) -> Weights:
    """The weights for raw activations."""
    mode, where = cfg["normalize_activations"], path / CONFIG_FILE
    if mode == "none":
        return weights
    if mode not in ("expected_average_only_in", "covariance_whitening"):
        raise FormatError(
            f"{where}: key 'normalize_activations' is {mode!r:.40}: it changes with each token, so it cannot be folded "
            "into the weights; subtract and divide the activations beforehand and set the key to 'none'"
        )
    if weights.transcoder:
        raise FormatError(f"{where}: key 'normalize_activations' is {mode!r} for a transcoder; only 'none' is known")
    scaler = read_json(path / SCALER_FILE) if (path / SCALER_FILE).is_file() else {}
    scale = scaler.get("scaling_factor")
    if mode == "covariance_whitening":
        if scale is not None:
            raise FormatError(f"{path / SCALER_FILE}: key 'scaling_factor' is not null beside a whitening")
        return _unwhitened(weights, path)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise FormatError(
            f"{where}: key 'normalize_activations' is {mode!r}, but the factor is not part of the file, and there is "
            f"no {SCALER_FILE} with a positive 'scaling_factor' beside it; write one: sqrt(d_in) / mean |x|"
        )
    return weights.of_scaled_input(float(scale))


def _unwhitened(weights: Weights, path: Path) -> Weights:
    if not (path / WHITENING_FILE).is_file():
        raise FormatError(
            f"{path / CONFIG_FILE}: key 'normalize_activations' is 'covariance_whitening', but there is no "
            f"{WHITENING_FILE} beside it"
        )
    d = weights.W_enc.shape[0]
    tensors = Tensors(read_safetensors(path / WHITENING_FILE), path / WHITENING_FILE)
    mean, matrix = tensors.take("mean", d), tensors.take("matrix", d, d)
    return weights.of_affine_input(mean, matrix, tensors.take("inverse_matrix", d, d))


def _pursuit(cfg: dict[str, Any], tensors: Tensors, where: Path) -> PursuitDictionary | MatchingPursuitDictionary:
    """Matching pursuit: ours where it runs a fixed number of steps over rows of norm 1, else with its own rules."""
    if (mode := cfg["normalize_activations"]) != "none":
        raise FormatError(
            f"{where}: key 'normalize_activations' is {mode!r:.40}; for matching_pursuit only 'none' is known"
        )
    d_in, n = _width(cfg, "d_in", where), _width(cfg, "d_sae", where)
    k = d_in if cfg.get("max_iterations") is None else _width(cfg, "max_iterations", where)
    if k < 1:
        raise FormatError(f"{where}: key 'max_iterations' must be at least 1, got {k}")
    limit = cfg.get("residual_threshold", 1e-2)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < float("inf"):
        raise FormatError(f"{where}: key 'residual_threshold' must be 0 or a positive number, got {limit!r:.40}")
    stops = bool(cfg.get("stop_on_duplicate_support", True))
    W_dec, b_dec = tensors.take("W_dec", n, d_in), tensors.take("b_dec", d_in)
    if not cfg.get("apply_b_dec_to_input", True):  # then it is not added at the end either
        b_dec = torch.zeros_like(b_dec)
    return pursuit_of(W_dec, b_dec, k, stops, float(limit))


def _locate(dictionary: AbstractDictionary, metadata: dict[str, Any]) -> None:
    """Site and model, where they have a name here. One head of several has none."""
    model = metadata.get("model_name")
    sites = [
        None
        if metadata.get(head) is not None or not isinstance(metadata.get(hook), str)
        else site_of_hook(metadata[hook])
        for hook, head in (("hook_name", "hook_head_index"), ("hook_name_out", "hook_head_index_out"))
    ]
    put_at(dictionary, hub_name(model) if isinstance(model, str) else None, sites)
