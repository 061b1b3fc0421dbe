"""The weights that ship inside the package."""

from pathlib import Path
from typing import TYPE_CHECKING

from sparsight.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NAMES = ("organism", "organism-backdoored")
_WEIGHTS = Path(__file__).parent / "weights"


def shipped_folder(name: str) -> Path:
    """Hugging Face folder of a shipped model.

    Raises:
        ValueError: no model of this name ships.
        ModelError: the installed package has lost its weights.
    """
    if name not in NAMES:
        raise ValueError(f"expected one of {', '.join(NAMES)}, got {name!r}")
    folder = _WEIGHTS / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"no weights in {folder}; reinstall sparsight, or rebuild them with `sparsight organism train`"
        )
    return folder


def load_folder(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast"]:
    """The model and the tokenizer of a folder that ships or that `train_organism` wrote, on the CPU."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ModelError(
            f"expected a model folder with a config.json, got {folder}; name one that `organism train` wrote"
        )
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
