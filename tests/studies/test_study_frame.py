"""The frame of studies: names, records, parts, resuming, refusals; on a study of one second."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from sparsight.cli import main
from sparsight.errors import DataError
from sparsight.studies import (
    STUDIES,
    Effect,
    Findings,
    Line,
    Options,
    Panel,
    Study,
    Table,
    Verdict,
    Work,
    find_study,
    publish,
    read_record,
    run_study,
)

EFFECT = Effect(name="heads", value=0.5, low=0.4, high=0.6, n=100, unit="share of tosses")


def findings(value: float) -> Findings:
    return Findings(
        verdicts=[
            Verdict(
                question="Is it fair?",
                answer="yes",
                because="The interval holds 0.5.",
                effects=[EFFECT.model_copy(update={"value": value})],
                would_change="1,000 tosses with 600 heads.",
            )
        ],
        tables=[Table(title="Tosses", columns=["what", "n"], rows=[["heads", 50], ["tails | edges", 50]])],
        figures=[Panel(title="Share", x_label="toss", y_label="share", lines=[Line(name="a", x=[1, 2], y=[0.4, 0.5])])],
        caption="Share of heads.",
        method=["A coin was tossed."],
        limits=["One coin."],
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study named "coin" of two parts, the second of which fails while "broken" is in the list of its calls."""
    made: list[str] = []

    def run(work: Work) -> Findings:
        first = work.part("toss", lambda: made.append("toss") or {"heads": 50, "of": (50, 50)})

        def count() -> float:
            made.append("count")
            if "broken" in made:
                raise KeyboardInterrupt
            return first["heads"] / sum(first["of"])

        return findings(work.part("count", count))

    module = ModuleType("coin_study")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coin_study", module)
    monkeypatch.setitem(STUDIES, "coin", Study("coin", "Is the coin fair?", "a gambler", "coin_study"))
    return made


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_a_study_writes_its_record_drawing_and_page_and_prints_its_verdict(calls, tmp_path, capsys):
    out = tmp_path / "coin"
    assert run("study", "coin", "--out", out, "--seed", 3, "--quiet") == 0
    printed = capsys.readouterr()
    assert "YES: The interval holds 0.5." in printed.out
    assert printed.err == ""
    record = read_record(out)
    assert (record.seed, record.settings["fast"], record.command) == (3, False, "sparsight study coin --seed 3")
    page = (out / "page.md").read_text()
    assert "**Yes.** The interval holds 0.5." in page
    assert "tails \\| edges" in page
    assert (out / "figure.svg").read_text().startswith("<?xml")
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_study_gives_the_same_drawing(calls, tmp_path):
    first, second = run_study("coin", tmp_path / "a"), run_study("coin", tmp_path / "b")
    for name in ("figure.svg", "figure.png"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_a_finished_study_is_opened_and_not_done_again(calls, tmp_path, capsys):
    assert run("study", "coin", "--out", tmp_path / "c", "--json", "--quiet") == 0
    first = json.loads(capsys.readouterr().out)
    assert run("study", "coin", "--out", tmp_path / "c", "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert calls == ["toss", "count"]


def test_an_interrupted_study_goes_on_from_its_finished_parts_when_asked(calls, tmp_path, capsys):
    calls.append("broken")
    out = tmp_path / "c"
    assert run("study", "coin", "--out", out, "--quiet") == 130
    calls.remove("broken")
    assert run("study", "coin", "--out", out, "--quiet") == 1
    assert "--resume" in capsys.readouterr().err
    assert run("study", "coin", "--out", out, "--quiet", "--resume") == 0
    assert calls == ["toss", "count", "count"]
    assert set(read_record(out).seconds) == {"toss", "count"}


@pytest.mark.parametrize("changed", [{"seed": 1}, {"fast": True}, {"model": "organism-backdoored"}])
def test_other_settings_are_refused_and_nothing_is_touched(calls, tmp_path, changed):
    run_study("coin", tmp_path / "c")
    before = {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=next(iter(changed))):
        run_study("coin", tmp_path / "c", Options(**changed), resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "c").rglob("*") if p.is_file()} == before


def test_a_text_that_changed_is_another_setting(calls, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one\n")
    options = Options(texts=(text,))
    run_study("coin", tmp_path / "c", options)
    text.write_text("two\n")
    with pytest.raises(DataError, match="texts"):
        run_study("coin", tmp_path / "c", options)
    text.unlink()
    with pytest.raises(DataError, match=r"text\.txt"):
        run_study("coin", tmp_path / "c", options)


def test_a_folder_of_something_else_is_refused(calls, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds no study"):
        run_study("coin", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"value": 1}', "\x00"])
def test_a_damaged_part_is_named_and_not_used(calls, tmp_path, content):
    calls.append("broken")
    with pytest.raises(KeyboardInterrupt):
        run_study("coin", tmp_path / "c")
    calls.remove("broken")
    (tmp_path / "c" / "parts" / "toss.json").write_text(content)
    with pytest.raises(DataError, match=r"toss\.json"):
        run_study("coin", tmp_path / "c", resume=True)


def test_a_damaged_record_is_named(calls, tmp_path):
    run_study("coin", tmp_path / "c")
    path = tmp_path / "c" / "study.json"
    path.write_text(path.read_text().replace('"yes"', '"perhaps"'))
    with pytest.raises(DataError, match=r"study\.json"):
        run_study("coin", tmp_path / "c")


def test_an_unknown_study_is_a_wrong_call_that_lists_the_known_ones(calls, capsys, tmp_path):
    assert run("study", "dice", "--out", tmp_path / "d") == 2
    assert "coin" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert run("study") == 2
    assert "coin" in capsys.readouterr().err


def test_the_list_imports_no_study(calls, capsys, monkeypatch):
    monkeypatch.setitem(STUDIES, "absent", Study("absent", "Where?", "nobody", "no_such_module"))
    assert run("study", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("Is the coin fair? (a gambler)" in line for line in lines)
    assert len(lines) == len(STUDIES)


def test_publishing_puts_page_record_and_figure_where_the_docs_look(calls, tmp_path):
    publish(run_study("coin", tmp_path / "c").folder, tmp_path / "docs")
    page = tmp_path / "docs" / "studies" / "coin.md"
    assert "../images/studies/coin.png" in page.read_text()
    assert (page.parent / "../images/studies/coin.png").is_file()
    assert json.loads((page.parent / "coin.json").read_text())["name"] == "coin"
    with pytest.raises(DataError, match="no finished study"):
        publish(tmp_path / "docs", tmp_path / "elsewhere")


def test_a_part_must_be_finite_json_under_a_plain_name(tmp_path):
    work = Work(tmp_path, Options())
    with pytest.raises(ValueError, match="JSON compliant"):
        work.part("p", lambda: float("nan"))
    assert not list((tmp_path / "parts").glob("*"))
    for name in ("", "../x", "a b", ".hidden"):
        with pytest.raises(ValueError, match="name"):
            work.part(name, lambda: 1)


def test_every_registered_study_has_a_module_with_run():
    for study in STUDIES.values():
        assert study.module.startswith("sparsight.studies.")
        path = Path(__file__).parents[2] / "src" / (study.module.replace(".", "/") + ".py")
        assert "\ndef run(work: Work) -> Findings:" in path.read_text(), study.name
        assert find_study(study.name) is study


@pytest.mark.parametrize("answer", ["maybe", "Yes", "depends on ", "no!"])
def test_a_verdict_has_one_of_four_answers(answer):
    with pytest.raises(ValidationError):
        Verdict(question="?", answer=answer, because="x", effects=[EFFECT], would_change="x")


def test_records_refuse_numbers_that_are_none_and_shapes_that_do_not_fit():
    for wrong in ({"value": float("nan")}, {"low": None}, {"low": 0.7}, {"n": 0}):
        with pytest.raises(ValidationError):
            Effect(**{**EFFECT.model_dump(), **wrong})
    with pytest.raises(ValidationError, match="2 cells"):
        Table(title="t", columns=["a", "b"], rows=[[1]])
    with pytest.raises(ValidationError, match="one length"):
        Line(name="l", x=[1, 2], y=[1.0])
