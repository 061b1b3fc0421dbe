"""Gemma Scope: `params.npz` for Gemma 2, `params.safetensors` with `config.json` for Gemma 3 (docs/formats.md).

Written against the files of 2024 (version 1) and December 2025 (version 2). What version 1 is of stands in the names of
its folders only: `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`.
"""

import re
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    JumpReLUDictionary,
    ReLUDictionary,
    TranscoderDictionary,
)
from sparsight.dictionaries.export import relu_to_jumprelu
from sparsight.errors import FormatError
from sparsight.formats.restoring import as_jumprelu
from sparsight.formats.safe_reading import Tensors, read_json, read_npz, read_safetensors
from sparsight.formats.sites import put_at
from sparsight.formats.weights import Weights, dictionary_of
from sparsight.formats.writing import save_npz, save_safetensors, write_file, write_pair
from sparsight.models import Site

NPZ, SAFETENSORS, CONFIG_FILE = "params.npz", "params.safetensors", "config.json"
# Both were trained on contexts of this length that begin with BOS.
POLICY = {"prepend_bos": True, "context_size": 1024}

KINDS_1 = {"res": "resid_post", "mlp": "mlp_out", "att": "attn_z"}
KINDS_2 = {"resid_post": "resid_post", "attn_out": "attn_z", "mlp_out": "mlp_out"}
HOOKS_2 = {
    "resid_post": "model.layers.{}.output",
    "attn_z": "model.layers.{}.self_attn.o_proj.input",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
    "mlp_in": "model.layers.{}.pre_feedforward_layernorm.output",
}


@dataclass(frozen=True)
class Named:
    """What the names of the folders say.

    Attributes:
        model: On the hub.
        sites: Of the input and of the output; None where it is no site of ours, or not said.
        transcoder: Whether they say that it is one.
        embedding: Whether they say that it codes embeddings.
        width: Number of latents, in thousands (`16k`) or millions (`1m`).
        l0: Mean number of active latents, or what stands for it (`small`).
    """

    model: str | None = None
    sites: tuple[Site | None, Site | None] = (None, None)
    transcoder: bool = False
    embedding: bool = False
    width: str | None = None
    l0: str | None = None


def can_read_npz(path: Path) -> bool:
    """Whether a folder holds `params.npz`, or a file is called so."""
    return (path / NPZ).is_file() if path.is_dir() else path.is_file() and path.name == NPZ


def can_read_safetensors(path: Path) -> bool:
    """Whether a folder holds `params.safetensors`."""
    return (path / SAFETENSORS).is_file()


def read_1(path: Path) -> AbstractDictionary:
    """Read an autoencoder or a transcoder of Gemma 2.

    Values are those of Gemma Scope times the norm of the decoder's row. Dictionaries of embeddings were trained without
    the factor `sqrt(d)` that the model puts on them; it is folded in, as the site `embed` has it.

    Transcoders read the norm before the MLP without its weights: that is no site of ours, so their input has none.

    Raises:
        FormatError: a file is damaged, or holds something that cannot be carried over.
    """
    where = path / NPZ if path.is_dir() else path
    named = _named_1(where.parent)
    found = read_npz(where)
    tensors = Tensors({re.sub("^w_", "W_", name): tensor for name, tensor in found.items()}, where)
    if "scaling_factor" in tensors:
        factor = tensors.take("scaling_factor", None)
        if bool((factor != 1).any()):
            raise FormatError(f"{where}: scaling_factor is not 1 everywhere; what it multiplies is not documented")
    weights = _weights(tensors, named.transcoder)
    if named.embedding:
        weights = weights.of_scaled_input(weights.W_enc.shape[0] ** -0.5)
    return _dictionary(weights, tensors, named, {})


def read_2(path: Path) -> AbstractDictionary:
    """Read an autoencoder or a transcoder of Gemma 3, with or without an affine skip.

    Raises:
        FormatError: a file is damaged, or holds something that cannot be carried over.
    """
    where = path / CONFIG_FILE
    config = read_json(where) if where.is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FormatError(f"{where}: key 'architecture' is {config['architecture']!r:.40}, known is 'jump_relu'")
    named = _named_2(path, config)
    found = read_safetensors(path / SAFETENSORS)
    tensors = Tensors({re.sub("^w_", "W_", name): tensor for name, tensor in found.items()}, path / SAFETENSORS)
    affine = config.get("affine_connection")
    if affine is True and "affine_skip_connection" not in tensors:
        raise FormatError(f"{where}: key 'affine_connection' is true, but there is no tensor 'affine_skip_connection'")
    return _dictionary(_weights(tensors, named.transcoder), tensors, named, config)


def _weights(tensors: Tensors, transcoder: bool) -> Weights:
    b_dec = tensors.take("b_dec", None)
    W_dec = tensors.take("W_dec", None, len(b_dec))
    W_enc = tensors.take("W_enc", None if transcoder else len(b_dec), len(W_dec))
    n = len(W_dec)
    skip = "affine_skip_connection" in tensors
    return Weights(
        W_enc=W_enc,
        b_enc=tensors.take("b_enc", n),
        W_dec=W_dec,
        b_dec=b_dec,
        threshold=tensors.take("threshold", n),
        W_skip=tensors.take("affine_skip_connection", len(W_enc), len(b_dec)) if skip else None,
        transcoder=transcoder or skip,
    )


def _dictionary(weights: Weights, tensors: Tensors, named: Named, config: dict[str, Any]) -> AbstractDictionary:
    _check_width(len(weights.W_dec), named.width, tensors.path)
    dictionary = dictionary_of(weights, tensors.path)
    tensors.refuse_rest("a dictionary of Gemma Scope")
    put_at(dictionary, named.model, named.sites)
    imported = {"format": "gemma_scope", "config": config}
    dictionary.provenance = {"imported_from": imported, **POLICY}
    if named.l0 is not None:
        imported["average_l0"] = named.l0
    if named.transcoder and named.sites[0] is None and named.sites[1] is not None:
        dictionary.provenance["hook_name"] = f"blocks.{named.sites[1].layer}.ln2.hook_normalized"
    return dictionary


def _check_width(n: int, label: str | None, where: Path) -> None:
    """Refuse a file in a folder of another width: `16k` is 16,384, `1m` is 1,048,576."""
    if label is not None and n != int(label[:-1]) * {"k": 2**10, "m": 2**20}[label[-1]] and n != _rounded(label):
        raise FormatError(f"{where}: {n} latents in a folder of width {label}; the file is not what its folder says")


def _rounded(label: str) -> int | None:
    """Widths that are powers of two and whose label counts thousands: `65k` is 65,536."""
    return {"65k": 2**16, "131k": 2**17, "262k": 2**18, "524k": 2**19}.get(label)


def _named_1(folder: Path) -> Named:
    text = folder.resolve().as_posix()
    repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)(?:/|$)", text)
    layer = re.search(r"/layer_(\d+)(?:/|$)", text)
    width, l0 = re.search(r"/width_(\d+[km])(?:/|$)", text), re.search(r"/average_l0_([^/]+)(?:/|$)", text)
    named = Named(
        embedding=re.search(r"/embedding(?:/|$)", text) is not None,
        width=width and width[1],
        l0=l0 and l0[1],
    )
    if repo is None:
        return named
    named = replace(named, model=f"google/gemma-2-{repo[1]}{'-it' if repo[2] == 'it' else ''}")
    transcoder = repo[3] == "transcoders"
    if named.embedding:
        return replace(named, sites=(Site(None, "embed"), Site(None, "embed")))
    if layer is None:
        return replace(named, transcoder=transcoder)
    if transcoder:
        return replace(named, transcoder=True, sites=(None, Site(int(layer[1]), "mlp_out")))
    site = Site(int(layer[1]), KINDS_1[repo[3]])
    return replace(named, sites=(site, site))


def _named_2(folder: Path, config: dict[str, Any]) -> Named:
    """What `config.json` says, and the folders' names where it is missing or says nothing."""
    text = folder.resolve().as_posix()
    repo = re.search(r"gemma-scope-2-(\d+[mb])-(pt|it)(?:/|$)", text)
    part = re.search(
        r"/(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d+)_width_(\d+[km])_l0_(\w+?)(?:_affine)?(?:_seed_\d+)?$",
        text,
    )
    model = config.get("model_name")
    if not isinstance(model, str):
        model = f"google/gemma-3-{repo[1]}-{repo[2]}" if repo is not None else None
    sites = tuple(_site_2(config.get(key)) for key in ("hf_hook_point_in", "hf_hook_point_out"))
    transcoder = "hf_hook_point_out" in config and config["hf_hook_point_out"] not in (
        None,
        config.get("hf_hook_point_in"),
    )
    named = Named(_hub_name(model), (sites[0], sites[1] or sites[0]), transcoder)
    if part is None:
        return named
    named = replace(named, width=part[3], l0=part[4], transcoder=transcoder or part[1] == "transcoder")
    if named.sites[0] is not None:
        return named
    layer = int(part[2])
    if part[1] == "transcoder":
        return replace(named, sites=(Site(layer, "mlp_in"), Site(layer, "mlp_out")))
    return replace(named, sites=(Site(layer, KINDS_2[part[1]]), Site(layer, KINDS_2[part[1]])))


def _hub_name(model: str | None) -> str | None:
    """`gemma-v3-1b-pt` as `google/gemma-3-1b-pt`; the smallest has no suffix on the hub."""
    if model is None or not model.removeprefix("google/").startswith("gemma-"):
        return model
    model = f"google/{model.removeprefix('google/')}".replace("-v3", "-3")
    return model.replace("-pt", "") if "270m" in model else model


def _site_2(hook: Any) -> Site | None:
    for kind, pattern in HOOKS_2.items():
        found = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), hook if isinstance(hook, str) else "")
        if found is not None:
            return Site(int(found[1]), kind)
    return None


def write_1(dictionary: AbstractDictionary, path: Path) -> None:
    """Write `params.npz`: JumpReLU, and what is exactly that. Site and model are what the folder's name says.

    Raises:
        FormatError: it is no JumpReLU, or has a skip, or the folder's name says other than it is, or the folder cannot
            be written.
    """
    named = _named_1(path)
    if named.transcoder != isinstance(dictionary, TranscoderDictionary) or named.embedding:
        raise FormatError(
            f"{path}: a params.npz is a transcoder, or of embeddings, by the names of its folders alone, and these say "
            f"other than this {dictionary.config.architecture} is; rename them (gemma-scope-2b-pt-transcoders/layer_5)"
        )
    with torch.no_grad():
        tensors = _parts(as_jumprelu(dictionary))
    if "affine_skip_connection" in tensors:
        raise FormatError("transcoder with a skip: params.npz has none; write it as gemma_scope_2")
    write_file(path, NPZ, {re.sub("^w_", "W_", name): tensor for name, tensor in tensors.items()}, save_npz)


def write_2(dictionary: AbstractDictionary, path: Path) -> None:
    """Write `params.safetensors` and `config.json`: JumpReLU, and what is exactly that, and transcoders with a skip.

    Raises:
        FormatError: it is no JumpReLU, or the folder cannot be written.
    """
    with torch.no_grad():
        tensors = _parts(as_jumprelu(dictionary))
    config: dict[str, Any] = {"architecture": "jump_relu"}
    if dictionary.model is not None:
        config["model_name"] = dictionary.model
    hooks = [_hook_2(place.site) for place in dictionary.places] or [_hook_2(dictionary.site)]
    config["hf_hook_point_in"] = hooks[0]
    if isinstance(dictionary, TranscoderDictionary):
        if hooks[1] is None or hooks[0] == hooks[1]:
            raise FormatError("transcoder whose output's site has no name in Gemma Scope (it knows MLP outputs)")
        config["hf_hook_point_out"] = hooks[1]
        config["affine_connection"] = dictionary.W_skip is not None
    write_pair(path, SAFETENSORS, tensors, CONFIG_FILE, config, save_safetensors)


def _hook_2(site: Site | None) -> str | None:
    if site is None or site.kind not in HOOKS_2:
        return None
    return HOOKS_2[site.kind].format(site.layer)


@singledispatch
def _parts(dictionary: AbstractDictionary) -> dict[str, Tensor]:
    """The tensors, under the names of version 2."""
    raise FormatError(
        f"Gemma Scope has nothing that codes like {dictionary.config.architecture}: its dictionaries are JumpReLU"
    )


@_parts.register
def _(dictionary: JumpReLUDictionary) -> dict[str, Tensor]:
    """Nothing is subtracted from the input there, so the offset goes into the encoder's."""
    return {
        "w_enc": dictionary.W_enc,
        "b_enc": dictionary.b_enc - dictionary.b_dec @ dictionary.W_enc,
        "w_dec": dictionary.atoms,
        "b_dec": dictionary.b_dec,
        "threshold": dictionary.threshold,
    }


@_parts.register
def _(dictionary: ReLUDictionary) -> dict[str, Tensor]:
    return _parts(relu_to_jumprelu(dictionary))


@_parts.register
def _(dictionary: TranscoderDictionary) -> dict[str, Tensor]:
    if dictionary.config.k is not None:
        raise FormatError(f"transcoder with k={dictionary.config.k}: Gemma Scope has thresholds only")
    zeros = torch.zeros_like(dictionary.b_enc)
    tensors = {
        "w_enc": dictionary.W_enc,
        "b_enc": dictionary.b_enc - dictionary.b_in @ dictionary.W_enc,
        "w_dec": dictionary.atoms,
        "b_dec": dictionary.b_dec,
        "threshold": dictionary.log_threshold.exp() if dictionary.config.jump else zeros,
    }
    if dictionary.W_skip is not None:
        tensors["affine_skip_connection"] = dictionary.W_skip
        tensors["b_dec"] = dictionary.b_dec - dictionary.b_in @ dictionary.W_skip
    return tensors
