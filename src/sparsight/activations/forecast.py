"""How large a store will be and how long it will take: said before, and shown while it is written."""

import time
from types import TracebackType
from typing import Any

from sparsight.activations.record import Settings
from sparsight.activations.rounding import bytes_per_row

_ROW = 16  # bytes: token, document, position
_CONTEXT_TOKEN = 6  # bytes: its id and two marks
_TRIAL_SECONDS = 1.0


def forecast_bytes(settings: Settings) -> int:
    """Bytes of the whole store, labels and headers left out; contexts are taken to be full."""
    row = sum(bytes_per_row(width, settings.dtype) for width in settings.widths) + _ROW + _CONTEXT_TOKEN
    return settings.n_tokens * row


def size(n_bytes: float) -> str:
    """Bytes for people: "3.4 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """Seconds for people: "2.5 h"."""
    for unit, scale in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.0f} s"


class Meter:
    """Progress on stderr: bytes before the first row, time after the first second, then a bar with rate and bytes."""

    def __init__(self, settings: Settings, done: int, show: bool) -> None:
        self.total = settings.n_tokens
        self.done = self.first = done
        self.per_row = forecast_bytes(settings) / settings.n_tokens
        self._bars: Any = None
        self._said = False
        if show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("harvest"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("tokens {task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Meter":
        if self._bars is not None:
            left = self.total - self.done
            self._print(f"about {size(left * self.per_row)} for {left:,} tokens, {self.per_row:,.0f} bytes each")
            self._bars.start()
            self._task = self._bars.add_task("harvest", total=self.total, completed=self.done, rate="")
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def advance(self, n: int) -> None:
        """Count rows."""
        self.done += n
        if self._bars is None:
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self.first) / seconds
        if not self._said and seconds > _TRIAL_SECONDS:
            self._said = True
            left = self.total - self.done
            self._print(f"about {duration(left / rate)} more at {rate:,.0f} tokens/s")
        shown = f"at {rate:,.0f}/s, {size(self.done * self.per_row)}"
        self._bars.update(self._task, completed=self.done, rate=shown)

    def _print(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)
