"""What a report shows, as plain values: the page is a function of these and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from sparsight.interpretation.examples import Example


@dataclass(frozen=True)
class Estimate:
    """A measured value with the ends of its 95 % interval, where it has one."""

    value: float | int
    low: float | int | None = None
    high: float | int | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of the table of measurements.

    Attributes:
        name: What was measured.
        definition: How, with the convention, in a sentence; shown beside the name.
        unit: Of the value; "" for a pure number, "%" for a value already in percent.
        estimates: Value by name of the dictionary it was measured on.
        headline: Whether it is also shown large at the top of the page.
    """

    name: str
    definition: str
    unit: str
    estimates: dict[str, Estimate]
    headline: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with its title and a sentence that says how to read it."""

    title: str
    caption: str
    drawing: Markup


@dataclass(frozen=True, kw_only=True)
class FeatureMatch:
    """The latent that best tells one class of a labelled feature from the others, on held-out documents.

    Attributes:
        feature: Name of the labelled property of the input.
        label: The class told apart, such as "french" for the language.
        latent: The latent chosen, by index.
        auroc: Probability that the latent is larger on a token of the class than on one outside it. 0.5 is chance.
        f1: Harmonic mean of precision and recall of "the latent is above its threshold".
        n_positive: Tokens of the class in the documents measured on.
        n: Tokens for which the feature is defined.
    """

    feature: str
    label: str
    latent: int
    auroc: float
    f1: float | None
    n_positive: int
    n: int


@dataclass(frozen=True, kw_only=True)
class LatentSummary:
    """All that a page shows of one latent.

    Attributes:
        latent: Its index.
        groups: Why it is shown: "best", "random", "label".
        density: Share of tokens in which it is active.
        maximum: Largest value, in the units of the activations.
        energy_share: Its part of the energy of the whole code.
        histogram: Counts of its values above 0, in bins of equal width up to the maximum.
        contexts: Where it is most active.
        promoted, suppressed: Tokens whose logits its atom raises and lowers most directly, with the amount per unit.
        nearest: Other latents of the dictionary with the most similar atoms, and the cosines.
        matches: Labelled features for which it is the best latent.
    """

    latent: int
    groups: tuple[str, ...]
    density: float
    maximum: float
    energy_share: float
    histogram: list[int]
    contexts: list[Example]
    promoted: list[tuple[str, float]] = field(default_factory=list)
    suppressed: list[tuple[str, float]] = field(default_factory=list)
    nearest: list[tuple[int, float]] = field(default_factory=list)
    matches: list[FeatureMatch] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DictionaryPage:
    """One dictionary on the page.

    Attributes:
        name: Short and unique on the page, such as "TopK".
        description: Architecture, width and what it was trained on, in a line.
        n_latents: Width.
        latents: Those shown, by index.
        matches: For each labelled feature and class, the best latent.
        n_tokens: Held-out tokens behind the densities and contexts.
    """

    name: str
    description: str
    n_latents: int
    n_tokens: int
    latents: list[LatentSummary]
    matches: list[FeatureMatch] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """A whole report: facts, measurements, figures and latents."""

    title: str
    lead: str
    facts: dict[str, str]
    measurements: Sequence[Measurement]
    figures: Sequence[Figure]
    dictionaries: Sequence[DictionaryPage]
    notes: Sequence[str] = ()
