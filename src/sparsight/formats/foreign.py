"""The formats that dictionaries come in, and reading whichever a folder holds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import FormatError
from sparsight.formats import dictionary_learning, gemma_scope, llama_scope, native, openai, saelens, sparsify
from sparsight.formats.published import fetched, reference_of


@dataclass(frozen=True)
class Format:
    """One project's way of keeping a dictionary on disk.

    Attributes:
        name: As users write it.
        can_read: Whether files there have the names this format gives them. Opens no weights.
        read: The dictionary that is there; `FormatError` for whatever cannot be carried over, by name.
        write: Write a dictionary there; `FormatError` for what the format cannot hold. None for formats only read.
    """

    name: str
    can_read: Callable[[Path], bool]
    read: Callable[[Path], AbstractDictionary]
    write: Callable[[AbstractDictionary, Path], None] | None


# In the order in which a folder is tried. A new format joins by one entry.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("sparsight", native.can_read, native.read, native.write),
        Format("saelens", saelens.can_read, saelens.read, saelens.write),
        Format(
            "dictionary_learning", dictionary_learning.can_read, dictionary_learning.read, dictionary_learning.write
        ),
        Format("sparsify", sparsify.can_read, sparsify.read, sparsify.write),
        Format("gemma_scope", gemma_scope.can_read_npz, gemma_scope.read_1, gemma_scope.write_1),
        Format("gemma_scope_2", gemma_scope.can_read_safetensors, gemma_scope.read_2, gemma_scope.write_2),
        Format("llama_scope", llama_scope.can_read, llama_scope.read, llama_scope.write),
        Format("openai", openai.can_read, openai.read, None),
    )
}


def load_dictionary(folder: str | Path) -> AbstractDictionary:
    """Read a dictionary: ours, or one that another project wrote, on this disk or published on the Hugging Face hub.

    Which format it is follows from the names of the files (docs/formats.md). Everything is checked before anything is
    returned. What another project kept and a dictionary here cannot hold is refused by name; what it is called there is
    kept in `provenance`.

    Args:
        folder: Folder of a dictionary, or a file where a format is one file. What is not on this disk may be named as
            on the hub, such as `hf:owner/name/path` or `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`: its
            files are fetched, or taken from the cache.
    Returns:
        The dictionary on the CPU, its parameters frozen: it takes raw activations. Call `requires_grad_(True)` on it to
        train it further.
    Raises:
        FormatError: the folder is missing or damaged, or does not hold what it claims to hold, or the hub does not give
            it.
    """
    path = Path(folder)
    reference = reference_of(str(folder)) if not path.exists() else None
    if reference is not None:
        path = fetched(reference)
    dictionary = _read(path)
    if reference is not None:
        dictionary.provenance.setdefault("published_as", str(reference))
    return dictionary


def format_of(path: Path) -> Format | None:
    """The format whose files are there."""
    return next((found for found in FORMATS.values() if found.can_read(path)), None)


def _read(path: Path) -> AbstractDictionary:
    found = format_of(path)
    try:
        return native.read(path) if found is None else found.read(path)  # without one, it says what is missing
    except MemoryError as error:
        raise FormatError(f"{path} asks for more memory than there is; read it on a larger machine") from error
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise FormatError(f"{path} asks for more memory than there is; read it on a larger machine") from error


def write_dictionary_as(dictionary: AbstractDictionary, path: str | Path, name: str) -> None:
    """Write a dictionary in one of `FORMATS`.

    Raises:
        ValueError: there is no such format, or it is only read.
        FormatError: the format cannot hold the dictionary, or the folder cannot be written.
    """
    write = FORMATS[name].write if name in FORMATS else None
    if write is None:
        writable = ", ".join(f.name for f in FORMATS.values() if f.write is not None)
        raise ValueError(f"format must be one of {writable}, got {name!r}")
    write(dictionary, Path(path))
