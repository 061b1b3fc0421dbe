"""Our sites under the names that other projects give to the same places."""

import re

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
