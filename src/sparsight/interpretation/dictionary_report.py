"""A page about one dictionary, or several at one site: measurements, figures and latents put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsight.evaluation import Comparison, Evaluation, FeatureTable
from sparsight.interpretation.charts import coder_figures, density_figure, training_figures
from sparsight.interpretation.measurements import cautions_of, measurements_of
from sparsight.interpretation.page import DictionaryPage, FeatureMatch, ReportPage
from sparsight.interpretation.reading import Encodes, StoredActivations
from sparsight.interpretation.report import write_report
from sparsight.interpretation.summaries import summarise
from sparsight.models import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A dictionary and what is known of it.

    Attributes:
        name: Short name on the page.
        dictionary: Codes the activations.
        evaluation: Its measurements on held-out documents.
        comparison: Coders with its atoms, if compared.
        features: Its best latents for labelled features, if the text has labels.
        metrics: Lines of its `metrics.jsonl`, if at hand.
    """

    name: str
    dictionary: Any
    evaluation: Evaluation
    comparison: Comparison | None = None
    features: FeatureTable | None = None
    metrics: Sequence[Mapping[str, Any]] = field(default_factory=list)


def write_measured_report(
    path: Path | str,
    measured: Sequence[Measured],
    heldout: StoredActivations,
    lm: LanguageModel,
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    n_best: int = 50,
    n_random: int = 50,
    seed: int = 0,
) -> Path:
    """Write the page of one or several measured dictionaries of one site.

    Args:
        path: File to write.
        measured: Dictionaries with their records, in the order in which they are shown.
        heldout: Text for the contexts: `store.split("heldout")`.
        lm: The model the activations came from.
        title, lead: Heading of the page and the sentence under it.
        facts: How it was made: command, seeds, corpus and so on, by name.
        notes: What to read with care, beyond what the records say themselves.
        n_best, n_random: Latents shown of each dictionary; see `pick_latents`.
        seed: Of the random latents.
    """
    evaluations = {m.name: m.evaluation for m in measured}
    comparisons = {m.name: m.comparison for m in measured if m.comparison is not None}
    page = ReportPage(
        title=title,
        lead=lead,
        facts={**facts, "Written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")},
        measurements=measurements_of(evaluations),
        figures=[
            *coder_figures(comparisons),
            *density_figure(evaluations),
            *training_figures({m.name: m.metrics for m in measured}),
        ],
        dictionaries=[_page_of(m, heldout, lm, n_best, n_random, seed) for m in measured],
        notes=[*notes, *_left_out(measured), *cautions_of(evaluations)],
    )
    return write_report(path, page)


def write_dictionary_report(
    path: Path | str,
    dictionary: Encodes,
    store: Any,
    lm: LanguageModel | None,
    evaluation: Evaluation,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write the page of one evaluated dictionary.

    Args:
        path: File to write.
        dictionary: Codes the activations.
        store: Its activations; held-out documents give the contexts, labels (if any) the feature table.
        lm: The model the activations came from; loaded by the name in the store when None.
        evaluation: Its measurements.
        seed: Of the random latents.
        progress: Show a bar on stderr.
    """
    from sparsight.evaluation import best_latents
    from sparsight.models import load_model

    described = describe(dictionary)
    table = None
    if store.label_names:
        table = best_latents(dictionary, store, classes=class_names(store), progress=progress)  # type: ignore[arg-type]
    measured = Measured(
        name=evaluation.dictionary.architecture, dictionary=dictionary, evaluation=evaluation, features=table
    )
    facts = {
        "Model": store.model,
        "Site": evaluation.site,
        "Dictionary": described,
        "Tokens measured": f"{evaluation.n_tokens:,} ({evaluation.split} documents)",
        "Coder": evaluation.coder,
        "Seed": str(seed),
        "Version": f"sparsight {version('sparsight')}",
    }
    return write_measured_report(
        path,
        [measured],
        store.split("heldout"),
        lm if lm is not None else load_model(store.model),
        title=f"A dictionary of {_short(store.model)} at {evaluation.site}",
        lead=f"{described}. What it explains of activations it was not trained on, and what its latents respond to.",
        facts=facts,
        seed=seed,
    )


def describe(dictionary: Any) -> str:
    """A line about a dictionary: its architecture and its width."""
    return f"{type(dictionary.config).__name__}, {dictionary.n_latents:,} latents of {dictionary.d_in} dimensions"


def class_names(store: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes of a store's labels, where they are those of the organism's corpus."""
    from sparsight.models.organism import FEATURES

    return {name: FEATURES[name].classes for name in store.label_names if name in FEATURES}


def matches_of(table: FeatureTable | None) -> list[FeatureMatch]:
    """The rows of a feature table as the page shows them."""
    rows = table.rows if table is not None else []
    return [
        FeatureMatch(
            feature=row.feature,
            label=row.label,
            latent=row.latent,
            auroc=row.auroc,
            f1=row.f1,
            n_positive=row.n_positive,
            n=row.n,
        )
        for row in rows
    ]


def _page_of(
    measured: Measured, heldout: StoredActivations, lm: LanguageModel, n_best: int, n_random: int, seed: int
) -> DictionaryPage:
    return summarise(
        measured.dictionary,
        heldout,
        lm,
        name=measured.name,
        description=f"{measured.dictionary.n_latents:,} latents",
        matches=matches_of(measured.features),
        n_best=n_best,
        n_random=n_random,
        seed=seed,
    )


def _left_out(measured: Sequence[Measured]) -> list[str]:
    """Classes that could not be scored, by reason."""
    reasons: dict[str, list[str]] = {}
    for table in (m.features for m in measured[:1] if m.features is not None):
        for row in table.left_out:
            reasons.setdefault(row.reason, []).append(f"{row.feature}: {row.label}")
    return [f"Not in the table of labelled features ({', '.join(names)}): {why}" for why, names in reasons.items()]


def _short(model: str) -> str:
    """A model's name as a title has room for it: of a long path, the last two folders."""
    return "/".join(Path(model).parts[-2:])
