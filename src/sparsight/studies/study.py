"""Run a study from its name to its page."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from sparsight.errors import DataError
from sparsight.studies.drawing import write_drawing
from sparsight.studies.record import StudyRecord
from sparsight.studies.registry import find_study
from sparsight.studies.study_page import study_page
from sparsight.studies.work import RECORD_FILE, Options, Work, claim, write_whole


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        folder: Holds `study.json`, `figure.svg`, `figure.png` and `page.md`.
        record: What `study.json` says.
        found: Whether the folder held it already, so that nothing was computed.
    """

    folder: Path
    record: StudyRecord
    found: bool = False


def run_study(
    name: str, out: str | Path, options: Options | None = None, *, resume: bool = False, progress: bool = False
) -> StudyResult:
    """Answer the question of a study and write its record, drawing and page.

    The rule for `out`: an absent or empty folder is filled; a finished study with the same settings is opened as it is;
    an unfinished one goes on from its finished parts when `resume` is set; anything else is refused and left as it was.

    Args:
        name: One of `STUDIES`.
        out: Folder to write.
        options: What the caller chose; the defaults when None.
        resume: Go on with an unfinished study.
        progress: Report on stderr.
    Raises:
        ValueError: there is no such study.
        DataError: `out` holds something else.
    """
    study, folder, options = find_study(name), Path(out), options or Options()
    settings = options.settings(name)
    if claim(folder, settings, resume=resume):
        return StudyResult(folder, read_record(folder), found=True)
    work = Work(folder, options, progress=progress)
    findings = study.run(work)
    record = StudyRecord(
        **findings.model_dump(),
        name=study.name,
        question=study.question,
        source=study.source,
        settings=settings,
        seed=options.seed,
        seconds=work.seconds,
        version=version("sparsight"),
        command=options.command(name),
    )
    write_drawing(record.figures, study.question, folder)
    write_whole(folder / "page.md", study_page(record).rstrip("\n"))
    write_whole(folder / RECORD_FILE, record.to_json())  # last: its presence says that the study is finished
    return StudyResult(folder, record)


def read_record(folder: str | Path) -> StudyRecord:
    """The record of a finished study.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: {folder} holds no finished study")
    try:
        return StudyRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged: {first}; remove it to write it again from the finished parts") from error


def publish(folder: str | Path, docs: str | Path) -> None:
    """Copy a finished study into the documentation: `studies/NAME.md`, `studies/NAME.json`, `images/studies/NAME.png`.

    Raises:
        DataError: the folder holds no finished study.
    """
    record, docs = read_record(folder), Path(docs)
    (docs / "studies").mkdir(parents=True, exist_ok=True)
    (docs / "images" / "studies").mkdir(parents=True, exist_ok=True)
    page = study_page(record, figure=f"../images/studies/{record.name}.png")
    write_whole(docs / "studies" / f"{record.name}.md", page.rstrip("\n"))
    write_whole(docs / "studies" / f"{record.name}.json", record.to_json())
    (docs / "images" / "studies" / f"{record.name}.png").write_bytes((Path(folder) / "figure.png").read_bytes())
