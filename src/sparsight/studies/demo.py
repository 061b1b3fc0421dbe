"""The main job on the embedded model: text in; two dictionaries, measurements and a page out."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from sparsight.activations import ActivationStore, harvest
from sparsight.dictionaries import DictionaryConfig, JumpReLU, TopK
from sparsight.errors import DataError
from sparsight.evaluation import best_latents, compare_coders, evaluate
from sparsight.interpretation import Measured, write_measured_report
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.studies.demo_record import DemoRecord, claims_of
from sparsight.studies.questions import class_names, within_languages
from sparsight.training import Run, Training, train

CORPUS_SEED = 1  # documents of seed 0 taught the organism; these it has not seen
SETTINGS_FILE, RESULTS_FILE, REPORT_FILE = "demo.json", "results.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything.

    Attributes:
        n_stored: Activations harvested.
        heldout: Share of the documents held out.
        n_trained: Activations each dictionary sees, repeats counted.
        batch_size: Activations in one training step.
        lr: Peak learning rate.
        ks: Latents per token at which coders are compared.
        n_compared: Held-out activations coded in each way.
        n_labelled: Activations of each side of the split among which latents are held against labels.
    """

    n_stored: int
    heldout: float
    n_trained: int
    batch_size: int
    lr: float
    ks: tuple[int, ...]
    n_compared: int
    n_labelled: int


FULL = Plan(
    n_stored=400_000,
    heldout=0.1,
    n_trained=1_500_000,
    batch_size=1024,
    lr=2e-3,
    ks=(4, 8, 16, 32),
    n_compared=16_384,
    n_labelled=60_000,
)
FAST = Plan(
    n_stored=100_000,
    heldout=0.2,
    n_trained=260_000,
    batch_size=512,
    lr=3e-3,
    ks=(8, 16, 32),
    n_compared=6_144,
    n_labelled=30_000,
)
CONFIGS: dict[str, DictionaryConfig] = {
    # Runs are short, so a latent counts as dead, and is revived, sooner than by default. A wider window lets JumpReLU's
    # thresholds hear from more tokens: at 0.03, 18 % of its latents were dead after 250,000 tokens, at
    # 0.1 it was 1 %, with the same FVU.
    "TopK": TopK(1024, k=16, dead_after=20_000),
    "JumpReLU": JumpReLU(1024, target_l0=16.0, dead_after=20_000, bandwidth=0.1),
}


@dataclass(frozen=True)
class DemoResult:
    """A finished demo.

    Attributes:
        folder: Holds `report.html`, `results.json`, the activations and the dictionaries.
        record: The numbers of `results.json`.
        found: Whether the folder held this demo already, so that nothing was computed.
    """

    folder: Path
    record: DemoRecord
    found: bool = False

    @property
    def report(self) -> Path:
        return self.folder / REPORT_FILE

    def to_json(self) -> str:
        """The record, with the path of the page."""
        return json.dumps({"report": str(self.report), **self.record.model_dump(mode="json")}, indent=2)

    def to_table(self) -> str:
        """The record for people, a screen long."""
        from sparsight.studies.tables import demo_table

        return demo_table(self)


def run_demo(
    out: str | Path,
    *,
    fast: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    model: str = "organism",
) -> DemoResult:
    """Train a TopK and a JumpReLU dictionary on the embedded model, measure them, and write one HTML page.

    The rule for `out`: an absent or empty folder is filled; a finished demo with the same settings is opened as it is;
    an unfinished one goes on where it stopped; anything else is refused and left as it was.

    Args:
        out: Folder to write.
        fast: Fewer activations and steps; numbers are worse by as much.
        seed: Of the dictionaries, of the order of the batches and of the random latents shown.
        device: "auto", "cpu", "cuda" ...
        progress: Report each step on stderr.
        model: Another organism, such as "organism-backdoored" or a folder that `organism train` wrote.
    Raises:
        DataError: `out` holds something else.
    """
    out, plan = Path(out), FAST if fast else FULL
    settings = {"fast": fast, "seed": seed, "model": model, "sparsight": version("sparsight")}
    found = _claim(out, settings)
    if found is not None:
        return DemoResult(out, found, found=True)
    clock = _Clock(progress)
    with clock("loading the model"):
        lm = load_model(model, device=device)
        site = Site(lm.n_layers // 2, "resid_post")
    with clock(f"harvesting {plan.n_stored:,} activations at {site}"):
        store = _harvest(lm, site, out, plan, progress)
    with clock(f"training {len(CONFIGS)} dictionaries on {plan.n_trained:,} activations"):
        training = Training(n_tokens=plan.n_trained, batch_size=plan.batch_size, lr=plan.lr, seed=seed)
        configs = list(CONFIGS.values())
        runs = dict(zip(CONFIGS, train(store, configs, training, out=out / "dictionaries", resume=True, device=device,
                                       progress=progress), strict=True))  # fmt: skip
    record = _measure(runs, store, lm, plan, settings, clock, seed)
    with clock("writing the page"):
        _write_page(out, runs, store, lm, record, plan, fast=fast, seed=seed)
    record = record.model_copy(update={"seconds": clock.seconds})
    _write(out / RESULTS_FILE, record.model_dump_json(indent=2))  # last: its presence says that the demo is finished
    return DemoResult(out, record)


def _claim(out: Path, settings: dict[str, Any]) -> DemoRecord | None:
    """The record of the finished demo in `out`; None when there is work to do, with `out` ours to fill."""
    other = f"{out} holds something else than a demo with {settings}; name another folder, or remove this one"
    mine = out / SETTINGS_FILE
    if mine.is_file():
        if json.loads(mine.read_text(encoding="utf-8")) != settings:
            raise DataError(other)
        if (out / RESULTS_FILE).is_file() and (out / REPORT_FILE).is_file():
            return DemoRecord.model_validate_json((out / RESULTS_FILE).read_text(encoding="utf-8"))
        return None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(other)
    out.mkdir(parents=True, exist_ok=True)
    _write(mine, json.dumps(settings))
    return None


def _harvest(lm: LanguageModel, site: Site, out: Path, plan: Plan, progress: bool) -> ActivationStore:
    """Activations of documents the model was not trained on, with the true features of every token."""
    documents = (document for start in count(0, 1000) for document in organism.corpus(CORPUS_SEED, 1000, start=start))
    return harvest(
        lm,
        within_languages(documents),
        [site],
        out / "activations",
        n_tokens=plan.n_stored,
        heldout=plan.heldout,
        resume=True,
        progress=progress,
    )


def _measure(
    runs: dict[str, Run],
    store: ActivationStore,
    lm: LanguageModel,
    plan: Plan,
    settings: dict[str, Any],
    clock: "_Clock",
    seed: int,
) -> DemoRecord:
    """Everything is measured on held-out documents."""
    classes = class_names()
    with clock("measuring on held-out documents"):
        evaluations = {
            name: evaluate(run.dictionary, store, model=lm, loss_tokens=plan.n_compared, seed=seed)
            for name, run in runs.items()
        }
    with clock("comparing coders"):
        arms = ("encoder", "refit", "pursuit")
        comparison = compare_coders(runs["TopK"].dictionary, store, plan.ks, arms, n_tokens=plan.n_compared, seed=seed)
    with clock("finding the best latent of each labelled feature"):
        features = {
            name: best_latents(run.dictionary, store, classes=classes, n_tokens=plan.n_labelled)
            for name, run in runs.items()
        }
    return DemoRecord(
        settings=settings,
        seconds={},
        evaluations=evaluations,
        comparison=comparison,
        features=features,
        claims=claims_of(evaluations, comparison, features),
    )


def _write_page(
    out: Path,
    runs: dict[str, Run],
    store: ActivationStore,
    lm: LanguageModel,
    record: DemoRecord,
    plan: Plan,
    *,
    fast: bool,
    seed: int,
) -> None:
    measured = [
        Measured(
            name=name,
            dictionary=run.dictionary,
            evaluation=record.evaluations[name],
            comparison=record.comparison if name == "TopK" else None,
            features=record.features[name],
            metrics=run.metrics,
        )
        for name, run in runs.items()
    ]
    site = store.sites[0]
    facts = {
        "Model": f"{lm.name} ({lm.family}, {lm.n_layers} layers of width {lm.width(site)}), embedded in sparsight",
        "Site": str(site),
        "Text": f"the organism’s grammar, seed {CORPUS_SEED}: documents that its training did not use",
        "Activations": f"{len(store):,} stored; {plan.heldout:.0%} of the documents held out",
        "Training": f"{plan.n_trained:,} activations, batches of {plan.batch_size:,}, peak rate {plan.lr:g}",
        "Seed": str(seed),
        "Version": f"sparsight {version('sparsight')}",
        "Command": f"sparsight demo --out {out}{' --fast' if fast else ''}{f' --seed {seed}' if seed else ''}",
    }
    write_measured_report(
        out / REPORT_FILE,
        measured,
        store.split("heldout"),
        lm,
        title=f"Two dictionaries of {lm.name} at {site}",
        lead=f"A TopK and a JumpReLU dictionary of {measured[0].dictionary.n_latents:,} latents each, trained on the "
        "residual stream of a small language model whose texts are labelled token by token: what they explain, at what "
        "cost to the model, and what their latents respond to.",
        facts=facts,
        notes=[
            "Labels that end in a language are asked within that language alone: of German text, which words name a "
            "month? Latents here often belong to one language, because most words do.",
            "An AUROC speaks only of the tokens that the question is asked of: a latent that tells November from the "
            "other months, where a month comes next, may be active elsewhere for another reason. Its contexts show it.",
        ],
        seed=seed,
    )


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


class _Clock:
    """Says on stderr what is being done, and remembers how long it took."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        from rich.console import Console

        say: Callable[..., None] = Console(stderr=True, highlight=False, quiet=not self.shown).print
        say(f"[bold]{what}[/]")
        began = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - began, 2)
