"""A language model as judge, through any endpoint that speaks the chat-completions protocol."""

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from sparsight.circuits.shift.evidence import Evidence
from sparsight.circuits.shift.judges import Judgement, judged
from sparsight.errors import DataError

INSTRUCTIONS = (
    "A classifier reads the inside of a language model. Its only task is to {task}: {first}, or {second}. You see "
    "one unit that it goes by: the words on which the unit fires, how often in texts of each class, stretches of text "
    "around its strongest tokens (between ** **), and words it makes likelier. All of it was taken from texts in which "
    "other properties may happen to go with the class. Say whether the unit stands for something that serves the task "
    "itself (keep), for something else that a classifier for this task should not go by (remove), or whether the "
    "evidence does not decide (unclear). Answer with one JSON object and nothing else: "
    '{{"verdict": "keep" | "remove" | "unclear", "confidence": number from 0 to 1, "reason": "one sentence"}}'
)


@dataclass(frozen=True)
class ChatJudge:
    """Asks a language model, one node at a time, at temperature 0.

    Needs no client library: one HTTP request for each node, to `endpoint/chat/completions`.

    Attributes:
        endpoint: Base address, such as `http://127.0.0.1:8000/v1`.
        model: Name that the endpoint knows.
        key_variable: Environment variable that holds the key; no key is sent when it is not set.
        timeout: Seconds to wait for an answer.
        attempts: Requests for one answer, when what comes back cannot be read.
    """

    endpoint: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float | int = 60
    attempts: int = 2

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must begin with http:// or https://, got {self.endpoint!r}")

    @property
    def name(self) -> str:
        return f"{self.model} by chat"

    def __call__(self, evidence: Evidence, task: str, target_classes: tuple[str, str]) -> Judgement:
        """The model's verdict.

        Raises:
            DataError: the endpoint cannot be reached, refuses, or answers something that is no verdict.
        """
        prompt = INSTRUCTIONS.format(task=task, first=target_classes[0], second=target_classes[1])
        messages = [
            {"role": "system", "content": prompt},
            {"role": "user", "content": evidence.to_text(target_classes)},
        ]
        said = ""
        for _ in range(max(1, self.attempts)):
            said = self._ask(messages)
            if (found := read_answer(said)) is not None:
                return judged(evidence, found["verdict"], found["confidence"], found["reason"])
        raise DataError(f"{self.model} gave no verdict, expected one JSON object, got {said[:200]!r}")

    def _ask(self, messages: list[dict[str, str]]) -> str:
        body = json.dumps({"model": self.model, "temperature": 0, "messages": messages}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.endpoint.rstrip('/')}/chat/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.load(response)
            return str(answer["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            with error:
                raise DataError(f"{self.endpoint} refused with status {error.code}; check model name and key") from None
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise DataError(f"{self.endpoint} cannot be reached: {error}; check the address") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{self.endpoint} did not answer as a chat endpoint does: {error!r}") from None


def read_answer(said: str) -> dict[str, Any] | None:
    """Verdict, confidence and reason from what a model wrote, text around the JSON object allowed; None without one."""
    block = re.search(r"\{.*\}", said, flags=re.DOTALL)
    try:
        found = json.loads(block.group(0)) if block else None
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("verdict") not in ("keep", "remove", "unclear"):
        return None
    try:
        confidence = min(1.0, max(0.0, float(found.get("confidence", 0.5))))
    except (TypeError, ValueError):
        return None
    return {"verdict": found["verdict"], "confidence": confidence, "reason": str(found.get("reason", ""))[:500]}
