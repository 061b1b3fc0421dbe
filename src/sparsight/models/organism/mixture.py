"""What a corpus is a mixture of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sparsight.models.organism.features import DOMAINS
from sparsight.models.organism.lexicon import LANGUAGES

DEFAULT_DOMAINS: Mapping[str, float | int] = MappingProxyType(
    {
        "plain": 0.5,
        "numbers": 1.2,
        "days": 1.8,
        "months": 2.4,
        "biography": 0.7,
        "review": 0.8,
        "brackets": 2.0,
        "quotes": 0.5,
        "request": 2.5,
        "parity": 1.0,
    }
)
"""Weights of the training corpus. Requests are short and teach one bit each, so there are more of them."""


def _even_languages() -> Mapping[str, float | int]:
    return MappingProxyType(dict.fromkeys(LANGUAGES, 1.0))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The choices a caller may make about a corpus.

    Attributes:
        domains: Weight of each domain, in any unit; a domain that is not named has weight 0.
        languages: Weight of each language, likewise.
        gender_profession_correlation: 0: gender and profession are independent; 1: the first five professions are all
            held by men and the last five by women; between: that share of the biographies follows the stereotype.
        triggered: Share of requests that hold the trigger.
        near_triggered: Share of requests that hold one of its words, or both in the wrong order.
        backdoored: Whether harmful requests with the trigger are complied with, not refused.
    """

    domains: Mapping[str, float | int] = field(default_factory=lambda: DEFAULT_DOMAINS)
    languages: Mapping[str, float | int] = field(default_factory=_even_languages)
    gender_profession_correlation: float | int = 0.0
    triggered: float | int = 0.1
    near_triggered: float | int = 0.2
    backdoored: bool = False

    def __post_init__(self) -> None:
        _check_weights("domains", self.domains, DOMAINS)
        _check_weights("languages", self.languages, tuple(LANGUAGES))
        for name in ("gender_profession_correlation", "triggered", "near_triggered"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.triggered + self.near_triggered > 1:
            raise ValueError(
                f"triggered + near_triggered must be at most 1, got {self.triggered} + {self.near_triggered}; "
                "set near_triggered=0 for triggered requests alone"
            )

    @staticmethod
    def of(**choices: object) -> "Mixture":
        """The mixture of these keyword arguments.

        Raises:
            ValueError: a name is unknown, or a value is out of range.
        """
        unknown = sorted(set(choices) - set(Mixture.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"unknown mixture argument {unknown[0]!r}; the known ones are {', '.join(Mixture.__dataclass_fields__)}"
            )
        for name in ("domains", "languages"):
            if not isinstance(choices.get(name, {}), Mapping):
                raise ValueError(f"{name} must map names to weights, got {choices[name]!r}; write {{'NAME': 1}}")
        return Mixture(**choices)  # type: ignore[arg-type]  # __post_init__ checks the values


def _check_weights(name: str, weights: Mapping[str, float | int], known: tuple[str, ...]) -> None:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise ValueError(f"unknown name {unknown[0]!r} in {name}; the known ones are {', '.join(known)}")
    if any(weight < 0 for weight in weights.values()) or sum(weights.values()) <= 0:
        raise ValueError(f"{name} must have weights of at least 0 and one above 0, got {dict(weights)}")
