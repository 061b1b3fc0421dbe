"""`sparsight train`: stored activations in, a dictionary out."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsight.cli import options

if TYPE_CHECKING:
    from torch import Tensor

    from sparsight.activations import ActivationStore
    from sparsight.dictionaries import DictionaryConfig
    from sparsight.training import Run, Training


def train(
    activations: Annotated[
        list[Path],
        typer.Option("--activations", help="Folder written by `sparsight harvest`. Repeat for a crosscoder of models."),
    ],
    out: options.Out,
    latents: Annotated[
        int | None, typer.Option("--latents", help="Width of the dictionary. Needed unless --from is given.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            help="'topk', 'batchtopk', 'matryoshka', 'jumprelu', 'pursuit', 'relu' or 'gated'; of several sites "
            "'transcoder' or 'crosscoder'. Default: topk, or the preset's.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Another project's definition and schedule: 'anthropic-april-2024', 'gemma-scope', 'openai-topk', "
            "'saelens', 'dictionary-learning' or 'sparsify'.",
        ),
    ] = None,
    coefficient: Annotated[
        float | None,
        typer.Option("--coefficient", help="Of the preset's penalty, in that project's units. Default: the project's."),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            help="Latents active in a token: exactly (topk), at most (pursuit, transcoder, crosscoder), or on average "
            "(all others).",
        ),
    ] = None,
    l1: Annotated[
        float | None,
        typer.Option(
            "--l1", help="Weight of the penalty (relu, gated, crosscoder), in place of --k; 0.03 to 0.3 are usual."
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option("--widths", help="Inner prefixes (matryoshka), e.g. 64,256. Default: the width halved 4 times."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            help="Which site, when the store holds several. Twice for a transcoder (input, output), repeatedly "
            "or such as all.resid_post for a crosscoder.",
        ),
    ] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Transcoder: also learn an affine map past the code.")] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Activations to train on, repeats counted. Default: four times the store's."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Activations in one step. Default: 2048, or the preset's.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate of Adam. Default: the architecture's.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option("--ema", help="Save an average of the weights over the steps, e.g. 0.999.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="'float32' or 'bf16'. Default: float32.")] = None,
    revive: Annotated[
        str | None,
        typer.Option(
            "--revive",
            help="How dead latents come back: through an auxiliary loss ('aux', the default), or by a new start where "
            "the reconstruction is worst ('resample').",
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Go on from the dictionary in this folder, its architecture kept.")
    ] = None,
    check_memory: Annotated[
        bool, typer.Option("--check-memory/--no-check-memory", help="Refuse a run that needs more memory than is free.")
    ] = True,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a dictionary on the training documents of a store.

    Example: sparsight train --activations runs/store --architecture topk --latents 1024 --k 16 --out runs/dictionaries
    """
    from sparsight import training
    from sparsight.activations import ActivationStore

    stores = [ActivationStore(folder) for folder in activations]
    for store in stores:
        store.verify()
    sites = site[0] if site is not None and len(site) == 1 else site
    chosen: dict[str, Any] = {"lr": lr, "batch_size": batch_size, "ema": ema, "precision": precision, "revive": revive}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    chosen |= {"seed": seed, "n_tokens": tokens if tokens is not None else 4 * len(stores[0])}
    config: DictionaryConfig | training.FineTune
    if start is not None:
        if any(option is not None for option in (latents, architecture, preset, coefficient, k, l1, widths)) or skip:
            raise ValueError("--from keeps width, architecture and sparsity; leave out the options that choose them")
        config, settings = training.FineTune(start), training.Training(**chosen)
    elif latents is None:
        raise ValueError("say how wide the dictionary is with --latents, or what to go on from with --from")
    else:
        given = _Given(architecture, latents, k, l1, widths, skip, preset, coefficient)
        config, settings = given.config_for(stores, sites), given.training(chosen)
    [run] = training.train(
        stores[0] if len(stores) == 1 else stores,
        [config],
        settings,
        out=out,
        site=sites,
        resume=resume,
        device=device,
        progress=not quiet,
        check_memory=check_memory,
    )
    _say(run, as_json)


def _say(run: "Run", as_json: bool) -> None:
    """How the run ended, on stdout."""
    last = run.metrics[-1]
    if as_json:
        typer.echo(json.dumps({"folder": str(run.folder), **last}, indent=2))
    else:
        typer.echo(
            f"{run.folder}: FVU {last['fvu']:.4f}, L0 {last['l0']:.1f}, dead {last['dead']:.1%} "
            f"in the last batch of {last['tokens']:,} training tokens"
        )


def _architectures() -> "dict[str, Callable[[_Given], DictionaryConfig]]":
    """How each architecture is configured from the options; a new one joins by one entry."""
    from sparsight.dictionaries import (
        BatchTopK,
        Crosscoder,
        Gated,
        JumpReLU,
        Matryoshka,
        Pursuit,
        ReLU,
        TopK,
        Transcoder,
    )

    return {
        "topk": lambda given: TopK(given.latents, given.needed_k()),
        "batchtopk": lambda given: BatchTopK(given.latents, given.needed_k()),
        "matryoshka": lambda given: Matryoshka(given.latents, given.needed_k(), given.prefixes()),
        "jumprelu": lambda given: JumpReLU(given.latents, target_l0=float(given.needed_k())),
        "pursuit": lambda given: Pursuit(given.latents, given.needed_k()),
        "relu": lambda given: ReLU(given.latents, given.l1, target_l0=given.target()),
        "gated": lambda given: Gated(given.latents, given.l1, target_l0=given.target()),
        "transcoder": lambda given: Transcoder(given.latents, given.needed_k(), skip=given.skip),
        "crosscoder": lambda given: Crosscoder(given.latents, given.k, l1=given.l1),
    }


@dataclass(frozen=True)
class _Given:
    """The options that say what is trained, as they were typed."""

    architecture: str | None
    latents: int
    k: int | None
    l1: float | None
    widths: str | None
    skip: bool = False
    preset: str | None = None
    coefficient: float | None = None

    def training(self, chosen: dict[str, Any]) -> "Training":
        """How to train: what was chosen, over the preset's schedule if there is one."""
        from sparsight.training import Training, presets

        if self.preset is None:
            return Training(**chosen)
        return presets.preset(self.preset).training(n_latents=self.latents, **chosen)

    def config_for(self, stores: "list[ActivationStore]", site: str | list[str] | None) -> "DictionaryConfig":
        """What to train: by our own options, or a preset's definition with its coefficient converted."""
        if self.preset is None:
            if self.coefficient is not None:
                raise ValueError(
                    "--coefficient is in the units of a preset: give --preset too, or --l1 in our own units"
                )
            return self.config()
        from sparsight.training.presets import preset

        chosen = preset(self.preset)
        kind = chosen.definition(self.architecture).config.architecture
        if self.l1 is not None:
            raise ValueError("--l1 is in our own units; with --preset give --coefficient in the project's, or --k")
        rows = _rows_of_one_site(stores, site)
        fields: dict[str, Any] = {}
        if self.k is not None:
            fields = {"k": self.k} if "topk" in kind or kind == "matryoshka" else {"target_l0": float(self.k)}
        if kind == "matryoshka":
            fields["widths"] = self.prefixes()
        return chosen.config(
            self.latents,
            rows.shape[1],
            architecture=self.architecture,
            coefficient=self.coefficient,
            norm_ratio=chosen.norm_ratio(rows),
            **fields,
        )

    def config(self) -> "DictionaryConfig":
        """By our own options."""
        known, name = _architectures(), self.named
        if name not in known:
            *names, last = (f"'{one}'" for one in known)
            raise ValueError(f"--architecture must be {', '.join(names)} or {last}, got {name!r}")
        if self.widths is not None and name != "matryoshka":
            raise ValueError(f"--widths is a setting of matryoshka, got --architecture {name}")
        if self.skip and name != "transcoder":
            raise ValueError(f"--skip is a setting of a transcoder, got --architecture {name}")
        return known[name](self)

    @property
    def named(self) -> str:
        """The architecture, if no preset decides."""
        return self.architecture or "topk"

    def needed_k(self) -> int:
        """`--k`, where there is no other way to set the sparsity."""
        if self.l1 is not None:
            raise ValueError(
                f"--l1 is a setting of relu, gated and crosscoder, got --architecture {self.named}; give --k"
            )
        if self.k is None:
            raise ValueError(
                f"--architecture {self.named} needs --k, the latents active in a token; 16 to 64 are usual"
            )
        return self.k

    def target(self) -> float | None:
        """`--k` as an L0 to reach, if the penalty has no given weight."""
        if (self.k is None) == (self.l1 is None):
            raise ValueError(
                f"--architecture {self.named} needs either --k, the mean number of active latents to reach, "
                "or --l1, the weight of the penalty"
            )
        return None if self.k is None else float(self.k)

    def prefixes(self) -> tuple[int, ...]:
        """`--widths`, or the whole width halved up to four times."""
        if self.widths is None:
            return tuple(self.latents >> halvings for halvings in (4, 3, 2, 1) if self.latents >> halvings)
        try:
            return tuple(int(width) for width in self.widths.split(","))
        except ValueError:
            raise ValueError(
                f"--widths must be numbers with commas between, e.g. 64,256, got {self.widths!r}"
            ) from None


def _rows_of_one_site(stores: "list[ActivationStore]", site: str | list[str] | None) -> "Tensor":
    """Training activations, by which a preset's coefficient is converted."""
    from sparsight.models.site_choice import sites_meant

    held = stores[0].sites
    meant = held if site is None else sites_meant(site, held)
    if len(stores) > 1 or (site is not None and len(meant) != 1):
        raise ValueError("a preset is of one site of one store; name one with --site")
    if len(meant) != 1:
        raise ValueError(f"the store holds {', '.join(map(str, held))}; choose one with --site")
    part = stores[0].split("train")
    return part.rows(meant[0], slice(0, min(len(part), 65_536)))
