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
from sparsight.training.folder import CHECKPOINT_FILE, METRICS_FILE, claim_folder, run_names, software_version
from sparsight.training.interruption import held_back_interruptions
from sparsight.training.log import MetricsLog, metrics_line, read_metrics
from sparsight.training.member import Member
from sparsight.training.progress import progress_bar
from sparsight.training.settings import Training
from sparsight.training.source import Activations, Sites, Source, open_source


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
    configs: Sequence[DictionaryConfig],
    training: Training,
    *,
    out: str | Path,
    site: Sites = None,
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
            `ActivationStream`, or a tensor `[n, d_in]`; for dictionaries of several sites also a sequence of stores or
            of tensors whose rows belong together. Cycled, and shuffled anew each epoch.
        configs: What to train. Run names follow from them; equal names are numbered.
        training: Settings shared by all.
        out: Folder of the run.
        site: Which site, where the source holds several; a sequence for dictionaries of several sites.
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
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    data = open_source(source, site, training, configs)
    names = run_names(configs)
    out = Path(out)
    plan = {
        "training": asdict(training),
        "configs": {n: {"architecture": c.architecture, **asdict(c)} for n, c in zip(names, configs, strict=True)},
        "data": data.record(),
    }
    if claim_folder(out, plan, names, resume=resume):
        return [Run(load_dictionary(out / n), read_metrics(out / n / METRICS_FILE), out / n) for n in names]
    members = [Member(n, c, data.d_in, training, place) for n, c in zip(names, configs, strict=True)]
    normalization = _run_steps(data, members, training, out, place, progress)
    batches = CalibrationBatches(source, site, data, normalization, training, place)
    runs = [_finish(member, normalization, batches, data, training, out) for member in members]
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return runs


def _run_steps(
    data: Source, members: list[Member], training: Training, out: Path, device: torch.device, progress: bool
) -> AnyNormalization:
    """All steps that remain; afterwards the members hold dictionaries of normalised activations."""
    checkpoint = out / CHECKPOINT_FILE
    if checkpoint.exists():
        first, normalization = _restore(checkpoint, data, members)
    else:
        first, normalization = 0, fit(data, training)
    with ExitStack() as stack:
        logs = [MetricsLog(out / m.name / METRICS_FILE, last_step=first) for m in members]
        for log in logs:
            stack.callback(log.close)
        advance = stack.enter_context(progress_bar(training.n_steps, first, shown=progress))
        interrupted = stack.enter_context(held_back_interruptions())
        started = time.monotonic()
        for step in range(first, training.n_steps):
            x = normalization.apply(checked(next(data.stream), step, data).to(device))
            lr, sparsity = training.lr_at(step), training.sparsity_at(step)
            objectives = [member.step(x, lr, sparsity, training.progress_at(step)) for member in members]
            done = step + 1
            if step == 0 or done % training.log_every == 0 or done == training.n_steps:
                rate = (done - first) * len(x) / (time.monotonic() - started)
                for member, objective, log in zip(members, objectives, logs, strict=True):
                    log.write(metrics_line(done, done * len(x), member, objective, lr, rate))
            advance(objectives[0])
            if done % training.checkpoint_every == 0 or interrupted.is_set():
                _checkpoint(checkpoint, done, normalization, data, members)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return normalization


def _checkpoint(path: Path, step: int, normalization: AnyNormalization, data: Source, members: list[Member]) -> None:
    tensors = {"normalization.mean": normalization.mean}
    for member in members:
        tensors |= member.tensors()
    write_checkpoint(path, tensors, {"step": step, "scale": normalization.scale, "stream": data.stream.state()})


def _restore(path: Path, data: Source, members: list[Member]) -> tuple[int, AnyNormalization]:
    tensors, state = read_checkpoint(path)
    data.stream.restore(state["stream"])
    for member in members:
        member.restore(tensors)
    return state["step"], normalization_of(tensors["normalization.mean"], state["scale"], data.widths)


def _finish(
    member: Member,
    normalization: AnyNormalization,
    batches: CalibrationBatches,
    data: Source,
    training: Training,
    out: Path,
) -> Run:
    """Calibrate, fold the normalisation in, say where the dictionary comes from, and save it."""
    dictionary = member.finished()
    provenance = {
        "sparsight": software_version(),
        "torch": torch.__version__,
        "training": asdict(training),
        "tokens_seen": training.n_steps * training.batch_size,
        "source": data.description,
    }
    if training.ema is not None:
        provenance["weights"] = f"average over the steps, ema={training.ema}"
    if dictionary.needs_calibration:
        dictionary.calibrate_(batches)
        provenance["calibration"] = batches.description
    dictionary.fold_(normalization)
    data.locate(dictionary)
    dictionary.provenance = provenance
    folder = out / member.name
    dictionary.save(folder)
    return Run(dictionary, read_metrics(folder / METRICS_FILE), folder)
