"""`suite`: one model, many sites, widths and sparsities; as few passes over the model as there is room for."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparsight.activations import ActivationStore, harvest
from sparsight.dictionaries.files import flush_to_disk, readable_os_errors, temporary
from sparsight.errors import DataError, FormatError, TrainingError
from sparsight.evaluation import Evaluation, evaluate
from sparsight.evaluation.splice import KnownLosses
from sparsight.models import LanguageModel, Site
from sparsight.suites.index import INDEX_FILE, Suite, index_of, read_suite, write_index
from sparsight.suites.page import REPORT_FILE, write_suite_report
from sparsight.suites.plan import MemberPlan, Number, SuitePlan, plan_suite
from sparsight.suites.trial import estimate_seconds
from sparsight.training import Training, train

PLAN_FILE, EVALUATION_FILE, TIMES_FILE = "plan.json", "evaluation.json", "times.jsonl"
Documents = Iterable[Any] | Callable[[], Iterable[Any]]
Say = Callable[[str], None]


def suite(
    lm: LanguageModel,
    documents: Documents,
    sites: str | Site | Iterable[str | Site],
    widths: Sequence[int],
    l0s: Sequence[Number],
    architecture: str,
    out: str | Path,
    *,
    n_tokens: int,
    training: Training | None = None,
    config: Mapping[str, Any] | None = None,
    context: int | None = None,
    dtype: str = "float16",
    heldout: Number = 0.1,
    loss_tokens: int = 16_384,
    disk: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    progress: bool = False,
) -> Suite:
    """Train a dictionary for each site, width and sparsity, measure all on held-out documents, and index them.

    All sites are read in one pass over the model (in as few as `disk` allows); the members of one site are trained
    together on the same batches. Whatever stops it (Ctrl-C, a crash, SIGKILL), the same call with `resume=True` goes on
    and ends with the same index: on a CPU with the same number of threads, byte for byte.

    Args:
        lm: The model.
        documents: Texts, or objects with `.text`, to harvest; or a function that gives them afresh, which several
            passes need.
        sites: See `choose_sites`: `"all"`, `"all.resid_post"`, `["0-3.mlp_out", "2.attn_z"]`, sites.
        widths: Numbers of latents.
        l0s: Active latents per token: `k` where the architecture has one, else `target_l0`.
        architecture: Its name in files, such as `"topk"`.
        out: Folder of the suite, absent or empty.
        n_tokens: Activations to store per site, held-out ones included.
        training: Settings of every member. Default: four times `n_tokens`, and `seed`.
        config: Further fields of every member's configuration, such as `{"dead_after": 20_000}`.
        context: Most tokens the model sees at once. Default: 128, or the model's limit.
        dtype: Of the stored activations.
        heldout: Share of the documents that are only measured on.
        loss_tokens: Held-out tokens on which the added loss is measured; 0 leaves it out.
        disk: Most bytes of activations to hold at once. Without it all sites are stored, and kept; with it there may be
            several passes, and each pass's activations are removed once its members are measured.
        seed: Of dictionaries, batches and bootstraps.
        device: Where to train: "auto", "cpu", "cuda" ...
        resume: Go on with what `out` holds.
        progress: Show the plan, an estimate of the time, and each step, on stderr.
    Returns:
        The finished suite; one that was finished before is opened as it is.
    Raises:
        ValueError: an argument is out of range.
        ModelError: the model has no such site.
        DataError, StoreError: the documents have no text, the disk has no room, a store is damaged.
        TrainingError: `out` holds something else, or a suite with other settings, or cannot be written.
        FormatError: the index or a member is damaged.
    """
    plan = plan_suite(
        lm,
        sites,
        widths,
        l0s,
        architecture,
        n_tokens=n_tokens,
        training=training,
        config=config,
        context=context,
        dtype=dtype,
        heldout=heldout,
        loss_tokens=loss_tokens,
        disk=disk,
        seed=seed,
    )
    out = Path(out)
    _check_documents(documents, plan)
    fresh = _claim(out, plan, resume=resume)
    say = _speaker(progress)
    if (out / INDEX_FILE).exists():
        return _with_report(read_suite(out))
    say(str(plan))
    if fresh:
        _check_room(out, plan)
    if progress:
        say(_estimate(lm, plan, device))
    for number in range(len(plan.passes)):
        _one_pass(lm, documents, plan, number, out, device, progress, say)
    evaluations = [_read_evaluation(out / member.folder / EVALUATION_FILE) for member in plan.members]
    write_index(out, index_of(plan, out, evaluations))
    return _with_report(read_suite(out))


def _check_documents(documents: Documents, plan: SuitePlan) -> None:
    """Refuse an iterator, which gives its documents once, where several passes read them."""
    if len(plan.passes) > 1 and not callable(documents) and iter(documents) is documents:
        raise ValueError(
            f"{len(plan.passes)} passes read the documents again, and an iterator gives them once; "
            "pass a list or a function that returns them"
        )


def _estimate(lm: LanguageModel, plan: SuitePlan, device: str) -> str:
    """How long it will take, in words."""
    seconds = estimate_seconds(lm, plan, device)
    return (
        f"about {_minutes(seconds.total)} from the start: {_minutes(seconds.harvest)} to read the model, "
        f"{_minutes(seconds.training)} to train, {_minutes(seconds.evaluation)} to measure"
    )


def _one_pass(
    lm: LanguageModel,
    documents: Documents,
    plan: SuitePlan,
    number: int,
    out: Path,
    device: str,
    progress: bool,
    say: Say,
) -> None:
    """Read some sites in one pass over the model, and train and measure their members."""
    sites, s = plan.passes[number], plan.settings
    folder = out / ("activations" if s["disk"] is None else f"activations-{number + 1}")
    if all((out / m.folder / EVALUATION_FILE).exists() for site in sites for m in plan.at(site)):
        _remove_activations(folder, plan)
        return
    say(f"reading {len(sites)} sites of {lm.name}, pass {number + 1} of {len(plan.passes)}")
    finished = (folder / "store.json").exists()
    with _timed(out, "harvest", sites):
        store = harvest(
            lm,
            documents() if callable(documents) else documents,
            sites,
            folder,
            n_tokens=s["n_tokens"],
            context=s["context"],
            dtype=s["dtype"],
            heldout=s["heldout"],
            resume=True,
            progress=progress,
        )
    if finished:
        store.verify()
    for i, site in enumerate(sites):
        say(f"{site} ({i + 1} of {len(sites)}): {len(plan.at(site))} dictionaries")
        _one_site(lm, store, plan, site, out, device, progress)
    _remove_activations(folder, plan)


def _one_site(
    lm: LanguageModel, store: ActivationStore, plan: SuitePlan, site: Site, out: Path, device: str, progress: bool
) -> None:
    """Train all members of one site on the same batches, and measure those that are not measured yet."""
    members, s = plan.at(site), plan.settings
    missing = [m for m in members if not (out / m.folder / EVALUATION_FILE).exists()]
    if not missing:
        return
    with _timed(out, "training", [site]):
        configs = [m.config for m in members]
        folder = out / "sites" / str(site)
        runs = train(
            store, configs, plan.training, out=folder, site=site, resume=True, device=device, progress=progress
        )
    of = {member.folder: run for member, run in zip(members, runs, strict=True)}
    with _timed(out, "evaluation", [site]):
        known = KnownLosses()
        for member in missing:
            found = evaluate(
                of[member.folder].dictionary,
                store,
                model=lm if s["loss_tokens"] else None,
                loss_tokens=s["loss_tokens"] or None,
                gap_tokens=0,
                baseline_tokens=0,
                seed=s["seed"],
                known=known,
            )
            _write_evaluation(out, member, found)


def _write_evaluation(out: Path, member: MemberPlan, found: Evaluation) -> None:
    path = out / member.folder / EVALUATION_FILE
    with readable_os_errors(path), temporary(path) as partial:
        partial.write_text(found.to_json() + "\n", encoding="utf-8")
        flush_to_disk(partial)
        os.replace(partial, path)


def _read_evaluation(path: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise FormatError(f"{path} is damaged ({reason}); remove it and resume: the member is measured again") from None


def _claim(out: Path, plan: SuitePlan, *, resume: bool) -> bool:
    """Make sure that `out` is ours to write; tell whether it is new."""
    path = out / PLAN_FILE
    if path.exists():
        if not resume:
            raise TrainingError(
                f"{out} already holds a suite; resume it (resume=True, --resume) or name another folder"
            )
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            differences = _differences(there, json.loads(json.dumps(plan.settings)))
        except (OSError, ValueError, AttributeError) as error:
            raise TrainingError(f"{path} is damaged ({error}); name another folder") from error
        if differences:
            raise TrainingError(
                f"{out} holds a suite with other settings: {'; '.join(differences)}; resume with the old ones or name "
                "another folder"
            )
        return False
    try:
        with readable_os_errors(out):
            if out.exists() and any(out.iterdir()):
                raise TrainingError(f"{out} holds something else than a suite; name another folder, or empty this one")
            out.mkdir(parents=True, exist_ok=True)
            with temporary(path) as partial:
                partial.write_text(json.dumps(plan.settings, indent=1) + "\n", encoding="utf-8")
                flush_to_disk(partial)
                os.replace(partial, path)
    except FormatError as error:
        raise TrainingError(str(error)) from error
    return True


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`name: old -> new` for every setting that differs."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {json.dumps(a)} -> {json.dumps(b)}")
    return lines


def _check_room(out: Path, plan: SuitePlan) -> None:
    """Refuse a suite that cannot fit before anything is computed."""
    # Beside the members there are a checkpoint (twice while it is replaced) and the metrics.
    needed = plan.activation_bytes + plan.dictionary_bytes + 2 * plan.training_bytes
    free = shutil.disk_usage(out).free
    if needed > free:
        (out / PLAN_FILE).unlink()
        raise DataError(
            f"the suite needs {needed / 1e9:,.1f} GB on the disk of {out}, which has {free / 1e9:,.1f} GB free; pass "
            "disk= (--disk) to store fewer sites at once, or lower n_tokens"
        )


def _remove_activations(folder: Path, plan: SuitePlan) -> None:
    if plan.settings["disk"] is not None and folder.is_dir():
        shutil.rmtree(folder)


def _with_report(made: Suite) -> Suite:
    """The suite, its page written if it is not there."""
    if not (made.folder / REPORT_FILE).exists():
        write_suite_report(made.folder / REPORT_FILE, made)
    return made


@contextmanager
def _timed(out: Path, stage: str, sites: list[Site]) -> Iterator[None]:
    """Note how long a stage took: in a file of its own, so that the index does not depend on it."""
    began = time.perf_counter()
    yield
    line = {"stage": stage, "sites": [str(site) for site in sites], "seconds": round(time.perf_counter() - began, 2)}
    with (out / TIMES_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _speaker(shown: bool) -> Say:
    """Print a line on stderr, or nothing."""
    from rich.console import Console

    console = Console(stderr=True, quiet=not shown)
    return lambda text: console.print(text, markup=False, highlight=False)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
