"""What every dictionary is: unit atoms, an offset, and a rule that codes activations with them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.codes import SparseCode
from sparsight.models import Site

# mypy takes an int where a float is asked for; the run-time checks of the tests do not.
Number = float | int


@dataclass(frozen=True)
class Normalization:
    """How raw activations were shifted and scaled for training: `(x - mean) * scale`.

    Fitted so that `E|x - mean|^2 = 1` after scaling: a squared error summed over dimensions and averaged over tokens
    is then the fraction of variance unexplained, whatever the units of the site.

    Attributes:
        mean: Mean activation, in raw units.
        scale: `1 / sqrt(E|x - mean|^2)`, in one over raw units.
    """

    mean: Float[Tensor, " d_in"]
    scale: float

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not bool(torch.isfinite(self.mean).all()):
            raise ValueError("the mean of a normalization must be finite, got NaN or infinity")

    def apply(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """Raw activations in the units of training."""
        return (x - self.mean.to(x)) * self.scale

    def inverse(self) -> "Normalization":
        """What leads back from the units of training to raw ones."""
        return Normalization(-self.mean * self.scale, 1 / self.scale)

    def like(self, tensor: Tensor) -> "Normalization":
        """The same with the mean on the device and in the type of a tensor."""
        return Normalization(self.mean.to(tensor), self.scale)


@dataclass(frozen=True)
class JointNormalization:
    """Several sites side by side in one row, each shifted and scaled on its own to unit total variance.

    Attributes:
        parts: One normalisation for each site, in the order of the row.
    """

    parts: tuple[Normalization, ...]

    @property
    def mean(self) -> Float[Tensor, " d_total"]:
        """The means of all sites, one after the other."""
        return torch.cat([part.mean for part in self.parts])

    @property
    def scale(self) -> tuple[float, ...]:
        """The scale of each site."""
        return tuple(part.scale for part in self.parts)

    def apply(self, x: Float[Tensor, "n d_total"]) -> Float[Tensor, "n d_total"]:
        """Raw activations in the units of training."""
        widths = [len(part.mean) for part in self.parts]
        blocks = torch.split(x, widths, dim=1)
        return torch.cat([part.apply(block) for part, block in zip(self.parts, blocks, strict=True)], dim=1)

    def inverse(self) -> "JointNormalization":
        """What leads back from the units of training to raw ones."""
        return JointNormalization(tuple(part.inverse() for part in self.parts))

    def like(self, tensor: Tensor) -> "JointNormalization":
        """The same with the means on the device and in the type of a tensor."""
        return JointNormalization(tuple(part.like(tensor) for part in self.parts))


AnyNormalization = Normalization | JointNormalization


def normalization_of(
    mean: Float[Tensor, " d_total"], scale: float | Sequence[float], widths: Sequence[int]
) -> AnyNormalization:
    """The normalisation whose `mean` and `scale` these are: of one site for a number, of several for a sequence."""
    if isinstance(scale, float | int):
        return Normalization(mean, scale)
    means = torch.split(mean, list(widths))
    return JointNormalization(tuple(Normalization(m.clone(), s) for m, s in zip(means, scale, strict=True)))


@dataclass(frozen=True)
class Place:
    """One of the sites of a dictionary of several, in the order of the rows it was trained on.

    Attributes:
        width: Length of the activations there.
        site: Where, if known.
        model: Name of the model, if known.
    """

    width: int
    site: Site | None = None
    model: str | None = None

    def __str__(self) -> str:
        where = "a site" if self.site is None else str(self.site)
        return where if self.model is None else f"{where} of {self.model}"


@dataclass(frozen=True)
class DictionaryConfig(ABC):
    """What must be known to build a dictionary of one architecture, but for the width of its activations.

    Configurations may refuse (`ValueError`) and do nothing else. `architecture` is the name used in files, `n_sites`
    the least and the most sites whose activations it is trained on.
    """

    n_latents: int

    architecture: ClassVar[str]
    n_sites: ClassVar[tuple[int, int | None]] = (1, 1)

    @property
    def trainable(self) -> bool:
        """Whether training knows what to minimise. Not so for some that only hold what others published."""
        return True

    @property
    @abstractmethod
    def run_name(self) -> str:
        """Folder name of a run of this configuration, e.g. `topk-1024-k16`."""

    @abstractmethod
    def build(self, d_in: int, generator: torch.Generator | None = None) -> "AbstractDictionary":
        """A fresh dictionary for activations of unit total variance and zero mean, drawn with `generator`."""


class AbstractDictionary(nn.Module, ABC):
    """Unit-norm atoms and a rule that codes activations with them.

    Subclasses are final: they implement the abstract methods, override no concrete one but the hooks `reconstruct`,
    `absorb_`, `schedule_` and `calibrate_` (and a transcoder `d_in`), and nobody inherits from them.
    A dictionary that came from `train` or `load_dictionary` takes raw activations; its values carry their units.

    Attributes:
        atoms: `[n_latents, d_out]`, rows of norm 1. `d_out` is `d_in` for all but transcoders.
        b_dec: `[d_out]`, what is reconstructed when every latent is silent.
        config: The frozen configuration it was built from.
        site: Where the activations that it codes were read, if known and one.
        model: Name of the model they were read from, if known and one.
        places: The sites of a dictionary of several, in order; empty for others.
        normalization: Record of the normalisation it was trained under, already folded in; `None` before folding.
        provenance: Where it came from: version, settings, seed, tokens seen.
    """

    atoms: nn.Parameter
    b_dec: nn.Parameter
    config: Any  # the config class of the architecture; a mutable attribute of nn.Module cannot narrow it
    site: Site | None = None
    model: str | None = None
    places: tuple[Place, ...] = ()
    normalization: AnyNormalization | None = None
    provenance: dict[str, Any]
    needs_calibration: ClassVar[bool] = False

    @abstractmethod
    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """Code activations, in blocks of rows, so that memory does not grow with `n * n_latents`."""

    @abstractmethod
    def rescale_(self, factor: float) -> None:
        """Make the dictionary code `factor * x` with `factor` times the values, for every `x`, in place.

        Atoms stay of unit norm. What must change are the quantities in units of the activations: offsets, thresholds.
        """

    @property
    def n_latents(self) -> int:
        return int(self.atoms.shape[0])

    @property
    def d_in(self) -> int:
        """Width of what is coded."""
        return int(self.atoms.shape[1])

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed."""
        return int(self.atoms.shape[1])

    def encode_dense(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n n_latents"]:
        """The code with one column per latent. Memory `n * n_latents`: for small widths."""
        return self.encode(x).to_dense()

    def decode(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        """`sum_j values_j atoms_j + b_dec`.

        Raises:
            ValueError: the code is over another number of latents.
        """
        return code.decode(self.atoms) + self.b_dec

    def reconstruct(self, x: Float[Tensor, "n d_in"], code: SparseCode) -> Float[Tensor, "n d_out"]:
        """What `x` is turned into by its code: the decoded code, plus what an architecture lets pass beside it."""
        return self.decode(code)

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """The reconstruction of `x`."""
        return self.reconstruct(x, self.encode(x))

    @torch.no_grad()
    def fold_(self, normalization: AnyNormalization) -> None:
        """Turn a dictionary of normalised activations into the same dictionary of raw ones, in place.

        Coding `x` afterwards gives `1 / scale` times the values that coding `(x - mean) * scale` gave before, and
        reconstructs `x` where it reconstructed the normalised activation.

        Raises:
            ValueError: a normalisation was folded in before.
        """
        if self.normalization is not None:
            raise ValueError("a normalization is already folded into this dictionary; it takes raw activations")
        self.absorb_(normalization)
        self.normalization = normalization.like(self.b_dec)

    @torch.no_grad()
    def unfold_(self) -> None:
        """Undo `fold_`: the dictionary takes normalised activations again, as in training.

        Raises:
            ValueError: no normalisation is folded in.
        """
        if self.normalization is None:
            raise ValueError("no normalization is folded into this dictionary, so there is none to take out")
        self.absorb_(self.normalization.inverse())
        self.normalization = None

    def absorb_(self, normalization: AnyNormalization) -> None:
        """What `fold_` does to the weights.

        Raises:
            ValueError: the normalisation is of several sites and the dictionary of one.
        """
        if not isinstance(normalization, Normalization):
            raise ValueError(f"{self.config.architecture} reads one site, got a normalization of several")
        self.rescale_(1 / normalization.scale)
        self.b_dec.add_(normalization.mean.to(self.b_dec))

    @torch.no_grad()
    def normalize_atoms_(self) -> None:
        """Set every atom back to norm 1."""
        self.atoms.div_(self.atoms.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.atoms.dtype).tiny))

    def schedule_(self, progress: float) -> None:
        """Set what the architecture changes in the course of training; called before each step. By default nothing.

        Args:
            progress: Share of the training tokens seen so far, from 0 to 1.
        """

    def calibrate_(self, batches: Iterable[Float[Tensor, "_ d_in"]]) -> None:
        """Set what the architecture fits once training has ended, before folding. By default nothing.

        Called only where `needs_calibration` is true.

        Args:
            batches: Normalised activations that were not trained on, where the source has such.
        """

    def save(self, folder: str | Path) -> None:
        """Write `dictionary.safetensors` and `dictionary.json` into `folder`, each whole or not at all.

        A folder that holds another dictionary is overwritten; files that are not part of a dictionary are left alone.

        Raises:
            FormatError: the folder cannot be written, or the dictionary holds values that are not finite.
        """
        from sparsight.dictionaries.files import write_dictionary

        write_dictionary(self, Path(folder))


def unit_rows(n: int, d: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
    """Directions drawn uniformly from the unit sphere."""
    rows = torch.randn(n, d, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


def columns_of(widths: Sequence[int]) -> list[slice]:
    """Where each site's columns are in a row that holds several side by side."""
    ends = list(accumulate(widths))
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def check_positive(**values: Number) -> None:
    """Refuse the first of the named values that is not a positive, finite number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {name}={value}")
