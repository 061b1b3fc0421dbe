"""Our sites under the names that other projects give to the same places."""

import re
from collections.abc import Sequence
from dataclasses import replace

from sparsight.dictionaries import AbstractDictionary, TranscoderDictionary
from sparsight.models import Site

# Name of a hook of TransformerLens after `blocks.LAYER.`, for each kind of site. Its `ln2.hook_normalized` is not here:
# that is the norm's output before its weights are applied, and no site of ours.
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
EMBED_HOOK = "hook_embed"

# Where TransformerLens has another name for a model than the Hugging Face hub. That it leaves out an organisation does
# not matter: models are compared by the last part of their names.
HUB_NAMES = {"gpt2-small": "gpt2"}


def put_at(dictionary: AbstractDictionary, model: str | None, sites: Sequence[Site | None]) -> None:
    """Say of which model and where a dictionary is.

    Args:
        sites: Of what it reads and of what it writes; the latter counts for transcoders only.
    """
    dictionary.model, dictionary.site = model, sites[0]
    if isinstance(dictionary, TranscoderDictionary):
        places = zip(dictionary.places, sites, strict=True)
        dictionary.places = tuple(replace(place, site=site, model=model) for place, site in places)


def site_of_hook(hook: str | None) -> Site | None:
    """The site of a hook of TransformerLens, such as `blocks.5.hook_resid_post`; None where we have no such site."""
    if hook == EMBED_HOOK:
        return Site(None, "embed")
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook or "")
    if found is None:
        return None
    for kind, name in HOOKS.items():
        if found[2] == name:
            return Site(int(found[1]), kind)
    return None


def hook_of_site(site: Site | None) -> str | None:
    """The hook of TransformerLens that is a site; None where there is none, as for `mlp_in`."""
    if site is None:
        return None
    if site.layer is None:
        return EMBED_HOOK
    return f"blocks.{site.layer}.{HOOKS[site.kind]}" if site.kind in HOOKS else None


def site_of_submodule(name: str | None, layer: int | None, io: str | None) -> Site | None:
    """The site of what dictionary_learning calls a submodule, such as `resid_post_layer_5` or `mlp_out_layer_5`.

    These names are free text; whatever is not plainly one of our sites stays unnamed.

    Args:
        layer: The configuration's number, which must not disagree with the name.
        io: `"in"` or `"out"` where the configuration says which side of the module was read; `"in"` names no site.
    """
    found = re.fullmatch(r"(resid_pre|resid_post|resid|mlp_out|attn_out|attention_out)_layer_?(\d+)", name or "")
    if found is None or io == "in" or (layer is not None and layer != int(found[2])):
        return None
    kind = {"resid": "resid_post", "attention_out": "attn_out"}.get(found[1], found[1])
    return Site(int(found[2]), kind)


def submodule_of_site(site: Site | None) -> str | None:
    """What `site_of_submodule` reads back."""
    return None if site is None or site.layer is None else f"{site.kind}_layer_{site.layer}"


def hub_name(model: str | None) -> str | None:
    """The name of a model on the Hugging Face hub, where TransformerLens has another; other names as they are."""
    return None if model is None else HUB_NAMES.get(model, model)


# The part of a module's name behind its number, for those whose input and output are sites on families whose blocks
# add what their parts give: (site of the input, site of the output).
MODULES = {
    "": ("resid_pre", "resid_post"),
    "mlp": ("mlp_in", "mlp_out"),
    "attn": (None, "attn_out"),
    "self_attn": (None, "attn_out"),
    "attention": (None, "attn_out"),
}
# Their blocks put norms behind their parts, and the parts' outputs are no sites.
NORMS_BEHIND = re.compile(r"gemma-?[23]|bert", re.IGNORECASE)


def sites_of_module(name: str | None, model: str | None) -> tuple[Site | None, Site | None]:
    """The sites of the input and of the output of a module of transformers, such as `layers.5.mlp` or `h.3`.

    Args:
        name: Below the model's own prefix.
        model: On Gemma 2 and 3 and on BERT the output of a part is no site of ours.
    """
    if name in ("embed_tokens", "wte", "embed_in"):
        scaled = model is None or "gemma" in model.lower()
        return None, None if scaled else Site(None, "embed")
    found = re.fullmatch(r"(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h|blocks)\.(\d+)(?:\.(\w+))?", name or "")
    part = (found[2] or "") if found is not None else None
    if found is None or part not in MODULES:
        return None, None
    source, target = MODULES[part]
    behind = part != "" and model is not None and NORMS_BEHIND.search(model) is not None
    return (
        None if source is None else Site(int(found[1]), source),
        None if target is None or behind else Site(int(found[1]), target),
    )


def module_of_sites(source: Site | None, target: Site | None) -> str | None:
    """What `sites_of_module` reads back: a module with this output, and this input unless both are the same."""
    if target is None or target.layer is None:
        return "embed_tokens" if target is not None and source == target else None
    for part, (kind_in, kind_out) in MODULES.items():
        if target.kind == kind_out and source in (target, Site(target.layer, kind_in) if kind_in else target):
            return f"layers.{target.layer}{'.' if part else ''}{part}"
    return None
