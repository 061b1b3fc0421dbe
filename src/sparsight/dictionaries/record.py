"""What `dictionary.json` says: one definition for the writer and the reader."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WEIGHTS_FILE = "dictionary.safetensors"
RECORD_FILE = "dictionary.json"
MEAN_TENSOR = "normalization.mean"
FORMAT_VERSION = 1


Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NormalizationRecord(BaseModel):
    """The scale of training; its mean is the tensor `normalization.mean`. Always folded into the weights.

    A dictionary of several sites has one scale for each.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    scale: Scale | list[Scale]
    folded: Literal[True] = True


class PlaceRecord(BaseModel):
    """One of the sites of a dictionary of several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    width: int = Field(ge=1)
    site: str | None
    model: str | None


class DictionaryRecord(BaseModel):
    """The whole of `dictionary.json`. Unknown keys are refused: a reader must never ignore what it does not know.

    `places` is there for dictionaries of several sites only.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["sparsight.dictionary"] = "sparsight.dictionary"
    format_version: Literal[1] = 1
    architecture: str
    config: dict[str, Any]
    d_in: int = Field(ge=1)
    n_latents: int = Field(ge=1)
    site: str | None
    model: str | None
    places: list[PlaceRecord] | None = None
    normalization: NormalizationRecord | None
    tensors: dict[str, list[int]]
    provenance: dict[str, Any]

    def to_json(self) -> str:
        """What the file holds."""
        return self.model_dump_json(indent=2, exclude={"places"} if self.places is None else None) + "\n"
