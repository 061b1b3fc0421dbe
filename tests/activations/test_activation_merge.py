"""Several stores to one, how batches are mixed, readers beside each other, and the command `store`."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from activations_fake import SITES, FakeModel, texts

from sparsight.activations import ActivationStore, ActivationStream, harvest, measure_mixing, merge_stores
from sparsight.activations.documents import Document
from sparsight.activations.mixing import mixing_of
from sparsight.cli import main
from sparsight.errors import StoreError, UndefinedMetric

SITE = SITES[0]


def collect(out: Path, seed: int = 0, first: int = 0, **more) -> ActivationStore:
    documents = [Document(first + number, text) for number, text in enumerate(texts(40, seed))]
    small = {"n_tokens": 500, "context": 16, "shard_rows": 150, "batch_size": 3}
    return harvest(FakeModel(), documents, SITES, out, **{**small, **more})


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


# Merge


def test_a_merged_store_has_the_rows_of_its_parts_one_after_the_other(tmp_path):
    parts = [
        collect(tmp_path / "a"),
        collect(tmp_path / "b", 1, first=100, n_tokens=300),
        collect(tmp_path / "c", 2, 200),
    ]
    merged = merge_stores([part.path for part in parts], tmp_path / "all")
    merged.verify()
    assert len(merged) == 1300
    for site in SITES:
        rows = torch.cat([part.rows(site, slice(None)) for part in parts])
        assert torch.equal(merged.rows(site, slice(None)), rows)
    where = merged.tokens(slice(None))
    assert torch.equal(where.document_ids, torch.cat([part.tokens(slice(None)).document_ids for part in parts]))
    assert merged.info()["documents"] == sum(part.info()["documents"] for part in parts)
    heldout = [torch.unique(part.split("heldout").tokens(slice(None)).document_ids) for part in parts]
    there = torch.unique(merged.split("heldout").tokens(slice(None)).document_ids)
    assert torch.equal(there, torch.cat(heldout))
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".part"] == []


def test_documents_of_one_number_are_refused_or_renumbered(tmp_path):
    parts = [collect(tmp_path / "a"), collect(tmp_path / "b", 1)]
    with pytest.raises(StoreError, match=r"document 0 and [0-9]+ others are in both .*--renumber"):
        merge_stores([part.path for part in parts], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    merged = merge_stores([part.path for part in parts], tmp_path / "all", renumber=True)
    merged.verify()
    first = parts[0].tokens(slice(None)).document_ids
    second = parts[1].tokens(slice(None)).document_ids + int(first.max()) + 1
    assert torch.equal(merged.tokens(slice(None)).document_ids, torch.cat([first, second]))
    assert torch.equal(merged.rows(SITE, slice(500, None)), parts[1].rows(SITE, slice(None)))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"context": 20}, "context: 16 there, 20 here"), ({"dtype": "int8"}, "dtype: float16 there, int8")],
)
def test_stores_of_other_settings_are_not_merged(tmp_path, change, says):
    parts = [collect(tmp_path / "a"), collect(tmp_path / "b", 1, 100, **change)]
    with pytest.raises(StoreError, match=says):
        merge_stores([part.path for part in parts], tmp_path / "all")


def test_a_merge_that_cannot_be_is_refused_and_leaves_nothing(tmp_path):
    a, b = collect(tmp_path / "a"), collect(tmp_path / "b", 1, 100)
    with pytest.raises(ValueError, match="two or more different stores"):
        merge_stores([a.path, a.path], tmp_path / "all")
    with pytest.raises(StoreError, match="exists; choose another folder"):
        merge_stores([a.path, b.path], a.path)
    shard = b.path / b.record.shards[-1].file
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="does not have the checksum"):
        merge_stores([a.path, b.path], tmp_path / "all")
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}


# Mixing


def test_batches_of_one_document_have_correlation_one_and_uniform_ones_zero():
    owners = torch.arange(40).repeat_interleave(500)
    sorted_ = mixing_of(owners.split(250), owners)
    assert sorted_.correlation == pytest.approx(1.0)
    assert sorted_.documents == 1
    g = torch.Generator().manual_seed(3)
    mixed = mixing_of(owners[torch.randperm(len(owners), generator=g)].split(250), owners)
    assert abs(mixed.correlation) < 4 * mixed.standard_error < 0.01
    assert mixed.expected == pytest.approx(499 / 19999)


def test_half_a_batch_from_one_document_has_the_correlation_of_theory():
    """250 of 500 rows of one document, the others all different: p = 250 249 / (500 499), p_0 nearly 0."""
    owners = torch.cat([torch.arange(10).repeat_interleave(250), torch.arange(10, 2510)])
    batches = [torch.cat([torch.full((250,), i), torch.arange(10 + 250 * i, 260 + 250 * i)]) for i in range(10)]
    p, p_0 = 250 * 249 / (500 * 499), 10 * 250 * 249 / (5000 * 4999)
    assert mixing_of(batches, owners).correlation == pytest.approx((p - p_0) / (1 - p_0))


@pytest.mark.parametrize("batches", [[[0, 1]], [[0], [1]]])
def test_a_mixing_that_is_not_defined_is_refused(batches):
    with pytest.raises(UndefinedMetric):
        mixing_of([torch.tensor(batch) for batch in batches], torch.tensor([0, 1]))


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_the_numbers_of_rows_are_those_of_the_batches(tmp_path, memory):
    store = collect(tmp_path / "store")
    stream = ActivationStream(store, SITE, 70, 5, memory=memory, block_rows=8, buffer_rows=100)
    for rows in stream.row_numbers(20):
        assert torch.equal(store.rows(SITE, rows), next(stream))
    with pytest.raises(ValueError, match="have no numbers"):
        next(ActivationStream((FakeModel(), texts(5)), SITE, 4).row_numbers(1))


def test_small_blocks_mix_better_than_large_ones_and_memory_is_perfect(tmp_path):
    store = collect(tmp_path / "store", n_tokens=800)

    def correlation(**more):
        stream = ActivationStream(store, SITE, 64, **more)
        return measure_mixing(store, stream, 12).correlation

    whole = correlation()
    fine, coarse = (correlation(memory=0, block_rows=rows, buffer_rows=128) for rows in (4, 64))
    assert abs(whole) < 0.02
    assert whole < fine < coarse


# Readers beside each other


def read_sum(path: str) -> float:
    store = ActivationStore(path)
    stream = ActivationStream(store, SITE, 100, 0, memory=0, block_rows=16, buffer_rows=128)
    return sum(float(next(stream)[:, 0].sum()) for _ in range(5))


def test_several_readers_see_the_same_rows(tmp_path):
    path = str(collect(tmp_path / "store").path)
    expected = read_sum(path)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read_sum, [path] * 8)) == [expected] * 8
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r}); import test_activation_merge as t; print(t.read_sum({path!r}))"
    others = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [float(other.communicate()[0]) for other in others] == [expected] * 2


def test_a_store_of_many_shards_keeps_no_file_open(tmp_path):
    store = collect(tmp_path / "store", shard_rows=1, batch_size=1)
    assert len(store.record.shards) > 5
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    opened = [str(link.readlink()) for link in links if link.is_symlink()]
    assert not [name for name in opened if str(store.path) in name]


def test_memory_stays_flat_however_much_is_read(tmp_path):
    """Anonymous and mapped memory after one epoch and after five, of a store forty times the stream's buffers."""
    store = collect(tmp_path / "store", n_tokens=10**6, dtype="float32")
    stream = ActivationStream(store, SITE, 64, memory=0, block_rows=4, buffer_rows=16)

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) << 10

    for _ in range(len(store) // 64):
        next(stream)
    before = resident()
    for _ in range(4 * len(store) // 64):
        next(stream)
    assert resident() - before < 4 << 20


# The command


def test_the_command_shows_checks_and_merges(tmp_path, capsys):
    collect(tmp_path / "a"), collect(tmp_path / "b", 1, 100)
    assert run("store", "info", tmp_path / "a", "--mixing", "--batch-size", 50, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["mixing"]["n_batches"]) == (500, 64)
    assert abs(told["mixing"]["correlation"]) < 0.02
    assert run("store", "info", tmp_path / "a") == 0
    assert "0.resid_post: 8 wide, rounding lost 0.00e+00 of the variance" in capsys.readouterr().out
    assert run("store", "verify", tmp_path / "a") == 0
    assert "all as written" in capsys.readouterr().out
    assert run("store", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "all") == 0
    assert "1,000 rows of fake" in capsys.readouterr().out


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    collect(tmp_path / "a")
    shard = tmp_path / "a" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for code, arguments in (
        (1, ("verify", tmp_path / "a")),
        (1, ("info", tmp_path / "nowhere")),
        (2, ("merge", tmp_path / "a", "--out", tmp_path / "all")),
    ):
        assert run("store", *arguments) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.strip().splitlines()) == 1
        assert said.err.startswith("sparsight: ")
