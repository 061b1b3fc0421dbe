"""Presets: the definitions of other projects, their loss values on our weights, and the way to our settings."""

from sparsight.training.presets.definitions import PRESETS
from sparsight.training.presets.preset import Definition, Preset, Schedule

NAMES = tuple(PRESETS)


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(NAMES)}, got {name!r}")
    return PRESETS[name]


__all__ = ["NAMES", "PRESETS", "Definition", "Preset", "Schedule", "preset"]
