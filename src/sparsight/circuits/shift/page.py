"""A person as judge, in a page: the evidence with a choice beside each node, and the answers as a file."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from sparsight.circuits.shift.evidence import Evidence
from sparsight.circuits.shift.judges import Judgement, Verdict, judged
from sparsight.errors import DataError
from sparsight.evaluation.frozen_record import Record

ANSWERS_FILE = "answers.json"

_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #bbb; padding: .7rem 0; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .6rem; margin: .4rem 0; }
label { margin-right: 1.2rem; }
footer { position: sticky; bottom: 0; background: white; border-top: 2px solid #0072b2; padding: .7rem 0; }"""

_SCRIPT = """const form = document.querySelector('form'), left = document.querySelector('#left');
const count = () => { left.textContent = form.querySelectorAll('section').length
  - form.querySelectorAll('input:checked').length; };
form.addEventListener('change', count); count();
form.addEventListener('submit', event => {
  event.preventDefault();
  const answers = [...form.querySelectorAll('section')].map(at => ({
    site: at.dataset.site, latent: Number(at.dataset.latent),
    verdict: at.querySelector('input:checked')?.value ?? 'unclear' }));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ answers }, null, 1)], { type: 'application/json' }));
  link.download = 'answers.json'; link.click();
});"""


class Answer(Record):
    """What a person said of one node."""

    site: str
    latent: int
    verdict: Verdict


class Answers(Record):
    """The file that the page saves."""

    answers: list[Answer]


def write_page(evidence: Sequence[Evidence], task: str, target_classes: tuple[str, str], path: str | Path) -> None:
    """One page that needs no network: each node's evidence with three choices; a button saves `answers.json`.

    What is not answered is saved as unclear. Labels that the evidence may hold are not shown.

    Args:
        evidence: As a judge gets it.
        task: Such as "tell the profession".
        target_classes: Its two classes.
        path: The file to write.
    """
    sections = []
    for i, one in enumerate(evidence):
        choices = "".join(
            f'<label><input type="radio" name="n{i}" value="{verdict}"> {verdict}</label>'
            for verdict in ("keep", "remove", "unclear")
        )
        sections.append(
            f'<section data-site="{html.escape(one.site)}" data-latent="{one.latent}">'
            f"<pre>{html.escape(one.to_text(target_classes))}</pre>{choices}</section>"
        )
    asked = html.escape(f"The task: {task} ({target_classes[0]} or {target_classes[1]}).")
    Path(path).write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Judge latents</title><style>{_STYLE}'
        f"</style></head><body><h1>Which of these serve the task?</h1><p>{asked} Keep what serves it, remove what does "
        "not; where the evidence does not decide, say unclear.</p><form>"
        + "\n".join(sections)
        + '<footer><button type="submit">Save answers</button> <span id="left"></span> left</footer></form>'
        f"<script>{_SCRIPT}</script></body></html>\n",
        encoding="utf-8",
    )


@dataclass(frozen=True)
class PageJudge:
    """Gives the answers that a person saved from the page of `write_page`.

    Attributes:
        answers: The file.
    """

    answers: str | Path
    name: str = "person, by page"

    @cached_property
    def _said(self) -> dict[tuple[str, int], Verdict]:
        path = Path(self.answers)
        try:
            found = Answers.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"cannot read the answers {path}: {error.strerror}; save them from the page") from None
        except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise DataError(f"{path} holds no answers of a page: {first}; save them again") from None
        return {(one.site, one.latent): one.verdict for one in found.answers}

    def __call__(self, evidence: Evidence, task: str, target_classes: tuple[str, str]) -> Judgement:
        """The saved answer.

        Raises:
            DataError: the file cannot be read, or has no answer on this node.
        """
        said = self._said.get((evidence.site, evidence.latent))
        if said is None:
            raise DataError(
                f"{self.answers} says nothing of {evidence.kind} {evidence.latent} at {evidence.site}; write the page "
                "anew with the same dictionaries, texts and numbers, and answer that"
            )
        return judged(evidence, said, 1.0, "a person's answer in the page")
