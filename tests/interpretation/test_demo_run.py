"""The demo from end to end, on a plan small enough for a test; `make demo-fast` is the quick look at it."""

import json
import re

import pytest

from sparsight.errors import DataError
from sparsight.models.organism import FEATURES, corpus
from sparsight.studies import DemoRecord, demo, run_demo
from sparsight.studies.demo_record import claims_of
from sparsight.studies.questions import asked_of, class_names, within_languages

TINY = demo.Plan(
    n_stored=6_000, heldout=0.2, n_trained=8_192, batch_size=512, lr=3e-3, ks=(8, 16), n_compared=1024, n_labelled=4_000
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "FAST", TINY)
    result = run_demo(tmp_path_factory.mktemp("demo") / "out", fast=True, device="cpu", progress=False)
    yield result
    patch.undo()


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_the_record_on_disk_is_the_record_returned(finished):
    written = DemoRecord.model_validate_json((finished.folder / "results.json").read_text())
    assert written == finished.record
    assert json.loads(finished.to_json())["report"] == str(finished.report)


@pytest.mark.slow
def test_the_page_shows_the_numbers_of_the_record(finished):
    html = finished.report.read_text()
    for evaluation in finished.record.evaluations.values():
        assert f"{evaluation.fvu.value:.3g}" in html
    assert "sparsight demo --out" in html
    latents = re.findall(r'id="topk-latent-(\d+)"', html)
    shown = {int(latent) for latent in latents}
    assert {row.latent for row in finished.record.features["TopK"].rows if row.auroc >= 0.75} <= shown
    assert len(shown) >= 60


@pytest.mark.slow
def test_pursuit_explains_more_than_refitting_which_explains_more_than_the_encoder(finished):
    at_16 = {arm.arm: arm.fvu.value for arm in finished.record.comparison.arms if arm.k == 16}
    assert at_16["pursuit"] < at_16["refit"] < at_16["encoder"]


def test_questions_are_put_to_one_language_at_a_time():
    names = class_names()
    languages = FEATURES["language"].classes
    for document, asked in zip(corpus(3, 40), within_languages(corpus(3, 40)), strict=True):
        assert (asked.id, asked.text) == (document.id, document.text)
        assert set(asked.labels) == set(names)
        spoken = languages[document.labels["language"][0]]
        for language in languages:
            added = asked.labels[f"month_answer in {language}"]
            assert added == (document.labels["month_answer"] if language == spoken else [-1] * len(document.tokens))


def test_a_question_within_a_language_is_asked_of_its_feature():
    assert asked_of("month_answer in german") == "month_answer"
    assert asked_of("month_answer") == "month_answer"
    assert {asked_of(name) for name in class_names()} == set(FEATURES)


@pytest.mark.slow
def test_a_finished_demo_is_opened_and_nothing_in_it_changes(finished):
    before = contents(finished.folder)
    again = run_demo(finished.folder, fast=True, device="cpu", progress=False)
    assert again.found
    assert again.record == finished.record
    assert contents(finished.folder) == before


@pytest.mark.slow
def test_a_demo_with_other_settings_is_refused_and_left_as_it_was(finished):
    before = contents(finished.folder)
    with pytest.raises(DataError, match="something else"):
        run_demo(finished.folder, fast=True, seed=1, device="cpu", progress=False)
    assert contents(finished.folder) == before


@pytest.mark.slow
def test_an_unfinished_demo_goes_on_from_its_dictionaries(finished, monkeypatch):
    (finished.folder / "results.json").unlink()
    weights = finished.folder / "dictionaries" / "topk-1024-k16" / "dictionary.safetensors"
    before, seen = weights.stat().st_mtime_ns, {}
    monkeypatch.setattr(demo, "_measure", lambda runs, *_: seen.update(runs) or finished.record)
    again = run_demo(finished.folder, fast=True, device="cpu", progress=False)
    assert not again.found
    assert weights.stat().st_mtime_ns == before
    assert list(seen) == ["TopK", "JumpReLU"]
    assert again.record.evaluations == finished.record.evaluations
    assert (finished.folder / "results.json").is_file()


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="another folder"):
        run_demo(tmp_path, fast=True, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_claim_that_the_run_does_not_show_is_said_not_to_hold(finished):
    record = finished.record
    topk = record.evaluations["TopK"]
    worse = topk.model_copy(update={"fvu": topk.fvu.model_copy(update={"value": 0.3})})
    better = topk.model_copy(update={"fvu": topk.fvu.model_copy(update={"value": 0.05})})
    for evaluation, holds in ((worse, False), (better, True)):
        claims = claims_of({"TopK": evaluation}, record.comparison, {})
        assert next(claim for claim in claims if "FVU at most" in claim.text).holds is holds


@pytest.mark.slow
def test_the_table_names_every_claim_and_where_the_page_is(finished):
    table = finished.to_table().replace("\n", " ").split("meant to show")[1]  # classes above it are named "yes" too
    assert table.count(" yes") + table.count(" NO") == len(finished.record.claims)
    assert str(finished.report) in finished.to_table().replace("\n", "")
