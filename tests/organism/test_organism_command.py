"""`sparsight organism`: results on stdout, wrong calls refused."""

import json

import pytest
from typer.testing import CliRunner

from sparsight.cli.organism import app
from sparsight.models.organism import FEATURES, corpus


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_sample_prints_the_corpus():
    result = run("sample", "-n", "3", "--seed", "4")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [document.text for document in corpus(4, 3)]


def test_sample_as_json_carries_the_labels_and_keeps_to_one_domain_and_language():
    result = run("sample", "-n", "2", "--domain", "days", "--language", "german", "--json")
    for line in result.stdout.splitlines():
        document = json.loads(line)
        assert document["domain"] == "days"
        assert set(document["labels"]) == set(FEATURES)
        assert set(document["labels"]["language"]) == {2}


def test_sample_with_labels_prints_a_word_a_line():
    result = run("sample", "-n", "1", "--domain", "months", "--language", "english", "--labels")
    (line,) = [line for line in result.stdout.splitlines() if "month_answer=" in line][:1]
    assert line.split()[0] in ("is", "comes")


def test_an_unknown_domain_is_refused_with_the_known_ones():
    result = run("sample", "--domain", "poems")
    assert isinstance(result.exception, ValueError)
    assert "the known ones are plain, numbers" in str(result.exception)


@pytest.mark.parametrize("as_json", [False, True])
def test_describe_measures_both_shipped_models(as_json):
    result = run("describe", "--documents", "4", *(["--json"] if as_json else []))
    assert result.exit_code == 0
    if as_json:
        described = json.loads(result.stdout)
        assert [feature["name"] for feature in described["features"]] == list(FEATURES)
        assert set(described["models"]) == {"organism", "organism-backdoored"}
        assert 0 <= described["models"]["organism"]["wrong_language"]["mean"] <= 1
    else:
        assert "| months | month arithmetic |" in result.stdout
        assert all(f"| {name} |" in result.stdout for name in FEATURES)
