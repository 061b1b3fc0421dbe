"""The studies by name. A study's module is imported when it is run, not when it is listed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from sparsight.studies.record import Findings
from sparsight.studies.work import Work


@dataclass(frozen=True)
class Study:
    """A question, and the module that answers it.

    Attributes:
        name: As typed: words joined by hyphens.
        question: What it asks, in one sentence.
        source: Whose question it is.
        module: Holds `run(work: Work) -> Findings`.
    """

    name: str
    question: str
    source: str
    module: str

    def run(self, work: Work) -> Findings:
        """Do the study in the folder of `work`."""
        return cast("Callable[[Work], Findings]", import_module(self.module).run)(work)


_ALL: tuple[Study, ...] = ()

STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in STUDIES:
        raise ValueError(f"no study {name!r}; there are: {', '.join(STUDIES)}")
    return STUDIES[name]
