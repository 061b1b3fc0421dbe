"""Which sites of a model a suite covers."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from sparsight.errors import ModelError
from sparsight.models import Site
from sparsight.models.site import KINDS, describe_sites

DEFAULT_KINDS = ("attn_z", "mlp_out", "resid_post")
"""What `all` stands for: the kinds that Gemma Scope covers (Lieberum et al., 2024), in the order of a forward pass."""


@runtime_checkable
class HasSites(Protocol):
    """What must be known of a model to choose its sites."""

    @property
    def name(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    def sites(self) -> list[Site]: ...


def choose_sites(lm: HasSites, wanted: str | Site | Iterable[str | Site]) -> list[Site]:
    """The sites that are meant, in the order of a forward pass, each once.

    Args:
        lm: The model.
        wanted: One or several of: a `Site`; `2.resid_post`; `embed`; `LAYERS.KINDS` with `all`, a number, a range such
            as `0-3`, or several of these joined by commas as LAYERS, and kinds joined by commas as KINDS; `all`, which
            is every layer's `attn_z`, `mlp_out` and `resid_post`.
    Raises:
        ValueError: a text does not read as sites.
        ModelError: the model has no such site; its sites are listed.
    """
    items = [wanted] if isinstance(wanted, str | Site) else list(wanted)
    chosen = {site for item in items for site in _sites_of(item, lm.n_layers)}
    if not chosen:
        raise ValueError("sites must name at least one, got none; 'all' takes three kinds of every layer")
    known = lm.sites()
    if missing := sorted(chosen - set(known)):
        raise ModelError(
            f"{lm.name} has no site {', '.join(map(str, missing))}; it has {describe_sites(known)}; choose among these"
        )
    return sorted(chosen)


def _sites_of(item: str | Site, n_layers: int) -> list[Site]:
    if isinstance(item, Site):
        return [item]
    if item == "all":
        return [Site(layer, kind) for layer in range(n_layers) for kind in DEFAULT_KINDS]
    layers, dot, kinds = item.partition(".")
    if not dot:
        return [Site.parse(item)]
    if unknown := [kind for kind in kinds.split(",") if kind not in KINDS or kind == "embed"]:
        raise ValueError(f"expected kinds among {', '.join(KINDS[1:])} in {item!r}, got {', '.join(unknown)!r}")
    return [Site(layer, kind) for layer in _layers_of(layers, n_layers, item) for kind in kinds.split(",")]


def _layers_of(text: str, n_layers: int, item: str) -> list[int]:
    if text == "all":
        return list(range(n_layers))
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise ValueError(
                f"expected LAYERS.KINDS such as all.resid_post, 2.mlp_out or 0-3.attn_z,mlp_out, got {item!r}"
            )
        layers += range(int(ends[0]), int(ends[1]) + 1)
    return layers
