"""What every record on disk shares."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of what is written to disk: nothing unknown is accepted, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)
