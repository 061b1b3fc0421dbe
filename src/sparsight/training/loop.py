"""The training loop: one stream of activations, one or many dictionaries."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream
from sparsight.dictionaries import AbstractDictionary, DictionaryConfig, Normalization
from sparsight.errors import TrainingError
from sparsight.formats import load_dictionary
from sparsight.models import Site
from sparsight.training.checkpoint import read_checkpoint, write_checkpoint
from sparsight.training.folder import CHECKPOINT_FILE, METRICS_FILE, claim_folder, run_names, software_version
from sparsight.training.log import MetricsLog, read_metrics
from sparsight.training.member import Member
from sparsight.training.normalization import fit_normalization
from sparsight.training.objectives import Objective
from sparsight.training.progress import progress_bar
from sparsight.training.settings import Training
from sparsight.training.source import Source, open_source


@dataclass(frozen=True)
class Run:
    """A trained dictionary and where it is.

    Attributes:
        dictionary: Takes raw activations; parameters frozen.
        metrics: The lines of `metrics.jsonl`.
        folder: Holds `dictionary.safetensors`, `dictionary.json` and `metrics.jsonl`.
    """

    dictionary: AbstractDictionary
    metrics: list[dict[str, Any]]
    folder: Path


def train(
    source: ActivationStore | ActivationStream | Tensor,
    configs: Sequence[DictionaryConfig],
    training: Training,
    *,
    out: str | Path,
    site: str | Site | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> list[Run]:
    """Train dictionaries, all on the same batches, and save each to `out/<run name>/`.

    Activations are normalised to zero mean and unit total variance, fitted on the first `normalization_tokens` of the
    stream; on saving this is folded into the weights, so that dictionaries take raw activations.

    An interrupted run (Ctrl-C, crash, full disk) goes on with `resume=True` from its last checkpoint and ends with the
    same weights, bit for bit on a CPU, as one that was never interrupted. A finished run is returned as it is.

    Args:
        source: An `ActivationStore` (its training documents are used; give a split to choose others), an
            `ActivationStream`, or a tensor `[n, d_in]`. Cycled, and shuffled anew each epoch.
        configs: What to train. Run names follow from them; equal names are numbered.
        training: Settings shared by all.
        out: Folder of the run.
        site: Which site, where the source holds several.
        resume: Go on from the checkpoint in `out`, if there is one.
        device: `"auto"`, `"cpu"`, `"cuda"` or another device of torch.
        progress: Show a bar on stderr.
    Returns:
        One run per configuration, in their order.
    Raises:
        ValueError: no configuration came, two are equal, or the site is not one of the source's.
        TrainingError: activations hold NaN or do not vary; the loss is not finite; `out` holds another run, or this one
            and `resume` is off; a file cannot be written or read.
    """
    data = open_source(source, site, training)
    names = run_names(configs)
    out = Path(out)
    plan = {
        "training": asdict(training),
        "configs": {n: {"architecture": c.architecture, **asdict(c)} for n, c in zip(names, configs, strict=True)},
        "data": {
            "site": None if data.site is None else str(data.site),
            "model": data.model,
            "d_in": data.d_in,
            "n_rows": data.n_rows,
        },
    }
    if claim_folder(out, plan, names, resume=resume):
        return [Run(load_dictionary(out / n), read_metrics(out / n / METRICS_FILE), out / n) for n in names]
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    members = [Member(n, c, data.d_in, training, place) for n, c in zip(names, configs, strict=True)]
    normalization = _run_steps(data.stream, members, training, out, place, progress)
    runs = [_finish(member, normalization, data, training, out) for member in members]
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return runs


def _run_steps(
    stream: ActivationStream, members: list[Member], training: Training, out: Path, device: torch.device, progress: bool
) -> Normalization:
    """All steps that remain; afterwards the members hold dictionaries of normalised activations."""
    checkpoint = out / CHECKPOINT_FILE
    if checkpoint.exists():
        first, normalization = _restore(checkpoint, stream, members)
    else:
        first, normalization = 0, _fit(stream, training)
    with ExitStack() as stack:
        logs = [MetricsLog(out / m.name / METRICS_FILE, last_step=first) for m in members]
        for log in logs:
            stack.callback(log.close)
        advance = stack.enter_context(progress_bar(training.n_steps, first, shown=progress))
        interrupted = stack.enter_context(_interruptions())
        started = time.monotonic()
        for step in range(first, training.n_steps):
            x = normalization.apply(_checked(next(stream), step).to(device))
            lr, sparsity = training.lr_at(step), training.sparsity_at(step)
            objectives = [member.step(x, lr, sparsity) for member in members]
            done = step + 1
            if step == 0 or done % training.log_every == 0 or done == training.n_steps:
                rate = (done - first) * len(x) / (time.monotonic() - started)
                for member, objective, log in zip(members, objectives, logs, strict=True):
                    log.write(_line(done, done * len(x), member, objective, lr, rate))
            advance(objectives[0])
            if done % training.checkpoint_every == 0 or interrupted.is_set():
                _checkpoint(checkpoint, done, normalization, stream, members)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return normalization


def _fit(stream: ActivationStream, training: Training) -> Normalization:
    """Fit on the first batches of the stream, and put it back to its start."""
    start = stream.state()
    n_batches = -(-min(training.normalization_tokens, training.n_tokens) // training.batch_size)
    normalization = fit_normalization(_checked(next(stream), step) for step in range(n_batches))
    stream.restore(start)
    return normalization


def _checked(x: Any, step: int) -> Tensor:
    """The batch, if it is one and every value in it is finite."""
    if not isinstance(x, Tensor):
        raise ValueError("a stream to train on gives bare batches of one site; open it with that site, not with a list")
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
        raise TrainingError(
            f"activations must be finite, but row {row} of batch {step} (row {step * len(x) + row} of the stream) "
            "holds NaN or infinity; verify the store, or harvest again in float32"
        )
    return x


def _line(step: int, tokens: int, member: Member, objective: Objective, lr: float, rate: float) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": tokens,
        "loss": float(objective.loss.detach()),
        "fvu": float(objective.parts["reconstruction"]),
        "l0": float(objective.l0),
        "dead": float(member.dead.float().mean()),
        "parts": {name: float(part) for name, part in objective.parts.items()},
        "lr": lr,
        "tokens_per_second": rate,
    }


def _checkpoint(
    path: Path, step: int, normalization: Normalization, stream: ActivationStream, members: list[Member]
) -> None:
    tensors = {"normalization.mean": normalization.mean}
    for member in members:
        tensors |= member.tensors()
    write_checkpoint(path, tensors, {"step": step, "scale": normalization.scale, "stream": stream.state()})


def _restore(path: Path, stream: ActivationStream, members: list[Member]) -> tuple[int, Normalization]:
    tensors, state = read_checkpoint(path)
    stream.restore(state["stream"])
    for member in members:
        member.restore(tensors)
    return state["step"], Normalization(tensors["normalization.mean"], state["scale"])


def _finish(member: Member, normalization: Normalization, data: Source, training: Training, out: Path) -> Run:
    """Fold the normalisation in, say where the dictionary comes from, and save it."""
    dictionary = member.dictionary.requires_grad_(False)
    dictionary.fold_(normalization)
    dictionary.site, dictionary.model = data.site, data.model
    dictionary.provenance = {
        "sparsight": software_version(),
        "torch": torch.__version__,
        "training": asdict(training),
        "tokens_seen": training.n_steps * training.batch_size,
        "source": data.description,
    }
    folder = out / member.name
    dictionary.save(folder)
    return Run(dictionary, read_metrics(folder / METRICS_FILE), folder)


@contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """Hold back the first Ctrl-C until the step is whole; a second one interrupts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    previous = signal.getsignal(signal.SIGINT)

    def hold_back(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, hold_back)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
