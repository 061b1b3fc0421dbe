"""The committed pages are what their committed records say."""

from pathlib import Path

import pytest

from sparsight.studies import STUDIES, StudyRecord
from sparsight.studies.study_page import study_page

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = sorted((DOCS / "studies").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_committed_page_shows_its_record(path: Path):
    record = StudyRecord.model_validate_json(path.read_text(encoding="utf-8"))
    assert path.stem == record.name
    assert record.name in STUDIES
    page = study_page(record, figure=f"../images/studies/{record.name}.png")
    assert path.with_suffix(".md").read_text(encoding="utf-8") == page
    assert (DOCS / "images" / "studies" / f"{record.name}.png").is_file()
    assert not record.settings["fast"]
