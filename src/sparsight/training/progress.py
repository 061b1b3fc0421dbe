"""A bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparsight.training.objectives import Objective


@contextmanager
def progress_bar(n_steps: int, first: int, *, shown: bool) -> Iterator[Callable[[Objective], None]]:
    """A function to call after each step with the first dictionary's objective; it does nothing when not shown."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=n_steps, completed=first, state="")

        def advance(objective: Objective) -> None:
            fvu, l0 = float(objective.parts["reconstruction"]), float(objective.l0)
            bar.update(task, advance=1, state=f"FVU {fvu:.3f}  L0 {l0:.1f}")

        yield advance
