"""Named places in a model."""

from dataclasses import dataclass

KINDS = ("embed", "resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "resid_post")
"""In the order in which a forward pass computes them."""


@dataclass(frozen=True)
class Site:
    """A place in a model where activations are read and written, such as `2.resid_post`.

    Sites sort in the order of a forward pass.

    Attributes:
        layer: Number of the block, from 0; None for `embed`.
        kind: One of `KINDS`.
    """

    layer: int | None
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a kind of site among {', '.join(KINDS)}, got {self.kind!r}")
        if (self.layer is None) != (self.kind == "embed"):
            raise ValueError(
                f"expected LAYER.KIND such as 2.resid_post, or embed (which has no layer), got {self.layer}.{self.kind}"
            )
        if self.layer is not None and self.layer < 0:
            raise ValueError(f"layers are numbered from 0, got {self.layer}")

    @staticmethod
    def parse(text: "str | Site") -> "Site":
        """The site that is written `LAYER.KIND`, or `embed`; a `Site` comes back as it is.

        Raises:
            ValueError: the text does not name a kind of site.
        """
        if isinstance(text, Site):
            return text
        layer, dot, kind = text.partition(".")
        if not dot:
            layer, kind = "", text
        if (dot and not (layer.isascii() and layer.isdecimal())) or kind not in KINDS or (not dot) != (kind == "embed"):
            raise ValueError(
                f"expected a site written as LAYER.KIND (such as 2.resid_post) or embed, got {text!r}; "
                f"kinds: {', '.join(KINDS)}"
            )
        return Site(int(layer) if dot else None, kind)

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.layer}.{self.kind}"

    def __lt__(self, other: "Site") -> bool:
        return self._depth < other._depth

    def __le__(self, other: "Site") -> bool:
        return self._depth <= other._depth

    def __gt__(self, other: "Site") -> bool:
        return self._depth > other._depth

    def __ge__(self, other: "Site") -> bool:
        return self._depth >= other._depth

    @property
    def _depth(self) -> tuple[int, int]:
        return (-1 if self.layer is None else self.layer, KINDS.index(self.kind))


def describe_sites(sites: list[Site]) -> str:
    """A list of sites on one line: `embed; layers 0-5 × attn_out, resid_post`."""
    kinds_at: dict[int, list[str]] = {}
    for site in sorted(sites):
        if site.layer is not None:
            kinds_at.setdefault(site.layer, []).append(site.kind)
    groups: list[tuple[int, int, list[str]]] = []
    for layer, kinds in kinds_at.items():
        if groups and groups[-1][1] == layer - 1 and groups[-1][2] == kinds:
            groups[-1] = (groups[-1][0], layer, kinds)
        else:
            groups.append((layer, layer, kinds))
    parts = [site.kind for site in sites if site.layer is None]
    for first, last, kinds in groups:
        layers = f"layer {first}" if first == last else f"layers {first}-{last}"
        parts.append(f"{layers} × {', '.join(kinds)}")
    return "; ".join(parts)
