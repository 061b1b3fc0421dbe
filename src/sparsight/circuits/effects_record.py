"""What `latent_effects` returns."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.circuits.metric import Passes
from sparsight.models import Site

Regime = Literal["smooth path", "gated path"]


@dataclass(frozen=True)
class SiteEffects:
    """Effects of the nodes of one site on the metric of each sequence.

    Attributes:
        kind: What the nodes are.
        n_latents: How many there are.
        indices: Node of each slot.
        values: Its effect, in units of the metric; 0 in unused slots.
        change: By how much its value was changed.
        errors: Effect of the error of each token.
        silent: With mean ablation: effect of all latents silent at the token, moved to their means together; else 0.
        total: Metric with all nodes of the site changed less metric with none; with joint effects those of all sites.
        joint: Whether the nodes of all sites were changed together.
        n_flips: Gate flips found on the path of each sequence.
    """

    kind: str
    n_latents: int
    indices: Int64[Tensor, "b t k"]
    values: Float[Tensor, "b t k"]
    change: Float[Tensor, "b t k"]
    errors: Float[Tensor, "b t"]
    silent: Float[Tensor, "b t"]
    total: Float[Tensor, " b"]
    n_flips: Int64[Tensor, " b"]
    joint: bool = False

    @property
    def latents(self) -> Tensor:
        """Effects `[b, t, n_latents]` as a sparse tensor; `.to_dense()` for small widths."""
        slots = (self.values != 0).nonzero()
        rows, tokens, places = slots.unbind(dim=1)
        where = torch.stack([rows, tokens, self.indices[rows, tokens, places]])
        shape = (*self.indices.shape[:2], self.n_latents)
        return torch.sparse_coo_tensor(
            where, self.values[rows, tokens, places], shape, check_invariants=True
        ).coalesce()

    @property
    def summed(self) -> Float64[Tensor, " b"]:
        """Sum of all effects of the site."""
        return self.values.double().sum(dim=(1, 2)) + self.errors.double().sum(dim=1) + self.silent.double().sum(dim=1)

    @property
    def completeness(self) -> Float64[Tensor, " b"]:
        """Sum of all effects less the total: 0 where the effects account for all that happened.

        Raises:
            ValueError: the total is that of all sites together.
        """
        if self.joint:
            raise ValueError("the sites were changed together: their effects add up together (effects.completeness)")
        return self.summed - self.total.double()

    def by_latent(self) -> Float[Tensor, " n_latents"]:
        """Effect of each latent: summed over tokens, averaged over sequences."""
        summed = torch.zeros(self.n_latents, dtype=torch.float64, device=self.values.device)
        summed.index_add_(0, self.indices.flatten(), self.values.double().flatten())
        return (summed / len(self.indices)).to(self.values.dtype)

    def error_share(self) -> float:
        """Sum of the magnitudes of error effects over that of all effects; 0 where there are no effects."""
        errors, others = float(self.errors.abs().sum()), float(self.values.abs().sum() + self.silent.abs().sum())
        return errors / (errors + others) if errors + others > 0 else 0.0


@dataclass(frozen=True)
class Effects(Mapping[Site, SiteEffects]):
    """Effects at every site: `effects[site]`. With one site its fields are here as well.

    Attributes:
        sites: By site, in the order of a forward pass.
        method: `exact`, `attribution` or `integrated_gradients`, with its rule and steps.
        regime: `smooth path`: nothing that codes stands between the nodes and the metric, which is as smooth a function
            of them as the model is. `gated path`: dictionaries stand there, and gates flip.
        passes: Sequences that went through the model.
    """

    sites: dict[Site, SiteEffects]
    method: str
    regime: Regime
    passes: Passes

    def __getitem__(self, site: Site) -> SiteEffects:
        return self.sites[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def latents(self) -> Tensor:
        """Effects of the latents `[b, t, n_latents]`, sparse."""
        return self._only().latents

    @property
    def errors(self) -> Float[Tensor, "b t"]:
        return self._only().errors

    @property
    def joint(self) -> bool:
        return next(iter(self.sites.values())).joint

    @property
    def total(self) -> Float[Tensor, " b"]:
        return next(iter(self.sites.values())).total if self.joint else self._only().total

    @property
    def completeness(self) -> Float64[Tensor, " b"]:
        """Sum of all effects less the total; over all sites together where they were changed together."""
        if not self.joint:
            return self._only().completeness
        return torch.stack([at.summed for at in self.sites.values()]).sum(dim=0) - self.total.double()

    def largest_residual(self, site: Site) -> float:
        """Largest magnitude of the residual of completeness at a site, over sequences."""
        return float((self.completeness if self.joint else self.sites[site].completeness).abs().max())

    def _only(self) -> SiteEffects:
        if len(self.sites) != 1:
            raise ValueError(f"there are effects at {len(self.sites)} sites; take those of one: effects[site]")
        return next(iter(self.sites.values()))

    def save(self, folder: str | Path) -> None:
        """Write `effects.json`, the summary, and `effects.safetensors`, the effects of every node of every site."""
        from safetensors.torch import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        names = ("indices", "values", "change", "errors", "silent", "total", "n_flips")
        tensors = {f"{s}/{name}": getattr(at, name).contiguous() for s, at in self.sites.items() for name in names}
        save_file(tensors, path / "effects.safetensors")
        (path / "effects.json").write_text(self.to_json() + "\n", encoding="utf-8")

    def top(self, n: int = 10) -> list[tuple[Site, int, float]]:
        """The `n` latents of largest mean effect, by magnitude: site, latent, effect."""
        found = []
        for site, at in self.sites.items():
            means = at.by_latent()
            for latent in means.abs().topk(min(n, len(means))).indices.tolist():
                found.append((site, latent, float(means[latent])))
        return sorted(found, key=lambda each: -abs(each[2]))[:n]

    def to_record(self, n: int = 10) -> dict[str, Any]:
        """Summary for a JSON file."""
        return {
            "method": self.method,
            "regime": self.regime,
            "passes": {"forward": self.passes.forward, "backward": self.passes.backward},
            "sites": [
                {
                    "site": str(site),
                    "nodes": at.kind,
                    "n_nodes": int((at.change != 0).sum()),
                    "total": float(at.total.double().mean()),
                    "largest_residual": self.largest_residual(site),
                    "error_share": at.error_share(),
                    "flips": int(at.n_flips.sum()),
                }
                for site, at in self.sites.items()
            ],
            "top": [
                {"site": str(site), "latent": latent, "effect": effect}
                for site, latent, effect in self.top(n)
                if effect
            ],
        }

    def to_json(self, n: int = 10) -> str:
        """One JSON object: the summary and the `n` largest."""
        return json.dumps(self.to_record(n), indent=2)

    def to_table(self, n: int = 10) -> str:
        """Tables in Markdown: every site, and the `n` largest latents."""
        record = self.to_record(n)
        passes = record["passes"]
        lines = [
            f"{self.method}, {self.regime}; {passes['forward']} forward and {passes['backward']} backward passes",
            "",
            "| site | nodes | changed | total | largest residual | share of errors | flips |",
            "|---" * 7 + "|",
        ]
        for at in record["sites"]:
            lines.append(
                f"| {at['site']} | {at['nodes']}s | {at['n_nodes']} | {at['total']:.4g} "
                f"| {at['largest_residual']:.2g} | {at['error_share']:.2f} | {at['flips']} |"
            )
        lines += ["", "| site | latent | mean effect |", "|---" * 3 + "|"]
        lines += [f"| {each['site']} | {each['latent']} | {each['effect']:.4g} |" for each in record["top"]]
        return "\n".join(lines)
