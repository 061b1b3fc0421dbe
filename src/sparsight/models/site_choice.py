"""Short texts that mean one site or many: `2.resid_post`, `0-3.attn_z,mlp_out`, `all.resid_post`, `embed`, `all`."""

from collections.abc import Iterable, Sequence
from re import fullmatch
from typing import Protocol, runtime_checkable

from sparsight.errors import ModelError
from sparsight.models.site import KINDS, Site, describe_sites

USUAL_KINDS = ("attn_z", "mlp_out", "resid_post")
"""What `all` stands for: the kinds that Gemma Scope covers (Lieberum et al., 2024), in the order of a forward pass."""


@runtime_checkable
class HasSites(Protocol):
    """What must be known of a model to choose its sites."""

    @property
    def name(self) -> str: ...
    def sites(self) -> list[Site]: ...


def choose_sites(lm: HasSites, wanted: str | Site | Iterable[str | Site]) -> list[Site]:
    """The sites of a model that are meant, in the order of a forward pass, each once.

    Args:
        lm: The model.
        wanted: See `sites_meant`.
    Raises:
        ValueError: a text does not read as sites, or there is none.
        ModelError: the model has no such site; its sites are listed.
    """
    known = lm.sites()
    chosen = set(sites_meant(wanted, known))
    if not chosen:
        raise ValueError("sites must name at least one, got none; 'all' takes three kinds of every layer")
    if missing := sorted(chosen - set(known)):
        raise ModelError(
            f"{lm.name} has no site {', '.join(map(str, missing))}; it has {describe_sites(known)}; choose among these"
        )
    return sorted(chosen)


def sites_meant(wanted: str | Site | Iterable[str | Site], known: Sequence[Site]) -> list[Site]:
    """The sites that are meant where `known` are those there are, in the order in which they are named.

    A site comes as often as it is named, and whether or not it is known.

    Args:
        wanted: One or several of: a `Site`; `2.resid_post`; `embed`; `LAYERS.KINDS` with a number, a range such as
            `0-3`, several of these joined by commas, or `all` as LAYERS, and kinds joined by commas as KINDS; `all`,
            which is `all.attn_z,mlp_out,resid_post`. `all` layers of a kind are those that have it, or every layer if
            none has.
        known: Of a model, or of a store of activations.
    Raises:
        ValueError: a text does not read as sites.
    """
    items = [wanted] if isinstance(wanted, str | Site) else list(wanted)
    return [site for item in items for site in ([item] if isinstance(item, Site) else _read(item, known))]


def names_one_site(wanted: object) -> bool:
    """Whether it is a site or the text of one, in contrast to several and to texts that may mean several."""
    return isinstance(wanted, Site) or (isinstance(wanted, str) and bool(fullmatch(r"embed|[0-9]+\.\w+", wanted)))


def _read(text: str, known: Sequence[Site]) -> list[Site]:
    if text == "embed":
        return [Site(None, text)]
    layers, dot, kinds = f"all.{','.join(USUAL_KINDS)}".partition(".") if text == "all" else text.partition(".")
    named = kinds.split(",")
    if not dot or not set(named) <= set(KINDS) - {"embed"}:
        raise _unreadable(text)
    if layers == "all":
        return sorted(Site(layer, kind) for kind in named for layer in _layers_with(kind, known))
    return [Site(layer, kind) for layer in _layers_of(layers, text, known) for kind in named]


def _layers_with(kind: str, known: Sequence[Site]) -> list[int]:
    """The layers that have the kind, or every layer if none has."""
    with_it = [site.layer for site in known if site.kind == kind and site.layer is not None]
    return with_it or sorted({site.layer for site in known if site.layer is not None})


def _layers_of(layers: str, text: str, known: Sequence[Site]) -> list[int]:
    """Layers by number; of a range that goes too far, those there are and one more."""
    beyond = 1 + max((site.layer for site in known if site.layer is not None), default=-1)
    found: list[int] = []
    for part in layers.split(","):
        ends = fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if ends is None:
            raise _unreadable(text)
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if first > last:
            raise _unreadable(text)
        found += range(first, max(first, min(last, beyond)) + 1)
    return found


def _unreadable(text: str) -> ValueError:
    return ValueError(
        f"expected sites such as 2.resid_post, 0-3.attn_z,mlp_out, all.resid_post, embed or all, got {text!r}; "
        f"kinds: {', '.join(KINDS[1:])}"
    )
