"""Publishing a dictionary on the Hugging Face hub, with a card that says what it is."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import FormatError
from sparsight.formats.foreign import format_of, load_dictionary
from sparsight.formats.published import FILES, Reference
from sparsight.formats.safe_reading import read_json, refuse_link_out

CARD = "README.md"
HOW_TO_LOAD = {
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("DOWNLOADED")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("DOWNLOADED")',
}


@dataclass(frozen=True)
class Upload:
    """What goes where.

    Attributes:
        reference: As `load_dictionary` will take it.
        files: Path in the repository of each file, and the file here.
        card: Text of the card, which goes beside them as `README.md`.
    """

    reference: Reference
    files: dict[str, Path]
    card: str


def prepare(folder: str | Path, repo: str, *, path: str = "", metrics: Path | None = None) -> Upload:
    """What pushing a folder would upload: the files of its format and nothing else of it, and a card.

    Args:
        folder: A dictionary in any format that is one folder; it is read, and thereby checked.
        repo: `owner/name`.
        path: Folder in the repository.
        metrics: What `sparsight evaluate --json` printed.
    Raises:
        FormatError: the folder holds no whole dictionary, or a link out of it, or metrics are none.
        ValueError: the repository has no such name.
    """
    here = Path(folder)
    if len(parts := repo.split("/")) != 2 or not all(part and part.strip(".") for part in parts):
        raise ValueError(f"the repository must be OWNER/NAME, got {repo!r}")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"the path in the repository must be a plain folder such as layer_5, got {path!r}")
    dictionary = load_dictionary(here)
    found = format_of(here)
    if found is None or not here.is_dir():
        raise FormatError(f"{here} is no folder of a dictionary; give the folder, not a file or a reference")
    reference = Reference(repo, path)
    files = {name: here / name for name in FILES if (here / name).is_file()}
    for file in files.values():
        refuse_link_out(file, here)
    card = model_card(dictionary, found.name, reference, None if metrics is None else read_json(metrics))
    prefix = f"{path}/" if path else ""
    return Upload(reference, {f"{prefix}{name}": file for name, file in files.items()}, card)


def push(upload: Upload, *, private: bool = False) -> str:
    """Make the repository if it is not there, and upload everything in one commit.

    Returns:
        Address of the commit.
    Raises:
        FormatError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    reference = upload.reference
    card_path = f"{reference.path}/{CARD}" if reference.path else CARD
    operations = [CommitOperationAdd(name, str(file)) for name, file in upload.files.items()]
    operations.append(CommitOperationAdd(card_path, upload.card.encode()))
    try:
        api = HfApi()
        api.create_repo(reference.repo, private=private, exist_ok=True)
        done = api.create_commit(
            reference.repo, operations=operations, commit_message=f"Dictionary {reference.path or 'at the top'}"
        )
    except Exception as error:  # requests, httpx, the operating system and the hub each have their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FormatError(
            f"the hub did not take {reference} ({type(error).__name__}: {first}); log in with `hf auth login`, and "
            "check that you may write there"
        ) from error
    return str(done.commit_url)


def model_card(
    dictionary: AbstractDictionary, format_name: str, reference: Reference, metrics: dict[str, Any] | None
) -> str:
    """A card in the hub's form: what it is, where it was read, how it was made, measurements, how to load it."""
    model = dictionary.model or next((place.model for place in dictionary.places if place.model), None)
    front = ["---", "library_name: sparsight", "tags:", "- sparse-dictionary", "- interpretability"]
    if model is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        front.append(f"base_model: {json.dumps(model)}")
    config = json.dumps({"architecture": dictionary.config.architecture, **asdict(dictionary.config)}, indent=2)
    sites = " to ".join(str(place) for place in dictionary.places) or str(dictionary.site or "not recorded")
    lines = [
        *front,
        "---",
        "",
        f"# {_plain(reference.path or reference.repo)}",
        "",
        f"A sparse dictionary ({dictionary.config.architecture}) of {dictionary.n_latents} latents over activations of "
        f"width {dictionary.d_in}, in the format `{format_name}`.",
        "",
        f"- Model: {_plain(model or 'not recorded')}",
        f"- Site: {_plain(sites)}",
        *_policy(dictionary),
        "- Input: raw activations; a normalisation of training is part of the weights.",
        "",
        "```json",
        config,
        "```",
        *_measured(metrics),
        "",
        "## How to load",
        "",
        "```python",
        "import sparsight",
        "",
        f'dictionary = sparsight.load_dictionary("{reference}")',
        "code = dictionary.encode(activations)  # [n, d_in] float32",
        "reconstruction = dictionary.reconstruct(activations, code)",
        "```",
    ]
    if format_name in HOW_TO_LOAD:
        lines += ["", "or", "", "```python", HOW_TO_LOAD[format_name], "```"]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """On one line, without what a page would take for markup."""
    return "".join(c for c in text if c.isprintable() and c not in "<>`[]")[:200]


def _policy(dictionary: AbstractDictionary) -> list[str]:
    provenance = dictionary.provenance
    lines = []
    if isinstance(provenance.get("prepend_bos"), bool):
        lines.append(f"- Texts begin with BOS: {'yes' if provenance['prepend_bos'] else 'no'}")
    if isinstance(provenance.get("context_size"), int):
        lines.append(f"- Context: {provenance['context_size']} tokens")
    if isinstance(provenance.get("tokens_seen"), int):
        lines.append(f"- Trained on {provenance['tokens_seen']:,} tokens")
    return lines


def _measured(metrics: dict[str, Any] | None) -> list[str]:
    """A table of what `sparsight evaluate --json` measured."""
    if metrics is None:
        return []
    rows = []
    for name, found in (
        ("fraction of variance unexplained", metrics.get("fvu")),
        ("active latents per token", (metrics.get("l0") or {}).get("mean")),
        ("cosine", metrics.get("cosine")),
        ("loss added, nats per token", (metrics.get("loss") or {}).get("added")),
    ):
        if isinstance(found, dict) and isinstance(found.get("value"), int | float):
            ends = [found.get(end) for end in ("low", "high")]
            interval = f" [{ends[0]:.4g}, {ends[1]:.4g}]" if all(isinstance(end, int | float) for end in ends) else ""
            rows.append(f"| {name} | {found['value']:.4g}{interval} |")
    if not rows:
        raise FormatError(
            "the metrics hold none of fvu, l0, cosine and loss; give what `sparsight evaluate --json` prints"
        )
    n = metrics.get("n_tokens")
    said = (
        f"On {n:,} held-out tokens, with 95 % intervals over documents."
        if isinstance(n, int)
        else "On held-out tokens."
    )
    return ["", "## Measurements", "", said, "", "| measure | value |", "|---|---|", *rows]
