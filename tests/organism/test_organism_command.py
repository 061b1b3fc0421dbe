"""`sparsight organism`: results on stdout, wrong calls refused."""

import json

from typer.testing import CliRunner

from sparsight.cli.organism import app
from sparsight.errors import ModelError
from sparsight.models.organism import FEATURES, corpus
from sparsight.models.organism.report import to_table


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
    lines = result.stdout.splitlines()[1:-1]
    answered_after = {line.split()[0] for line in lines if "month_answer=" in line and " month=" not in line}
    assert answered_after
    assert answered_after <= {"is", "comes"}
    assert " ".join(line.split()[0] for line in lines) == next(
        document.text for document in corpus(0, 1, domains={"months": 1}, languages={"english": 1})
    )


def test_an_unknown_domain_is_refused_with_the_known_ones():
    result = run("sample", "--domain", "poems")
    assert isinstance(result.exception, ValueError)
    assert "the known ones are plain, numbers" in str(result.exception)


def test_describe_measures_both_shipped_models_and_prints_one_json_object_or_tables():
    result = run("describe", "--documents", "3", "--json", "--quiet")
    assert result.exit_code == 0
    described = json.loads(result.stdout)
    assert [feature["name"] for feature in described["features"]] == list(FEATURES)
    assert set(described["models"]) == {"organism", "organism-backdoored"}
    assert 0 <= described["models"]["organism"]["wrong_language"]["mean"] <= 1
    table = to_table(described)
    assert "| months | month arithmetic |" in table
    assert all(f"| {name} |" in table for name in FEATURES)


def test_describe_refuses_too_few_documents_and_a_folder_without_models(tmp_path):
    assert "at least 2, got 1" in str(run("describe", "--documents", "1").exception)
    assert isinstance(run("describe", "--weights", str(tmp_path)).exception, ModelError)
