"""What a suite will hold and cost, settled before anything is computed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any

from sparsight.dictionaries import DictionaryConfig
from sparsight.formats.architectures import ARCHITECTURES
from sparsight.models import LanguageModel, Site, choose_sites
from sparsight.training import Training

Number = float | int
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class MemberPlan:
    """One dictionary of a suite.

    Attributes:
        site: Where its activations are read.
        n_latents: Width.
        target_l0: Active latents per token that are asked for.
        config: Its configuration.
        folder: Where it will be, relative to the suite, with forward slashes.
    """

    site: Site
    n_latents: int
    target_l0: Number
    config: DictionaryConfig
    folder: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a suite will take here, in seconds, from a trial of each kind of work."""

    harvest: float
    training: float
    evaluation: float

    @property
    def total(self) -> float:
        return self.harvest + self.training + self.evaluation


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """Everything that decides a suite.

    Attributes:
        settings: What is written to `plan.json` and must not change on resume.
        passes: Sites read together in each pass over the model.
        members: In the order of the index: by site, width and sparsity.
        training: Settings of every member.
        activation_bytes: Stored activations, the most there are at once.
        dictionary_bytes: Parameters of all members, as written.
        training_bytes: Parameters, gradients and Adam's averages of the members of one site, in memory.
    """

    settings: dict[str, Any]
    passes: list[list[Site]]
    members: list[MemberPlan]
    training: Training
    activation_bytes: int
    dictionary_bytes: int
    training_bytes: int

    def at(self, site: Site) -> list[MemberPlan]:
        """The members of one site: trained together, on the same batches."""
        return [member for member in self.members if member.site == site]

    def __str__(self) -> str:
        s = self.settings
        n_sites, passes = len(s["sites"]), len(self.passes)
        return (
            f"{len(self.members)} {s['architecture']} dictionaries of {s['model']}: {n_sites} sites × widths "
            f"{_list(s['widths'])} × L0 {_list(s['l0s'])}; {s['n_tokens']:,} activations per site in "
            f"{passes} pass{'es' if passes > 1 else ''} over the model, each trained on {self.training.n_tokens:,}; "
            f"{_size(self.activation_bytes)} of activations, {_size(self.dictionary_bytes)} of dictionaries, "
            f"{_size(self.training_bytes)} of memory to train one site"
        )


def plan_suite(
    lm: LanguageModel,
    sites: str | Site | Iterable[str | Site],
    widths: Sequence[int],
    l0s: Sequence[Number],
    architecture: str = "topk",
    *,
    n_tokens: int,
    training: Training | None = None,
    config: Mapping[str, Any] | None = None,
    context: int | None = None,
    dtype: str = "float16",
    heldout: Number = 0.1,
    loss_tokens: int = 16_384,
    disk: int | None = None,
    seed: int = 0,
) -> SuitePlan:
    """Settle what a suite consists of; nothing is read or written. The arguments are those of `suite`.

    Raises:
        ValueError: an argument is out of range, or the architecture is unknown.
        ModelError: the model has no such site.
    """
    chosen = choose_sites(lm, sites)
    if n_tokens < 1:
        raise ValueError(f"n_tokens must be at least 1, got {n_tokens}")
    if dtype not in _BYTES:
        raise ValueError(f"dtype must be one of {', '.join(_BYTES)}, got {dtype!r}")
    if not 0 < heldout < 1:
        raise ValueError(f"heldout must lie between 0 and 1: members are measured on held-out documents, got {heldout}")
    if loss_tokens < 0:
        raise ValueError(f"loss_tokens must be 0 (no loss is measured) or more, got {loss_tokens}")
    shared = training or Training(n_tokens=4 * n_tokens, checkpoint_every=200, seed=seed)
    configs = _configs(architecture, widths, l0s, dict(config or {}))
    # The folders that `train` will choose: widths and sparsities differ, and both are part of a run's name.
    names = [c.run_name for _, _, c in configs]
    assert len(set(names)) == len(names)
    members = [
        MemberPlan(site=site, n_latents=w, target_l0=l0, config=c, folder=str(PurePosixPath("sites", str(site), name)))
        for site in chosen
        for (w, l0, c), name in zip(configs, names, strict=True)
    ]
    bytes_at = {site: lm.width(site) * n_tokens * _BYTES[dtype] for site in chosen}
    passes = _passes(chosen, bytes_at, disk)
    size = {site: sum(_parameter_bytes(c, lm.width(site)) for _, _, c in configs) for site in chosen}
    settings = {
        "model": lm.name,
        "sites": [str(site) for site in chosen],
        "widths": sorted(widths),
        "l0s": sorted(l0s),
        "architecture": architecture,
        "config": dict(config or {}),
        "n_tokens": n_tokens,
        "context": context or min(128, lm.max_context),
        "dtype": dtype,
        "heldout": float(heldout),
        "loss_tokens": loss_tokens,
        "disk": disk,
        "seed": seed,
        "training": asdict(shared),
    }
    return SuitePlan(
        settings=settings,
        passes=passes,
        members=members,
        training=shared,
        activation_bytes=max(sum(bytes_at[site] for site in part) for part in passes),
        dictionary_bytes=sum(size.values()),
        training_bytes=4 * max(size.values()),
    )


def _configs(
    architecture: str, widths: Sequence[int], l0s: Sequence[Number], more: dict[str, Any]
) -> list[tuple[int, Number, DictionaryConfig]]:
    """Width, sparsity and configuration of every member of one site, by width and then sparsity."""
    for name, values in (("widths", widths), ("l0s", l0s)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more numbers, each once, got {list(values)}")
        if bad := [value for value in values if not 0 < value < float("inf")]:
            raise ValueError(f"{name} must be positive, got {bad[0]}")
    if max(l0s) > min(widths):
        raise ValueError(
            f"an L0 cannot exceed the width, got l0={max(l0s)} with width={min(widths)}; lower it or choose wider"
        )
    return [(w, l0, config_for(architecture, w, l0, more)) for w in sorted(widths) for l0 in sorted(l0s)]


def config_for(architecture: str, n_latents: int, target_l0: Number, more: Mapping[str, Any]) -> DictionaryConfig:
    """The configuration of an architecture that asks for so many active latents.

    Raises:
        ValueError: there is no such architecture, it has no such field, or it takes whole numbers only.
    """
    kind: Any = ARCHITECTURES.get(architecture)
    if kind is None:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    known = {field.name for field in fields(kind) if field.init}
    if unknown := sorted(set(more) - known):
        raise ValueError(f"{architecture} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    if "k" in known:
        if target_l0 != int(target_l0):
            raise ValueError(f"{architecture} takes a whole number of latents per token, got {target_l0}")
        return kind(n_latents, k=int(target_l0), **more)  # type: ignore[no-any-return]
    if "target_l0" not in known:
        raise ValueError(f"{architecture} cannot be asked for an L0; choose another architecture")
    return kind(n_latents, target_l0=float(target_l0), **more)  # type: ignore[no-any-return]


def _passes(sites: list[Site], bytes_at: dict[Site, int], disk: int | None) -> list[list[Site]]:
    """Sites in as few groups as possible, in their order, none of more than `disk` bytes."""
    if disk is None:
        return [sites]
    if max(bytes_at.values()) > disk:
        raise ValueError(
            f"disk must hold the activations of one site, {max(bytes_at.values()):,} bytes, got {disk:,}; "
            "raise it or lower n_tokens"
        )
    groups: list[list[Site]] = [[]]
    for site in sites:
        if sum(bytes_at[other] for other in groups[-1]) + bytes_at[site] > disk:
            groups.append([])
        groups[-1].append(site)
    return groups


def _parameter_bytes(config: DictionaryConfig, d_in: int) -> int:
    """Bytes of a dictionary's parameters, without making them."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() * p.element_size() for p in config.build(d_in).parameters())


def _list(values: list[Number]) -> str:
    return ", ".join(f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in values)


def _size(n_bytes: int) -> str:
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
