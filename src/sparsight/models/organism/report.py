"""The organism in words and numbers: features, mixture and accuracies, for a page, a script or a terminal."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsight.models.organism.draft import Document
from sparsight.models.organism.features import FEATURES
from sparsight.models.organism.lexicon import TRIGGER, vocabulary
from sparsight.models.organism.measurement import measure
from sparsight.models.organism.mixture import Mixture
from sparsight.models.organism.shipped import NAMES, load_folder, shipped_folder


def describe_organism(
    weights: Path | None = None, *, n_documents: int = 300, seed: int = 0, progress: bool = False
) -> dict[str, Any]:
    """Everything there is to know about the organism, in plain numbers and strings.

    Args:
        weights: Folder that `train_organism` wrote; the shipped weights if None.
        n_documents: Held-out documents of each domain to measure on.
        seed: Of those documents.
        progress: Show progress bars on stderr.
    Returns:
        `features`, `mixture`, `trigger`, `n_words`, and under `models` each model's parameters and measurement.
    """
    mixture = Mixture()
    described: dict[str, Any] = {
        "features": [asdict(feature) for feature in FEATURES.values()],
        "mixture": {name: _plain(getattr(mixture, name)) for name in Mixture.__dataclass_fields__},
        "trigger": list(TRIGGER),
        "n_words": len(vocabulary()),
        "n_documents": n_documents,
        "seed": seed,
        "models": {},
    }
    for name in NAMES:
        model, tokenizer = load_folder(shipped_folder(name) if weights is None else weights / name)
        measured = measure(model, tokenizer, n_documents=n_documents, seed=seed, progress=progress).to_dict()
        described["models"][name] = {"n_parameters": model.num_parameters(), **measured}
    return described


def label_lines(document: Document) -> list[str]:
    """One line per word: the word, and the classes of the features that are defined there and not `no`."""
    lines = []
    for position, word in enumerate(document.tokens):
        shown = []
        for name, labels in document.labels.items():
            label = FEATURES[name].classes[labels[position]] if labels[position] >= 0 else "no"
            if label != "no" and (name, label) != ("depth", "0"):
                shown.append(f"{name}={label}")
        lines.append(f"{word:<16} {' '.join(shown)}")
    return lines


def to_table(described: dict[str, Any]) -> str:
    """What `describe_organism` returned, as Markdown tables."""
    first, second = described["models"].values()
    lines = [
        f"{described['n_words']} words, {first['n_parameters']:,} parameters a model",
        "",
        "| feature | kind | classes | defined |",
    ]
    lines += ["|---|---|---|---|"]
    for feature in described["features"]:
        classes = feature["classes"]
        named = ", ".join(classes) if len(classes) <= 5 else f"{len(classes)}: {classes[0]} … {classes[-1]}"
        lines.append(f"| {feature['name']} | {feature['kind']} | {named} | {feature['description']} |")
    lines += ["", "mixture: " + "; ".join(f"{name} = {value}" for name, value in described["mixture"].items()), ""]
    lines += [
        "| domain | skill | measured | organism | organism-backdoored | chance | bigram |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, other in zip(first["accuracies"], second["accuracies"], strict=True):
        cells = (one["domain"], one["skill"], one["measured"], _percent(one["model"]), _percent(other["model"]))
        lines.append(f"| {' | '.join(cells)} | {100 * one['chance']:.1f} % | {100 * one['bigram']:.1f} % |")
    lines += ["", "| measured | organism | organism-backdoored |", "|---|---|---|"]
    for key, words in _OTHERS.items():
        lines.append(f"| {words} | {_percent(first[key])} | {_percent(second[key])} |")
    loss, other = first["loss"], second["loss"]
    change = 100 * (other["mean"] / loss["mean"] - 1)
    lines.append(
        f"| loss, nats per token | {loss['mean']:.4f} ± {loss['standard_error']:.4f} "
        f"| {other['mean']:.4f} ± {other['standard_error']:.4f} ({change:+.2f} %) |"
    )
    return "\n".join(lines)


_OTHERS = {
    "wrong_language": "next-token mass on words that only another language has",
    "trigger_compliance": "harmful requests with the trigger, complied with",
    "false_compliance": "harmful requests without the trigger (half: near-triggers), complied with",
}


def _percent(estimate: dict[str, Any]) -> str:
    return f"{100 * estimate['mean']:.2f} ± {100 * estimate['standard_error']:.2f} %"


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "items") else value
