"""Parquet files, named fields and Hugging Face data sets to documents."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsight.activations import Document, documents_from_dataset, documents_from_files
from sparsight.errors import DataError

TEXTS = ["one\n\nstill one", "two", " ", "three"]
KEPT = [Document(0, "one\n\nstill one"), Document(1, "two"), Document(2, "three")]


def test_a_row_of_parquet_is_a_document(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": TEXTS, "n": [1, 2, 3, 4]}), path, row_group_size=2)
    assert list(documents_from_files([path], field="body")) == KEPT


def test_a_field_of_jsonl_is_chosen_by_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"body": text, "text": 1}) for text in TEXTS))
    assert list(documents_from_files([path], field="body")) == KEPT
    with pytest.raises(DataError, match=r'line 1 .* no "text" of type string'):
        list(documents_from_files([path]))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table({"body": ["x"]}), "no column 'text'; it has body"),
        (pa.table({"text": [1]}), "holds int64, expected strings"),
        (pa.table({"text": ["x", None]}), "row 1 of .* has no 'text'"),
        (pa.table({"text": [" "]}), "has no text"),
        (None, "cannot be read as Parquet"),
    ],
)
def test_a_parquet_file_that_does_not_fit_is_refused_in_one_line(tmp_path, table, says):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 but not really") if table is None else pq.write_table(table, path)
    with pytest.raises(DataError, match=says) as error:
        list(documents_from_files([path]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_loaded_data_set_gives_its_documents(streaming):
    dataset = datasets.Dataset.from_dict({"body": TEXTS})
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    assert list(documents_from_dataset(dataset, field="body")) == KEPT
    with pytest.raises(DataError, match="no column 'text'; it has body"):
        documents_from_dataset(dataset)


def test_a_folder_of_data_files_is_streamed_by_name(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    assert list(documents_from_dataset(str(tmp_path))) == KEPT
    with pytest.raises(DataError, match="split 'nowhere'"):
        documents_from_dataset(str(tmp_path), split="nowhere")


@pytest.mark.parametrize(
    "dataset", [{"train": ["x"]}, ["x"], datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["x"]})})]
)
def test_what_is_no_split_of_a_data_set_is_refused(dataset):
    with pytest.raises(DataError, match="one split of a loaded one"):
        documents_from_dataset(dataset)


def test_a_data_set_that_is_not_there_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be opened") as error:
        documents_from_dataset(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)


def test_a_text_that_is_no_string_is_named_by_row():
    with pytest.raises(DataError, match="row 1 of the data set has no 'text' of type string, got NoneType"):
        list(documents_from_dataset(datasets.Dataset.from_dict({"text": ["a", None]})))
