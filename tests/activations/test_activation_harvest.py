"""Harvest: which rows are stored, in which order, and what becomes of them when something breaks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from activations_fake import BOS, EOS, SITES, FakeModel, Labelled, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.activations import ActivationStore, harvest, shards, writer
from sparsight.errors import DataError, ModelError, StoreError

SITE = SITES[0]
SMALL = {"n_tokens": 1500, "context": 16, "shard_rows": 150, "batch_size": 3}


def collect(out: Path, documents=None, lm=None, sites=SITES, notify=None, **settings) -> ActivationStore:
    return harvest(lm or FakeModel(), documents or texts(100), sites, out, notify=notify, **{**SMALL, **settings})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store; the record without the command line."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    record = json.loads(files["store.json"])
    del record["command"]
    return {**files, "store.json": json.dumps(record).encode()}


def naive_rows(documents: list[str], context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The slow twin: one context at a time, no batches; rows at site 0 and their documents."""
    rows, owners = [], []
    for number, text in enumerate(documents):
        words = [int(word) for word in text.split()]
        for begin in range(0, len(words), context - 2):
            piece = words[begin : begin + context - 2]
            total = BOS + sum(piece) + EOS
            rows += [[v, p, total, 0, 0, 0, 0, 0] for p, v in enumerate(piece, start=1)]
            owners += [number] * len(piece)
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(owners)


def test_one_text_names_many_sites_in_the_order_in_which_they_are_stored(tmp_path):
    assert collect(tmp_path / "all", sites="all.resid_post").sites == SITES
    assert collect(tmp_path / "some", sites=["1.resid_post", "0-0.resid_post"]).sites == SITES[::-1]
    with pytest.raises(ValueError, match="each once"):
        collect(tmp_path / "twice", sites=["all.resid_post", SITE])


def test_rows_are_the_tokens_of_the_documents_in_order(tmp_path):
    store = collect(tmp_path / "store")
    rows, owners = naive_rows(texts(100), 16)
    assert len(store) == 1500
    assert {file.suffix for file in store.path.iterdir()} == {".safetensors", ".json"}  # no journal, nothing temporary
    assert torch.equal(store.rows(SITE, slice(None)), rows[:1500])
    assert torch.equal(store.rows(SITES[1], slice(None)), -rows[:1500, :6])
    where = store.tokens(slice(None))
    assert torch.equal(where.token_ids, rows[:1500, 0].long())
    assert torch.equal(where.positions, rows[:1500, 1].long())
    assert torch.equal(where.document_ids, owners[:1500])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    context=st.integers(3, 30),
    batch_size=st.integers(1, 6),
    n_tokens=st.integers(1, 300),
    shard_rows=st.integers(1, 200),
)
def test_rows_depend_on_neither_batches_nor_shards(tmp_path_factory, seed, context, batch_size, n_tokens, shard_rows):
    documents = texts(40, seed)
    store = collect(
        tmp_path_factory.mktemp("store"),
        documents,
        context=context,
        batch_size=batch_size,
        n_tokens=n_tokens,
        shard_rows=shard_rows,
    )
    rows, _ = naive_rows(documents, context)
    assert torch.equal(store.rows(SITE, slice(None)), rows[:n_tokens])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_are_rounded_to_the_type_of_the_store_and_no_further(tmp_path, dtype):
    store = collect(tmp_path / "store", dtype=dtype)
    rows, _ = naive_rows(texts(100), 16)
    kept = store.rows(SITE, slice(None))
    assert kept.dtype == torch.float32
    assert store.dtype == getattr(torch, dtype)
    assert torch.equal(kept, rows[:1500].to(store.dtype).float())


def test_the_last_context_is_whole_but_only_the_rows_asked_for_are_stored(tmp_path):
    store = collect(tmp_path / "store", [" ".join(["7"] * 14)], n_tokens=5)
    (batch,) = store.context_batches(8)
    assert batch.tokens.ids.tolist() == [[BOS, *[7] * 14, EOS]]
    assert batch.rows.tolist() == [[-1, 0, 1, 2, 3, 4, *[-1] * 10]]
    assert store.rows(SITE, slice(None))[:, 2].tolist() == [BOS + 7 * 14 + EOS] * 5


def test_a_text_that_is_too_short_is_stored_whole_and_says_so(tmp_path):
    said = []
    store = collect(tmp_path / "store", ["5 6 7", "8"], notify=said.append)
    assert len(store) == 4
    assert store.metadata["short_of"] == 1500
    assert said == ["the text has 4 tokens, fewer than the 1,500 asked for; all are stored"]


def test_a_text_that_suffices_makes_no_remark(tmp_path):
    said = []
    assert collect(tmp_path / "store", ["5 6 7", "8"], n_tokens=4, notify=said.append).metadata["short_of"] is None
    assert said == []


def test_progress_and_remarks_go_to_stderr(tmp_path, capsys):
    collect(tmp_path / "store", ["5 6 7", "8"], progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "4/1500" in said.err
    assert "fewer than the 1,500 asked for" in said.err


def test_one_string_is_not_taken_for_a_list_of_letters(tmp_path):
    with pytest.raises(ValueError, match="put it into a list"):
        collect(tmp_path / "store", "5 6 7")


@pytest.mark.parametrize("documents", [[], [""], ["", " "]])
def test_no_text_is_refused_and_nothing_is_left(tmp_path, documents):
    with pytest.raises(DataError, match="no tokens"):
        harvest(FakeModel(), documents, SITE, tmp_path / "store", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_documents_are_read_no_further_than_needed(tmp_path):
    def endless() -> Iterator[str]:
        for i in range(10**9):
            assert i < 1000
            yield "5 6 7 8"

    assert len(collect(tmp_path / "store", endless(), n_tokens=100)) == 100


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (float("nan"), "float32", "1.resid_post in document 42 is not finite"),
        (float("inf"), "float16", "not finite"),
        (-7e4, "float16", "magnitude 7e.04 .* document 42 does not fit into float16 .* store as bfloat16 or float32"),
    ],
)
def test_a_row_that_cannot_be_stored_is_named_by_document_and_site(tmp_path, value, dtype, says):
    documents = texts(100)
    documents[42] += " 777"
    with pytest.raises(DataError, match=says):
        collect(tmp_path / "store", documents, FakeModel(777, value), SITES[1], dtype=dtype, shard_rows=10**6)
    assert list(tmp_path.iterdir()) == []


def test_a_special_token_may_be_as_large_as_it_likes(tmp_path):
    """The first token of many models carries activations of thousands; it has no row, so it cannot be too large."""
    assert len(collect(tmp_path / "store", lm=FakeModel(BOS, 1e6))) == 1500


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"n_tokens": 0}, ValueError, "n_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"shard_rows": 0}, ValueError, "shard_rows"),
        ({"context": 1}, ValueError, "context must be between 2 and"),
        ({"context": 2}, ValueError, "leave room beside the 2 special"),
        ({"context": 513}, ValueError, "512"),
        ({"dtype": "int4"}, ValueError, "dtype must be one of float16"),
        ({"heldout": 1.0}, ValueError, "heldout"),
        ({"split_seed": -1}, ValueError, "split_seed"),
        ({"sites": []}, ValueError, "sites must be one or more"),
        ({"sites": [SITE, "0.resid_post"]}, ValueError, "each once"),
        ({"sites": "7.resid_post"}, ModelError, "no site 7.resid_post; it has 0.resid_post, 1.resid_post"),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_is_left(tmp_path, change, error, says):
    with pytest.raises(error, match=says):
        collect(tmp_path / "store", **change)
    assert list(tmp_path.iterdir()) == []


# Labels


def labelled(n: int = 60) -> list[Labelled]:
    return [Labelled(1000 - number, text) for number, text in enumerate(texts(n))]


def test_labels_and_document_numbers_travel_with_the_rows(tmp_path):
    store = collect(tmp_path / "store", labelled(), n_tokens=700)
    tokens = store.rows(SITE, slice(None))[:, 0].long()
    assert store.label_names == ["even", "small"]
    labels = store.labels(slice(None))
    assert torch.equal(labels["even"], (tokens % 2 == 0).long())
    assert torch.equal(labels["small"], (tokens < 50).long())
    assert store.tokens(slice(0, 1)).document_ids.tolist() == [1000]


def spoil_length(document: Labelled) -> None:
    document.labels["even"].append(1)


def spoil_name(document: Labelled) -> None:
    document.labels["odd"] = document.labels.pop("even")


def spoil_value(document: Labelled) -> None:
    document.labels["even"][0] = 1 << 15


def spoil_number(document: Labelled) -> None:
    document.id = -4


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_length, "document 993 has [0-9]+ tokens but [0-9]+ labels of 'even'"),
        (spoil_name, "document 993 is labelled with .*odd"),
        (spoil_value, "document 993 has a label that is not an integer from -1 to 32767"),
        (spoil_number, "id -4; expected an int"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_document(tmp_path, spoil, says):
    documents = labelled()
    spoil(documents[7])
    with pytest.raises(DataError, match=says):
        collect(tmp_path / "store", documents)


# What breaks


class Broken(RuntimeError):
    """Raised by a test in the middle of things."""


def breaking(documents: list, after: int) -> Iterator:
    yield from documents[:after]
    raise Broken


@pytest.mark.parametrize("document_type", ["text", "labelled"])
@pytest.mark.parametrize("after", [0, 64, 80])
def test_a_broken_text_is_resumed_to_the_same_bytes(tmp_path, after, document_type):
    documents = texts(100) if document_type == "text" else labelled(100)
    whole = collect(tmp_path / "whole", documents)
    with pytest.raises(Broken):
        collect(tmp_path / "store", breaking(documents, after))
    assert (tmp_path / "store").exists() == (after > 64)  # texts are tokenized 64 at a time
    resumed = collect(tmp_path / "store", documents, resume=True)
    assert contents(resumed.path) == contents(whole.path)


def test_a_model_that_fails_again_and_again_is_resumed_to_the_same_bytes(tmp_path):
    """Whenever it is interrupted, each try goes on from the last whole shard."""

    class Flaky(FakeModel):
        def __init__(self, lives: int) -> None:
            super().__init__()
            self.lives = lives

        def activations(self, tokens, sites):
            self.lives -= 1
            if self.lives < 0:
                raise KeyboardInterrupt
            return super().activations(tokens, sites)

    whole = collect(tmp_path / "whole")
    tries = 0
    while not (tmp_path / "store" / "store.json").exists():
        tries += 1
        try:
            collect(tmp_path / "store", lm=Flaky(9), resume=True)
        except KeyboardInterrupt:
            assert not list((tmp_path / "store").glob("*.tmp"))
    assert tries > 4
    assert contents(tmp_path / "store") == contents(whole.path)


@pytest.mark.parametrize("moment", ["write_shard", "append_journal", "write_record"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_crash_at_any_step_of_writing_is_resumed_to_the_same_bytes(tmp_path, monkeypatch, moment, nth):
    whole = collect(tmp_path / "whole")
    real, calls = getattr(writer, moment), []

    def crashing(*arguments):
        calls.append(1)
        if len(calls) == (nth if moment != "write_record" else 1):
            raise Broken
        return real(*arguments)

    monkeypatch.setattr(writer, moment, crashing)
    with pytest.raises(Broken):
        collect(tmp_path / "store")
    monkeypatch.setattr(writer, moment, real)
    with pytest.raises(StoreError, match="unfinished; go on with harvest"):
        ActivationStore(tmp_path / "store")
    assert contents(collect(tmp_path / "store", resume=True).path) == contents(whole.path)


def test_a_journal_line_that_was_cut_off_is_dropped(tmp_path):
    whole = collect(tmp_path / "whole")
    with pytest.raises(Broken):
        collect(tmp_path / "store", breaking(texts(100), 65))
    journal = tmp_path / "store" / "shards.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept in (0, 1, len(lines) - 1):
        journal.write_bytes(b"".join(lines[:kept]) + lines[kept][:25])
        (tmp_path / "store" / "store.json").unlink(missing_ok=True)
        with pytest.raises(Broken):  # what is appended now must not be glued to the line that was cut
            collect(tmp_path / "store", breaking(texts(100), 80), resume=True)
        collect(tmp_path / "store", resume=True)
        assert contents(tmp_path / "store") == contents(whole.path)


def test_a_full_disk_leaves_no_torn_file_and_is_resumed_to_the_same_bytes(tmp_path, monkeypatch):
    whole = collect(tmp_path / "whole")
    room = [whole.record.shards[0].bytes + 4000]  # bytes until the disk is full: less than two shards

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            room[0] -= len(data)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    real = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            shards.Path,
            "open",
            lambda path, mode="r", **rest: (Full if mode == "wb" else id_)(real(path, mode, **rest)),
        )
        with pytest.raises(StoreError, match=r"shard-00001.safetensors: No space left on device.*resume"):
            collect(tmp_path / "store")
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == ["shard-00000.safetensors", "shards.jsonl"]
    assert contents(collect(tmp_path / "store", resume=True).path) == contents(whole.path)


def id_(file):
    return file


KILLED = """
import sys, time
sys.path.insert(0, {here!r})
from activations_fake import FakeModel, SITES, texts
from sparsight.activations import harvest
class Slow(FakeModel):
    def activations(self, tokens, sites):
        time.sleep(0.01)
        return super().activations(tokens, sites)
harvest(Slow(), texts(100), SITES, {out!r}, n_tokens=1500, context=16, shard_rows=150, batch_size=3, resume=True)
"""


def test_a_killed_process_is_resumed_to_the_same_bytes(tmp_path):
    whole = collect(tmp_path / "whole")
    out = tmp_path / "store"
    script = KILLED.format(here=str(Path(__file__).parent), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not (out / "shard-00002.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "store.json").exists()
    assert contents(collect(out, resume=True).path) == contents(whole.path)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_ten_kills_at_random_moments_of_harvest_and_resume_leave_no_trace(tmp_path, packed):
    """Ten runs, each going on from the one before, are killed within 1.5 seconds of work; then one is let finish.

    The model sleeps for so long that all ten together cannot finish.
    """
    options = {"packed": packed, "shard_rows": 100}  # a shard for each window
    whole = collect(tmp_path / "whole", **options)
    out = tmp_path / "store"
    script = KILLED.format(here=str(Path(__file__).parent), out=str(out)).replace("shard_rows=150", "**OPTIONS")
    script = f"OPTIONS = {options}\n" + script.replace("0.01", "0.15")
    script = script.replace("harvest(Slow()", "print('ready', flush=True); harvest(Slow()")
    g = torch.Generator().manual_seed(7)
    found = []
    for moment in torch.rand(10, generator=g).tolist():
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # imports are over: what is left is the harvest
        time.sleep(1.5 * moment)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        found.append(len(list(out.glob("*.safetensors"))))
    assert not (out / "store.json").exists()
    assert found == sorted(found)
    assert len(set(found)) > 2, f"whole shards after each kill: {found}; too few resumes went on from some"
    assert contents(collect(out, resume=True, **options).path) == contents(whole.path)


# What is there already


def test_a_finished_store_is_never_overwritten_and_resuming_it_changes_nothing(tmp_path):
    collect(tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(StoreError, match="never overwritten"):
        collect(tmp_path / "store")
    collect(tmp_path / "store", breaking([], 0), resume=True)
    assert contents(tmp_path / "store") == before


def test_an_unfinished_store_is_not_begun_anew_unasked(tmp_path):
    with pytest.raises(Broken):
        collect(tmp_path / "store", breaking(texts(100), 80))
    with pytest.raises(StoreError, match="unfinished store; go on with resume=True"):
        collect(tmp_path / "store")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "says"), [({"context": 20}, "context: 16 there, 20 here"), ({"sites": SITE}, "sites: .* there, .* here")]
)
def test_other_settings_are_refused_with_the_difference(tmp_path, finished, change, says):
    if finished:
        collect(tmp_path / "store")
    else:
        with pytest.raises(Broken):
            collect(tmp_path / "store", breaking(texts(100), 80))
    with pytest.raises(StoreError, match=says):
        collect(tmp_path / "store", resume=True, **change)


def test_another_text_is_refused_on_resume(tmp_path):
    with pytest.raises(Broken):
        collect(tmp_path / "store", breaking(texts(100), 80))
    with pytest.raises(DataError, match="documents differ"):
        collect(tmp_path / "store", ["5", *texts(100)[1:]], resume=True)
    with pytest.raises(DataError, match="only 3 documents came"):
        collect(tmp_path / "store", texts(100)[:3], resume=True)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("the only copy")
    for resume in (False, True):
        with pytest.raises(StoreError, match="not an activation store"):
            collect(tmp_path, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
