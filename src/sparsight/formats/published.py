"""Dictionaries that others published on the Hugging Face hub: from a reference to files on this disk."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sparsight.errors import FormatError

PREFIX = "hf:"
# What the formats read. Nothing else of a repository is fetched.
FILES = (
    "dictionary.json",
    "dictionary.safetensors",
    "cfg.json",
    "sae_weights.safetensors",
    "activation_scaler.json",
    "activation_whitening.safetensors",
    "config.json",
    "ae.pt",
    "sae.safetensors",
    "params.npz",
    "params.safetensors",
    "hyperparams.json",
    "checkpoints/final.safetensors",
)
# Of runs: what stands above the folder of one dictionary and names its model.
ABOVE = "config.json"
SUFFIXES = (".pt", ".npz")


@dataclass(frozen=True)
class Reference:
    """A place in a repository.

    Attributes:
        repo: `owner/name`.
        path: Folder or file there; empty for the whole of it.
        revision: Branch, tag or commit; None for the main branch.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    @property
    def patterns(self) -> list[str]:
        """Which files of the repository are needed."""
        here = PurePosixPath(self.path)
        if here.suffix in SUFFIXES:
            above = [here.parent, here.parent.parent]
            return [self.path, *(str(folder / ABOVE) for folder in dict.fromkeys(above))]
        above = [here.parent, here.parent.parent] if self.path else []
        return [str(here / name) for name in FILES] + [str(folder / ABOVE) for folder in dict.fromkeys(above)]

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


def reference_of(text: str) -> Reference | None:
    """What a text refers to on the hub: `hf:owner/name[@revision][/path]`, or part of Gemma Scope or Llama Scope.

    `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82` is under `google/`, `Llama3_1-8B-Base-L15R-8x` under the
    names of its own series. None for anything else.

    Raises:
        FormatError: a text that begins with `hf:` and is no such place.
    """
    if text.startswith(PREFIX):
        return _explicit(text)
    if re.match(r"(?:google/)?gemma-scope-[\w-]+/[\w/-]+$", text):
        repo, path = text.removeprefix("google/").split("/", 1)
        return Reference(f"google/{repo}", path.strip("/"))
    found = re.fullmatch(r"Llama3_1-8B-Base-L\d+(R|A|M|TC)-(8|32)x", text)
    if found is not None:
        return Reference(f"fnlp/Llama3_1-8B-Base-LX{found[1]}-{found[2]}x", text)
    return None


def _explicit(text: str) -> Reference:
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?:/(.*))?", text)
    if found is not None and found[2] is not None and "/" in found[2]:
        found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+?)@([\w.-]+)(?:/(.*))?", text)
    path = (found[3] or "").removesuffix("/") if found is not None else ""
    if found is None or any(part in ("", ".", "..") for part in path.split("/") if path):
        raise FormatError(f"expected hf:OWNER/NAME[@REVISION][/PATH], got {text!r:.100}")
    return Reference(found[1], path, found[2])


def fetched(reference: Reference) -> Path:
    """The place of a reference on this disk: fetched if the hub can be reached, else from its cache.

    Raises:
        FormatError: neither the hub nor the cache has it.
    """
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(reference.repo, revision=reference.revision, allow_patterns=reference.patterns))
    except Exception as error:  # requests, httpx, the operating system and the hub each have their own
        cached = _cached(reference)
        if cached is None:
            raise FormatError(_why(reference, error)) from error
        root = cached
    place = root / reference.path if reference.path else root
    if not place.exists():
        raise FormatError(f"{reference}: the repository has no {reference.path!r}, or no file there that is read")
    return place


def _cached(reference: Reference) -> Path | None:
    """The snapshot in the cache that holds some of the files, without asking anybody."""
    from huggingface_hub import try_to_load_from_cache

    for name in reference.patterns:
        if PurePosixPath(name).name == ABOVE and PurePosixPath(name).parent != PurePosixPath(reference.path):
            continue
        found = try_to_load_from_cache(reference.repo, name, revision=reference.revision)
        if isinstance(found, str):
            return Path(found).parents[len(PurePosixPath(name).parts) - 1]
    return None


def _why(reference: Reference, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return (
        f"{reference} is not in the cache, and the Hugging Face hub does not give it ({type(error).__name__}: {first})"
        "; check the name, or run once where the hub can be reached (HF_HUB_OFFLINE=0)"
    )
