"""Codes of a whole store in one file: the same codes, the same bytes after a crash, and what is refused."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, topk_dictionary

from sparsight.coding import gradient_pursuit
from sparsight.errors import StoreError
from sparsight.evaluation.code_file import CodeFile, iterate_codes, write_codes


@pytest.fixture(scope="module")
def store():
    return MemoryStore(*activations())


@pytest.fixture(scope="module")
def dictionary():
    return topk_dictionary(site=SITE, model="tiny")


class Breaks(MemoryStore):
    """A store whose rows cannot be read beyond a point."""

    def rows(self, site, rows):
        if rows.start >= 300:
            raise OSError("the disk went away")
        return super().rows(site, rows)


def test_the_file_holds_the_dictionarys_own_codes(store, dictionary, tmp_path):
    file = write_codes(dictionary, store, tmp_path / "codes.safetensors", batch_size=128)
    with torch.no_grad():
        expected = dictionary.encode(store.x).to_dense()
    assert len(file) == len(store.x)
    torch.testing.assert_close(file.rows(slice(0, len(file))).to_dense(), expected, rtol=0, atol=0)
    again = torch.cat([code.to_dense() for code in iterate_codes(file, 77)])
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_a_coder_by_name_codes_the_rows_less_the_offset(store, dictionary, tmp_path):
    file = write_codes(dictionary, store, tmp_path / "codes.safetensors", coder="gradient_pursuit", k=3)
    expected = gradient_pursuit(store.x - dictionary.b_dec.detach(), dictionary.atoms.detach(), 3)
    torch.testing.assert_close(file.rows(slice(0, len(file))).to_dense(), expected.to_dense())


def test_a_run_that_was_cut_off_resumes_to_the_same_bytes(store, dictionary, tmp_path):
    whole = write_codes(dictionary, store, tmp_path / "whole.safetensors", batch_size=100)
    cut = tmp_path / "cut.safetensors"
    with pytest.raises(OSError, match="disk went away"):
        write_codes(dictionary, Breaks(store.x, store.document_ids), cut, batch_size=100)
    assert not cut.exists()
    # A crash between two writes leaves slots that no record counts.
    with (tmp_path / "cut.safetensors.partial" / "values").open("ab") as file:
        file.write(b"half")
    with pytest.raises(StoreError, match="--resume"):
        write_codes(dictionary, store, cut, batch_size=100)
    write_codes(dictionary, store, cut, batch_size=100, resume=True)
    assert cut.read_bytes() == whole.path.read_bytes()
    assert not (tmp_path / "cut.safetensors.partial").exists()


def test_resuming_with_another_dictionary_shows_the_difference(store, dictionary, tmp_path):
    out = tmp_path / "codes.safetensors"
    with pytest.raises(OSError, match="disk"):
        write_codes(dictionary, Breaks(store.x, store.document_ids), out, batch_size=100)
    other = topk_dictionary(site=SITE, model="tiny", seed=5)
    with pytest.raises(StoreError, match="'dictionary'"):
        write_codes(other, store, out, batch_size=100, resume=True)


def test_a_finished_file_is_never_overwritten(store, dictionary, tmp_path):
    out = tmp_path / "codes.safetensors"
    write_codes(dictionary, store, out)
    with pytest.raises(StoreError, match="exists"):
        write_codes(dictionary, store, out)
    assert len(write_codes(dictionary, store, out, resume=True)) == len(store.x)
    with pytest.raises(StoreError, match="other codes"):
        write_codes(dictionary, store, out, coder="gradient_pursuit", k=2, resume=True)


def test_what_is_no_code_file_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no code file"):
        CodeFile.open(tmp_path / "absent")
    (tmp_path / "text").write_text("not safetensors at all")
    with pytest.raises(StoreError, match="not a whole code file"):
        CodeFile.open(tmp_path / "text")


def test_rows_without_latents_have_empty_codes(dictionary, tmp_path):
    x = dictionary.b_dec.detach().repeat(5, 1)
    silent = MemoryStore(x, torch.zeros(5, dtype=torch.int64))
    file = write_codes(dictionary, silent, tmp_path / "codes.safetensors", coder="gradient_pursuit", k=3)
    assert file.rows(slice(0, 5)).l0().tolist() == [0] * 5
    assert len(file.rows(slice(2, 2))) == 0
