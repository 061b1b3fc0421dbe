"""From a name to a `LanguageModel`."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sparsight.errors import ModelError
from sparsight.models.families import known_family, model_types
from sparsight.models.language_model import LanguageModel

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | Mapping[str, str | int] = "auto",
    dtype: str = "float32",
    offload_folder: str | Path | None = None,
) -> LanguageModel:
    """Load a model by name, ready to be read and edited.

    Weights are frozen (`requires_grad` is off): gradients reach edits, not weights. To train the weights, turn it on
    with `lm.model.requires_grad_(True)`. No code that comes with a model is ever run.

    Args:
        name: "organism" or "organism-backdoored" (they ship with the package), a folder as transformers writes it, or
            an id on the Hugging Face hub.
        device: "cpu", "cuda", "cuda:N"; "auto" takes CUDA where there is one. A model too large for one device:
            "balanced" spreads it over all GPUs, then the CPU (needs the package accelerate); or a map from modules to
            devices, "cpu" or "disk", as transformers takes it. Activations then come on the device of their layer.
        dtype: "float32", "bfloat16" or "float16", whatever the file has.
        offload_folder: Where modules that the map sends to "disk" are kept.
    Raises:
        ModelError: nothing loads under this name, its family is unknown, or the device is not there.
        ValueError: the dtype or the device is not one.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    spread = _spread(device, offload_folder)
    where = None if spread else _device(device)
    source = _source(str(name))
    with _quiet():
        causal = _is_causal(_read_config(source, str(name)), str(name))
        tokenizer = _read_tokenizer(source, str(name))
        model = _read_weights(source, str(name), causal=causal, dtype=DTYPES[dtype], **spread)
    model = model.requires_grad_(False)
    return LanguageModel(model if where is None else model.to(where), tokenizer, name=str(name))


def _spread(device: str | torch.device | Mapping[str, str | int], offload_folder: str | Path | None) -> dict[str, Any]:
    """What transformers must be told to put a model on several devices; nothing for one device."""
    if not isinstance(device, Mapping) and device != "balanced":
        return {}
    if find_spec("accelerate") is None:
        raise ModelError("a model on several devices needs the package accelerate; pip install accelerate")
    spread: dict[str, Any] = {"device_map": dict(device) if isinstance(device, Mapping) else device}
    return spread if offload_folder is None else {**spread, "offload_folder": str(offload_folder)}


def _device(device: Any) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {str(device)!r}") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"no such device: {where} (this machine has {torch.cuda.device_count()}); try device='cpu'")
    return where


def _source(name: str) -> str:
    """The folder or hub id that a name stands for."""
    from sparsight.models.organism.shipped import NAMES, shipped_folder

    if name in NAMES:
        return str(shipped_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"expected a model folder with a config.json, got {name}; save one with save_pretrained")
        return str(folder)
    if folder.exists():
        raise ModelError(f"expected a model folder, got the file {name}; name the folder it lies in")
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"no model folder at {name}; give an existing folder, a hub id such as EleutherAI/pythia-70m, or one of "
            f"{', '.join(NAMES)}"
        )
    return name


def _read_config(source: str, name: str) -> str:
    """The model type that config.json declares."""
    from transformers import PretrainedConfig

    try:
        settings, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise _refused(name, "config.json", error) from error
        raise ModelError(
            f"no model folder {name} here, and the Hugging Face hub does not give it ({_first_line(error)}); "
            "give an existing folder, or a hub id that is cached or can be reached"
        ) from error
    model_type = settings.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"config.json of {name} has no model_type; it must be a transformers model")
    return model_type


def _read_tokenizer(source: str, name: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # For some model types transformers 5 puts a class of its own in the place of a plain tokenizer.json (seen: qwen2),
    # and with it other words. A folder that declares the plain class gets it.
    plain = _declared_tokenizer(Path(source)) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    loader = PreTrainedTokenizerFast if plain else AutoTokenizer
    try:
        return loader.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged tokenizer.json
        raise _refused(name, "its tokenizer", error) from error


def _declared_tokenizer(folder: Path) -> Any:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged: transformers says which
        return None
    return settings.get("tokenizer_class") if isinstance(settings, dict) else None


def _is_causal(model_type: str, name: str) -> bool:
    """Whether to load a model of this type with a head that predicts the next token.

    Raises:
        ModelError: it is of no known family, and transformers has no such head for it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = known_family(model_type)
    if family is not None:
        return family.has_causal_loss
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"no family for model type {model_type!r} of {name}, and transformers has no causal model of that type; "
            f"known: {', '.join(model_types())}, and the residual stream of other causal models"
        )
    return True


def _read_weights(source: str, name: str, *, causal: bool, **settings: Any) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    loader = AutoModelForCausalLM if causal else AutoModel
    if not causal:
        settings["add_pooling_layer"] = False
    try:
        model, info = loader.from_pretrained(source, trust_remote_code=False, output_loading_info=True, **settings)
    except Exception as error:  # whatever transformers or safetensors makes of a damaged file
        raise _refused(name, "its weights", error) from error
    # transformers fills what is missing with random numbers and goes on; such a model must not pass for the real one.
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelError(f"the weights of {name} lack {len(missing)} tensors ({some}); the file is not of this model")
    return _text_part(model)


def _text_part(model: Any) -> Any:
    """The language model inside a Gemma 3 that also sees pictures; any other model as it is."""
    if model.config.model_type != "gemma3":
        return model
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        text = Gemma3ForCausalLM(model.config.text_config)
    text.model, text.lm_head = model.model.language_model, model.lm_head
    text.generation_config = model.generation_config
    return text


def _refused(name: str, what: str, error: Exception) -> ModelError:
    return ModelError(f"cannot load {what} of {name}: {_first_line(error)}; the files are damaged, or not of one model")


def _first_line(error: Exception) -> str:
    """One line of whatever transformers had to say."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".:") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' reports and bars off the terminal: what matters in them is raised here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
