"""What `dictionary.json` says: one definition for the writer and the reader."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WEIGHTS_FILE = "dictionary.safetensors"
RECORD_FILE = "dictionary.json"
MEAN_TENSOR = "normalization.mean"
FORMAT_VERSION = 1


class NormalizationRecord(BaseModel):
    """The scale of training; its mean is the tensor `normalization.mean`. Always folded into the weights."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scale: float = Field(gt=0, allow_inf_nan=False)
    folded: Literal[True] = True


class DictionaryRecord(BaseModel):
    """The whole of `dictionary.json`. Unknown keys are refused: a reader must never ignore what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["sparsight.dictionary"] = "sparsight.dictionary"
    format_version: Literal[1] = 1
    architecture: str
    config: dict[str, Any]
    d_in: int = Field(ge=1)
    n_latents: int = Field(ge=1)
    site: str | None
    model: str | None
    normalization: NormalizationRecord | None
    tensors: dict[str, list[int]]
    provenance: dict[str, Any]
