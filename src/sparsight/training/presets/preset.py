"""What a preset is: another project's definition, its units, and the way from them to ours."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.training.presets.losses import Batch, Number
from sparsight.training.settings import Training

NORMALISATIONS = {
    "mean norm sqrt(d)": "activations divided by one number so that their mean norm is sqrt(d)",
    "mean square 1": "activations divided by one number so that their mean squared norm is 1",
    "none": "activations as they are; the loss does not depend on their scale",
}
# Power of the units in which a coefficient is measured against the squared error: `theirs = ours * unit ** power`.
_POWERS = {"l1": 1, "l0": 2, "target": 2, "relative": 2, "free": 0}


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One architecture of a preset.

    Attributes:
        loss: Its value on a batch, written from the definition.
        formula: The same in words, for the table of the docs.
        coefficient: Its usual coefficient, in its own units; None where the source sweeps it.
        kind: What the coefficient weighs: "l1" a sum of values, "l0" a number of latents, "target" the distance to a
            target, "relative" a term without units, "free" one whose weight does not change with units.
        setting: Field of our configuration that takes the converted coefficient; None where none means the same.
        fixed: Further fields of our configuration.
        scaled: Fields that are lengths in the definition's units, such as a bandwidth.
        defects: Known defects of the source that a reader of its numbers should know.
    """

    loss: Callable[[Batch], Tensor]
    formula: str
    coefficient: Number | None
    kind: str
    setting: str | None
    config: type[DictionaryConfig]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    scaled: Mapping[str, Number] = field(default_factory=dict)
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of a source's training; steps are of its own batch size.

    Attributes:
        batch_size: Activations in a step.
        lr: Peak rate; of a width of 2^14 where `lr_by_width`.
        lr_by_width: Whether the rate falls with the square root of the width.
        warmup_steps, sparsity_steps: Steps in which the rate, and the penalty, rise.
        sparsity_share: The latter as a share of the run, where the source gives it so.
        decay: Share of the run in which the rate falls to 0; None: from the warm-up's end to the last step.
    """

    batch_size: int
    lr: Number
    lr_by_width: bool = False
    warmup_steps: int = 0
    sparsity_steps: int = 0
    sparsity_share: Number | None = None
    decay: Number | None = 0.0
    betas: tuple[Number, Number] = (0.9, 0.999)
    clip: Number | None = 1.0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The definition of one project: its input units, its losses by architecture, its schedule.

    Attributes:
        name: As given to `--preset`.
        source: Paper or repository.
        normalisation: A key of `NORMALISATIONS`.
        definitions: By architecture; the first is the default.
        schedule: Of the training.
    """

    name: str
    source: str
    normalisation: str
    definitions: Mapping[str, Definition]
    schedule: Schedule

    def definition(self, architecture: str | None = None) -> Definition:
        """The definition of an architecture, by default the preset's first.

        Raises:
            ValueError: the project does not define this architecture.
        """
        name = next(iter(self.definitions)) if architecture is None else architecture
        if name not in self.definitions:
            raise ValueError(f"{self.name} defines {', '.join(self.definitions)}, not {name!r}; choose one of them")
        return self.definitions[name]

    def scale(self, x: Float[Tensor, "n d"]) -> float:
        """What brings raw activations to the units of the definition, fitted on these: `x * scale`."""
        norms = x.double().norm(dim=1)
        if self.normalisation == "none":
            return 1.0
        if float(norms.max()) == 0:
            raise ValueError(f"the {len(x)} activations are all zero, so {self.name} has no scale for them")
        if self.normalisation == "mean norm sqrt(d)":
            return math.sqrt(x.shape[1]) / float(norms.mean())
        return 1 / math.sqrt(float(norms.square().mean()))

    def loss(
        self,
        dictionary: AbstractDictionary,
        x: Float[Tensor, "b d"],
        *,
        coefficient: Number | None = None,
        dead: Bool[Tensor, " m"] | None = None,
        scale: Number = 1.0,
    ) -> Float[Tensor, ""]:
        """The loss of the definition on these weights and this batch.

        Args:
            dictionary: In the units of `x`, as `train` returns it for raw activations.
            x: Activations.
            coefficient: Of the penalty (of the auxiliary loss where there is no penalty), in the definition's units.
                Default: the source's.
            dead: Latents that count as dead. Default: none.
            scale: From the units of `x` to those of the definition: `preset.scale(sample)`.
        Raises:
            ValueError: the architecture is not defined here, or the source gives no default for the coefficient.
        """
        definition = self.definition(dictionary.config.architecture)
        return definition.loss(Batch.of(dictionary, x, dead, scale, self._given(definition, coefficient)))

    def unit(self, d_in: int, norm_ratio: Number = 1.0) -> float:
        """Units of the definition per unit of ours (zero mean, unit total variance).

        Args:
            d_in: Width of the activations.
            norm_ratio: The norm that the definition scales by (the mean norm, or the root of the mean square) over the
                root of the total variance. 1 for centred activations of equal norms; above 1 where the mean, which
                these definitions keep in, is large.
        """
        if self.normalisation == "none":
            return 1.0
        return (math.sqrt(d_in) if self.normalisation == "mean norm sqrt(d)" else 1.0) / norm_ratio

    def norm_ratio(self, x: Float[Tensor, "n d"]) -> float:
        """The `norm_ratio` of these raw activations."""
        if self.normalisation == "none":
            return 1.0
        rows = x.double()
        spread = math.sqrt(float((rows - rows.mean(dim=0)).square().sum(dim=1).mean()))
        if spread == 0:
            raise ValueError(f"the {len(x)} activations are all equal, so they have no variance to compare with")
        norm = math.sqrt(x.shape[1]) if self.normalisation == "mean norm sqrt(d)" else 1.0
        return norm / self.scale(x) / spread

    def coefficient(
        self, theirs: Number, d_in: int, norm_ratio: Number = 1.0, *, architecture: str | None = None
    ) -> float:
        """Their coefficient in our units: with it, our loss is theirs divided by `unit(d_in, norm_ratio) ** 2`."""
        power = _POWERS[self.definition(architecture).kind]
        return float(theirs / self.unit(d_in, norm_ratio) ** power)

    def config(
        self,
        n_latents: int,
        d_in: int,
        *,
        architecture: str | None = None,
        coefficient: Number | None = None,
        norm_ratio: Number = 1.0,
        **fields: Any,
    ) -> DictionaryConfig:
        """Our configuration of this definition.

        Args:
            n_latents: Width.
            d_in: Width of the activations.
            architecture: One of `definitions`. Default: the first.
            coefficient: In the definition's units. Default: the source's.
            norm_ratio: See `unit`.
            **fields: Of our configuration, over those of the preset: `k=32`; `target_l0=50.0` replaces a coefficient.
        """
        definition = self.definition(architecture)
        unit = self.unit(d_in, norm_ratio)
        chosen = {**definition.fixed, **{name: value / unit for name, value in definition.scaled.items()}}
        if (
            "k_aux" in chosen and chosen["k_aux"] is None
        ):  # in these definitions half of the width, however few are dead
            chosen["k_aux"] = max(1, d_in // 2)
        if definition.setting is not None and fields.get("target_l0") is None:
            theirs = self._given(definition, coefficient)
            chosen[definition.setting] = self.coefficient(theirs, d_in, norm_ratio, architecture=architecture)
        return definition.config(n_latents, **{**chosen, **fields})

    def training(self, n_tokens: int, n_latents: int, **settings: Any) -> Training:
        """The source's schedule on a run of `n_tokens`; counts of steps become shares of the run, at most all of it.

        Args:
            n_tokens: Activations to train on.
            n_latents: Width, on which some rates depend.
            **settings: Of `Training`, over those of the preset.
        """
        s = self.schedule
        n_steps = -(-n_tokens // settings.get("batch_size", s.batch_size))
        warmup = min(1.0, s.warmup_steps / n_steps)
        sparsity = min(1.0, s.sparsity_steps / n_steps) if s.sparsity_share is None else s.sparsity_share
        chosen = {
            "batch_size": s.batch_size,
            "lr": s.lr / math.sqrt(n_latents / 2**14) if s.lr_by_width else s.lr,
            "warmup": warmup,
            "decay": 1.0 - warmup if s.decay is None else s.decay,
            "sparsity_warmup": sparsity,
            "betas": s.betas,
            "clip": s.clip,
        }
        return Training(n_tokens=n_tokens, **{**chosen, **settings})

    def _given(self, definition: Definition, coefficient: Number | None) -> Number:
        given = definition.coefficient if coefficient is None else coefficient
        if given is None:
            raise ValueError(f"{self.name} has no usual coefficient; give coefficient=, in its units, or target_l0=")
        return given
