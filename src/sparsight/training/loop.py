"""The training loop: one stream of activations, one or many dictionaries."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.dictionaries.base import normalization_of
from sparsight.formats import load_dictionary
from sparsight.training.batches import AnyNormalization, CalibrationBatches, checked, fit
from sparsight.training.checkpoint import read_checkpoint, write_checkpoint
from sparsight.training.checks import early_warnings
from sparsight.training.folder import CHECKPOINT_FILE, METRICS_FILE, claim_folder, run_names, software_version
from sparsight.training.interruption import held_back_interruptions
from sparsight.training.listeners import Listener
from sparsight.training.log import RunLog, metrics_line, read_metrics
from sparsight.training.member import Member
from sparsight.training.memory import require_memory
from sparsight.training.parallel.processes import Processes, check_processes, join_processes
from sparsight.training.progress import progress_bar
from sparsight.training.settings import Training
from sparsight.training.source import Activations, Sites, Source, open_source
from sparsight.training.starting_point import FineTune, StartingPoint, starting_points


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
    source: Activations,
    configs: Sequence[DictionaryConfig | FineTune | AbstractDictionary],
    training: Training,
    *,
    out: str | Path,
    site: Sites = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = False,
    listeners: Sequence[Listener] = (),
    check_memory: bool = True,
) -> list[Run]:
    """Train dictionaries, all on the same batches, and save each to `out/<run name>/`.

    Activations are normalised to zero mean and unit total variance, fitted on the first `normalization_tokens` of the
    stream; on saving this is folded into the weights, so that dictionaries take raw activations.

    An interrupted run (Ctrl-C, crash, full disk) goes on with `resume=True` from its last checkpoint and ends with the
    same weights, bit for bit on a CPU, as one that was never interrupted. A finished run is returned as it is.

    Args:
        source: An `ActivationStore` (its training documents are used; give a split to choose others), an
            `ActivationStream`, or a tensor `[n, d_in]`; for dictionaries of several sites also a sequence of stores or
            of tensors whose rows belong together. Cycled, and shuffled anew each epoch.
        configs: What to train: configurations, or dictionaries to go on from. Run names follow from them; equal names
            are numbered.
        training: Settings shared by all.
        out: Folder of the run.
        site: Which site, where the source holds several; a sequence for dictionaries of several sites.
        resume: Go on from the checkpoint in `out`, if there is one.
        device: `"auto"`, `"cpu"`, `"cuda"` or another device of torch.
        progress: Show a bar on stderr.
        listeners: Given every line of the metrics as it is written.
        check_memory: Refuse a run that needs more memory than is free.
    Returns:
        One run per configuration, in their order.
    Raises:
        ValueError: no configuration came, two are equal, or the site is not one of the source's.
        TrainingError: activations hold NaN or do not vary; the loss is not finite; `out` holds another run, or this one
            and `resume` is off; a file cannot be written or read; memory will not suffice.
    """
    place, processes = join_processes(device)
    check_processes(processes, training)
    starts = starting_points(configs)
    data = open_source(source, site, training, [start.config for start in starts])
    names = run_names(starts)
    out = Path(out)
    plan = {
        "training": asdict(training),
        "configs": {name: start.record() for name, start in zip(names, starts, strict=True)},
        "data": data.record(),
    }
    if processes.on_main(lambda: claim_folder(out, plan, names, resume=resume)):
        return [Run(load_dictionary(out / n), read_metrics(out / n / METRICS_FILE), out / n) for n in names]
    if check_memory:
        require_memory([start.config for start in starts], data.widths, training, place, processes.size)
    job = _Job(source, data, names, starts, training, out, place, processes)
    with ExitStack() as stack:
        for listener in listeners if processes.main else ():
            listener.open(plan)
            stack.callback(listener.close)
        members, normalization = _run_steps(job, listeners, progress)
    batches = CalibrationBatches(source, site, data, normalization, training, place)
    runs = [_finish(job, member, normalization, batches) for member in members]
    if processes.main:
        (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return runs


@dataclass(frozen=True)
class _Job:
    """What stays the same from the first step to the last."""

    source: Activations
    data: Source
    names: list[str]
    starts: list[StartingPoint]
    training: Training
    out: Path
    device: torch.device
    processes: Processes

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT_FILE


def _run_steps(job: _Job, listeners: Sequence[Listener], progress: bool) -> tuple[list[Member], AnyNormalization]:
    """All steps that remain; afterwards the members hold dictionaries of normalised activations."""
    training, processes, stream = job.training, job.processes, job.data.stream
    first, members, normalization = _begin(job)
    with ExitStack() as stack:
        log = RunLog(job.out, job.names if processes.main else [], listeners, last_step=first)
        stack.callback(log.close)
        advance = stack.enter_context(progress_bar(training.n_steps, first, shown=progress and processes.main))
        interrupted = stack.enter_context(held_back_interruptions())
        started, loading = time.monotonic(), 0.0
        for step in range(first, training.n_steps):
            asked = time.monotonic()
            x = normalization.apply(checked(next(stream), step, job.source).to(job.device))
            loading += time.monotonic() - asked
            lr, sparsity = training.lr_at(step), training.sparsity_at(step)
            objectives = [member.step(x, lr, sparsity, training.progress_at(step)) for member in members]
            done = step + 1
            if step == 0 or done % training.log_every == 0 or done == training.n_steps:
                seconds = time.monotonic() - started
                speed = {
                    "tokens_per_second": (done - first) * len(x) / seconds,
                    "loading_share": loading / seconds,
                }
                for member, objective in zip(members, objectives, strict=True):
                    line = metrics_line(done, done * len(x), member, objective, lr, speed)
                    log.write(member.name, line, early_warnings(member, x, objective, training, done))
            advance(objectives[0])
            stop = processes.agree(interrupted.is_set())
            if done % training.checkpoint_every == 0 or stop:
                _checkpoint(job, done, normalization, members)
            if stop:
                raise KeyboardInterrupt
    return members, normalization


def _begin(job: _Job) -> tuple[int, list[Member], AnyNormalization]:
    """The number of steps done, and the state after them: of a checkpoint, or of a new run."""
    tensors, state = read_checkpoint(job.checkpoint) if job.checkpoint.exists() else ({}, None)
    if state is None:
        normalization = fit(job.source, job.data, job.training)
    else:
        normalization = normalization_of(tensors["normalization.mean"], state["scale"], job.data.widths)
    members = [
        Member(name, start.config, job.data.d_in, job.training, job.device, start.normalized(normalization))
        for name, start in zip(job.names, job.starts, strict=True)
    ]
    if state is None:
        return 0, members, normalization
    job.data.stream.restore(state["stream"])
    for member in members:
        member.restore(tensors)
    return state["step"], members, normalization


def _checkpoint(job: _Job, step: int, normalization: AnyNormalization, members: list[Member]) -> None:
    tensors = {"normalization.mean": normalization.mean}
    for member in members:
        tensors |= member.tensors()
    state = {"step": step, "scale": normalization.scale, "stream": job.data.stream.state()}
    job.processes.on_main(lambda: write_checkpoint(job.checkpoint, tensors, state))


def _finish(job: _Job, member: Member, normalization: AnyNormalization, batches: CalibrationBatches) -> Run:
    """Calibrate, fold the normalisation in, say where the dictionary comes from, and save it."""
    training = job.training
    dictionary = member.finished()
    provenance = {
        "sparsight": software_version(),
        "torch": torch.__version__,
        "training": asdict(training),
        "tokens_seen": training.n_steps * training.batch_size,
        "source": job.data.description,
    }
    if training.ema is not None:
        provenance["weights"] = f"average over the steps, ema={training.ema}"
    start = job.starts[job.names.index(member.name)]
    if start.dictionary is not None:
        provenance["started_from"] = {"sha256": start.fingerprint, **start.dictionary.provenance}
    if dictionary.needs_calibration:
        dictionary.calibrate_(batches)
        provenance["calibration"] = batches.description
    dictionary.fold_(normalization)
    job.data.locate(dictionary)
    dictionary.provenance = provenance
    folder = job.out / member.name
    job.processes.on_main(lambda: dictionary.save(folder))
    return Run(dictionary, read_metrics(folder / METRICS_FILE), folder)
