"""Text files to documents."""

import json
from pathlib import Path

import pytest

from sparsight.activations import Document, documents_from_files
from sparsight.errors import DataError

WIKITEXT = """ 
 = First article = 
 
 Words of the first .
 
 = = A section = = 
 
 More of the first .
 a = b = c
 
 = Second = 
 
 Words of the second .
"""


def read(folder: Path, name: str, content: str | bytes) -> list[str]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [document.text for document in documents_from_files([path])]


def test_blank_lines_separate_documents(tmp_path):
    assert read(tmp_path, "a.txt", "\n\none\nstill one\n\n \n\ntwo\n") == ["one\nstill one", "two"]


def test_an_article_with_its_sections_is_one_document(tmp_path):
    first, second = read(tmp_path, "a.txt", WIKITEXT)
    assert first.startswith(" = First article =")
    assert "More of the first" in first
    assert "a = b = c" in first
    assert second.split() == ["=", "Second", "=", "Words", "of", "the", "second", "."]


@pytest.mark.parametrize(
    "line", [" = = Section = \n\n", " = Section = = \n\n", " = 2 = \nand more\n\n", "a\n = 2 = \n\n"]
)
def test_a_line_that_is_no_title_begins_no_document(tmp_path, line):
    assert len(read(tmp_path, "a.txt", WIKITEXT + "\n" + line + "text")) == 2


def test_text_before_the_first_title_is_a_document_of_its_own(tmp_path):
    assert len(read(tmp_path, "a.txt", "preface\n" + WIKITEXT)) == 3


def test_a_line_of_jsonl_is_a_document_whatever_it_contains(tmp_path):
    texts = ["one\n\nstill one", " = Title = "]
    lines = "\n".join(json.dumps({"text": text, "more": 1}) for text in texts)
    assert read(tmp_path, "a.jsonl", lines + "\n\n") == texts


def test_documents_are_numbered_across_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_text("three")
    documents = list(documents_from_files([tmp_path / "a.txt", str(tmp_path / "b.txt")]))
    assert documents == [Document(0, "one"), Document(1, "two"), Document(2, "three")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "no text"),
        ("a.txt", " \n\n", "no text"),
        ("a.jsonl", "", "no text"),
        ("a.txt", b"na\xefve", "not UTF-8 .byte 0xef"),
        ("a.jsonl", "{", "line 1 .* not JSON"),
        ("a.jsonl", '{"text": "fine"}\n{"txt": 1}', "line 2 .* no .text."),
        ("a.pdf", "%PDF", "expected .txt, .jsonl or .parquet"),
    ],
)
def test_a_file_that_is_not_text_is_refused(tmp_path, name, content, says):
    with pytest.raises(DataError, match=says):
        read(tmp_path, name, content)


def test_a_missing_file_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        documents_from_files([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match="no text file"):
        documents_from_files([])
