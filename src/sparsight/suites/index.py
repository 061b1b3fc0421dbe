"""The index of a suite, `suite.json` and `suite.parquet`: every member's configuration, folder and measurements."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsight.dictionaries import AbstractDictionary
from sparsight.dictionaries.files import flush_to_disk, readable_os_errors, temporary
from sparsight.errors import FormatError
from sparsight.evaluation import Evaluation
from sparsight.evaluation.record import TOKEN_POLICY
from sparsight.formats import load_dictionary
from sparsight.suites.frontier import on_frontier
from sparsight.suites.plan import MemberPlan, SuitePlan

INDEX_FILE, TABLE_FILE = "suite.json", "suite.parquet"
# Number of any kind: JSON writes 16.0 and 16 alike.
Number = float | int


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measured(_Record):
    """What was measured on the held-out documents. Definitions: `conventions` in each member's `evaluation.json`.

    Attributes:
        n_tokens, n_documents: Measured on.
        fvu, fvu_low, fvu_high: Fraction of variance unexplained, with its 95 % interval over documents.
        l0, l0_median: Active latents per token, mean and median.
        dead: Share of latents active in none of the tokens.
        dense: Share of latents active in more than a tenth of the tokens.
        cosine: Of activation and reconstruction, mean over tokens, about the origin.
        relative_norm: `sqrt(E|x_hat|^2 / E|x|^2)`; None where every reconstruction is zero.
        loss: Next-token loss of the untouched model, nats; None, like all below, for a model without one.
        loss_added, loss_added_low, loss_added_high: Added by putting the reconstruction in the place of the site.
        loss_added_by_zero, loss_added_by_mean: Added by putting zero, or the mean, there.
        loss_recovered: `1 - loss_added / loss_added_by_zero`; None where zero adds no loss.
        kl: Divergence of the predictions from the untouched model's.
        no_loss_because: Why there is none.
    """

    n_tokens: int
    n_documents: int
    fvu: Number
    fvu_low: Number | None
    fvu_high: Number | None
    l0: Number
    l0_median: int
    dead: Number
    dense: Number
    cosine: Number
    relative_norm: Number | None
    loss: Number | None
    loss_added: Number | None
    loss_added_low: Number | None
    loss_added_high: Number | None
    loss_added_by_zero: Number | None
    loss_added_by_mean: Number | None
    loss_recovered: Number | None
    kl: Number | None
    no_loss_because: str | None


class SuiteMember(_Record):
    """One dictionary of a suite.

    Attributes:
        site, layer, kind: Where its activations were read.
        d_in, n_latents: Widths of activations and dictionary.
        target_l0: Active latents per token that were asked for.
        config: Its configuration, as in its `dictionary.json`.
        scale: Of the normalisation `(x - mean) * scale` under which it was trained, folded into its weights.
        folder: Relative to the suite, with forward slashes.
        frontier: Whether no other member of its site has a lower L0 and a lower FVU.
        measured: On held-out documents.
    """

    site: str
    layer: int | None
    kind: str
    d_in: int = Field(ge=1)
    n_latents: int = Field(ge=1)
    target_l0: Number
    config: dict[str, Any]
    scale: Number
    folder: str
    frontier: bool
    measured: Measured


class SuiteRecord(_Record):
    """The whole of `suite.json`. It holds no times and no paths: the same suite made twice has the same index."""

    format: Literal["sparsight suite"] = "sparsight suite"
    format_version: Literal[1] = 1
    model: str
    architecture: str
    settings: dict[str, Any]
    token_policy: str = TOKEN_POLICY
    members: list[SuiteMember] = Field(min_length=1)


@dataclass(frozen=True)
class Suite:
    """A finished suite.

    Attributes:
        folder: Holds `suite.json`, `suite.parquet`, `report.html` and the members.
        record: The index.
    """

    folder: Path
    record: SuiteRecord

    @property
    def members(self) -> list[SuiteMember]:
        return self.record.members

    def load(self, member: SuiteMember) -> AbstractDictionary:
        """The dictionary of a member."""
        return load_dictionary(self.folder / member.folder)

    def to_json(self) -> str:
        """The index, with the folder."""
        return json.dumps({"folder": str(self.folder), **self.record.model_dump(mode="json")}, indent=1)


def read_suite(folder: str | Path) -> Suite:
    """Open a finished suite.

    Raises:
        FormatError: there is none, it is unfinished, its index is damaged, or a member is missing.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    if not path.is_file():
        unfinished = (folder / "plan.json").is_file()
        raise FormatError(
            f"the suite {folder} is unfinished; go on with suite(..., resume=True) or --resume"
            if unfinished
            else f"no suite at {folder}: it has no {INDEX_FILE}; check the path, or make one with `sparsight suite`"
        )
    try:
        record = SuiteRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise FormatError(
            f"{path} is damaged: {where}: {first['msg']}; remove it and resume the suite: it is made again "
            "from the members' measurements"
        ) from None
    for member in record.members:
        if not (folder / member.folder / "dictionary.json").is_file():
            raise FormatError(
                f"{path} names {member.folder}, which is not there; remove {INDEX_FILE} and resume the suite"
            )
    return Suite(folder, record)


def index_of(plan: SuitePlan, folder: Path, evaluations: list[Evaluation]) -> SuiteRecord:
    """The index of members whose measurements are these, in the order of the plan."""
    measured = [measured_of(evaluation) for evaluation in evaluations]
    frontier: dict[str, bool] = {}
    for site in {member.site for member in plan.members}:
        here = [(m, e) for m, e in zip(plan.members, measured, strict=True) if m.site == site]
        best = on_frontier([(e.l0, e.fvu) for _, e in here])
        frontier |= {m.folder: flag for (m, _), flag in zip(here, best, strict=True)}
    return SuiteRecord(
        model=plan.settings["model"],
        architecture=plan.settings["architecture"],
        settings=json.loads(json.dumps(plan.settings)),
        members=[_member(m, folder, e, frontier[m.folder]) for m, e in zip(plan.members, measured, strict=True)],
    )


def _member(member: MemberPlan, folder: Path, measured: Measured, frontier: bool) -> SuiteMember:
    described = json.loads((folder / member.folder / "dictionary.json").read_text(encoding="utf-8"))
    return SuiteMember(
        site=str(member.site),
        layer=member.site.layer,
        kind=member.site.kind,
        d_in=described["d_in"],
        n_latents=member.n_latents,
        target_l0=member.target_l0,
        config=described["config"],
        scale=described["normalization"]["scale"],
        folder=member.folder,
        frontier=frontier,
        measured=measured,
    )


def measured_of(e: Evaluation) -> Measured:
    """The numbers of an evaluation that an index lists."""
    loss = e.loss
    return Measured(
        n_tokens=e.n_tokens,
        n_documents=e.n_documents,
        fvu=e.fvu.value,
        fvu_low=e.fvu.low,
        fvu_high=e.fvu.high,
        l0=e.l0.mean.value,
        l0_median=e.l0.median,
        dead=e.density.dead_fraction,
        dense=e.density.dense_fraction,
        cosine=e.cosine.value,
        relative_norm=None if e.shrinkage is None else e.shrinkage.nu,
        loss=None if loss is None else loss.clean,
        loss_added=None if loss is None else loss.added.value,
        loss_added_low=None if loss is None else loss.added.low,
        loss_added_high=None if loss is None else loss.added.high,
        loss_added_by_zero=None if loss is None else loss.added_by_zero.value,
        loss_added_by_mean=None if loss is None else loss.added_by_mean.value,
        loss_recovered=None if loss is None or loss.fraction_of_zero is None else 1 - loss.fraction_of_zero.value,
        kl=None if loss is None else loss.kl.value,
        no_loss_because=e.no_loss_because,
    )


def write_index(folder: Path, record: SuiteRecord) -> None:
    """Write both files, each whole or not at all, `suite.json` last: its presence says that the suite is finished."""
    with readable_os_errors(folder / TABLE_FILE), temporary(folder / TABLE_FILE) as partial:
        _write_table(partial, record)
        os.replace(partial, folder / TABLE_FILE)
    with readable_os_errors(folder / INDEX_FILE), temporary(folder / INDEX_FILE) as partial:
        partial.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        flush_to_disk(partial)
        os.replace(partial, folder / INDEX_FILE)


COLUMNS = {
    "model": "VARCHAR",
    "architecture": "VARCHAR",
    "site": "VARCHAR",
    "layer": "INTEGER",
    "kind": "VARCHAR",
    "d_in": "INTEGER",
    "n_latents": "INTEGER",
    "target_l0": "DOUBLE",
    "config": "VARCHAR",
    "scale": "DOUBLE",
    "folder": "VARCHAR",
    "frontier": "BOOLEAN",
} | {
    name: {"no_loss_because": "VARCHAR", "n_tokens": "BIGINT", "n_documents": "BIGINT", "l0_median": "INTEGER"}.get(
        name, "DOUBLE"
    )
    for name in Measured.model_fields
}
"""Columns of `suite.parquet` and their types in SQL: one row per member; `config` is JSON."""


def _write_table(path: Path, record: SuiteRecord) -> None:
    import duckdb

    def row(m: SuiteMember) -> list[Any]:
        flat = {**m.model_dump(exclude={"measured"}), **m.measured.model_dump(), "config": json.dumps(m.config)}
        flat |= {"model": record.model, "architecture": record.architecture}
        return [flat[name] for name in COLUMNS]

    with duckdb.connect() as database:
        database.execute("SET threads = 1")
        database.execute(f"CREATE TABLE members ({', '.join(f'{n} {t}' for n, t in COLUMNS.items())})")
        database.executemany(
            f"INSERT INTO members VALUES ({', '.join('?' * len(COLUMNS))})", [row(m) for m in record.members]
        )
        target = str(path).replace("'", "''")
        database.execute(f"COPY members TO '{target}' (FORMAT parquet)")
