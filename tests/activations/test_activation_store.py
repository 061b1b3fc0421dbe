"""Reading a store: rows, tokens and contexts in any order, views by document, and refusal of what is damaged."""

import json
from pathlib import Path

import pytest
import torch
from activations_fake import SITES, FakeModel, Labelled, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.activations import ActivationStore, harvest
from sparsight.errors import DataError, StoreError

SITE = SITES[0]
N = 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of several shards, labelled, never changed."""
    documents = [Labelled(number, text) for number, text in enumerate(texts(100))]
    out = tmp_path_factory.mktemp("stores") / "store"
    harvest(FakeModel(), documents, SITES, out, n_tokens=N, context=16, shard_rows=300, batch_size=4, heldout=0.3)
    return out


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """The same store, to be damaged."""
    out = tmp_path / "store"
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_a_store_says_what_it_holds(folder):
    store = ActivationStore(folder)
    assert (len(store), store.sites, store.model) == (N, SITES, "fake")
    assert [store.width(site) for site in SITES] == [8, 6]
    assert store.width("1.resid_post") == 6
    info = store.info()
    assert (info["rows"], info["heldout"], info["labels"]) == (N, 0.3, ["even", "small"])
    assert info["shards"] == len(list(folder.glob("*.safetensors"))) > 3
    assert store.metadata["format_version"] == 1
    json.dumps(store.metadata)


@settings(max_examples=60, deadline=None)
@given(bounds=st.tuples(st.integers(0, N), st.integers(0, N)), step=st.sampled_from([None, 1, 7]), part=st.booleans())
def test_a_slice_gives_the_rows_that_indices_give(folder, bounds, step, part):
    store = ActivationStore(folder).split("train") if part else ActivationStore(folder)
    begin, end = sorted(min(bound, len(store)) for bound in bounds)
    whole = store.rows(SITE, torch.arange(len(store)))
    assert torch.equal(store.rows(SITE, slice(begin, end, step)), whole[begin:end:step])


@settings(max_examples=30, deadline=None)
@given(chosen=st.lists(st.integers(0, N - 1), max_size=50))
def test_rows_come_in_the_order_asked_for(folder, chosen):
    store = ActivationStore(folder)
    index = torch.tensor(chosen, dtype=torch.int64)
    assert torch.equal(store.rows(SITE, index), store.rows(SITE, slice(None))[index])
    assert torch.equal(store.tokens(index).token_ids, store.rows(SITE, index)[:, 0].long())
    assert torch.equal(store.labels(index)["even"], (store.rows(SITE, index)[:, 0] % 2 == 0).long())


def test_blocks_are_the_rows_of_slices_one_after_the_other(folder):
    for store in (ActivationStore(folder), ActivationStore(folder).split("train")):
        blocks = [slice(700, 760), slice(0, 5), slice(5, 5), slice(290, 320)]
        out = torch.empty(95, store.width(SITE), dtype=torch.float16)
        store.read_blocks(SITE, blocks, out)
        assert torch.equal(out.float(), torch.cat([store.rows(SITE, block) for block in blocks]))
        with pytest.raises(ValueError, match="out must have the 60 rows of the slices, got 95"):
            store.read_blocks(SITE, blocks[:1], out)
        with pytest.raises(IndexError, match="are not within"):
            store.read_blocks(SITE, [slice(0, N + 1)], out)


def test_rows_fill_what_is_given(folder):
    store = ActivationStore(folder)
    out = torch.empty(10, 8, dtype=torch.float16)
    assert store.rows(SITE, slice(5, 15), out=out) is out
    assert torch.equal(out.float(), store.rows(SITE, slice(5, 15)))
    with pytest.raises(ValueError, match=r"out must be a floating tensor \[10, 8\]"):
        store.rows(SITE, slice(5, 15), out=torch.empty(10, 7))


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (slice(-5, None), IndexError),
        (slice(0, N + 1), IndexError),
        (slice(9, 5), IndexError),
        (torch.tensor([0, N]), IndexError),
        (torch.tensor([-1]), IndexError),
        (torch.tensor([0.5]), ValueError),
        (torch.tensor([[1]]), ValueError),
        (torch.tensor([True]), ValueError),
    ],
)
def test_a_row_outside_the_store_is_refused(folder, rows, error):
    with pytest.raises(error, match="rows"):
        ActivationStore(folder).rows(SITE, rows)


def test_an_unknown_site_is_refused_with_those_there_are(folder):
    for ask in (ActivationStore(folder).width, lambda site: ActivationStore(folder).rows(site, slice(0, 1))):
        with pytest.raises(StoreError, match=r"no site 5\.resid_post; it has 0\.resid_post, 1\.resid_post"):
            ask("5.resid_post")


# Views


def test_the_two_sides_share_no_document_and_lose_no_row(folder):
    store = ActivationStore(folder)
    train, heldout = store.split("train"), store.split("heldout")
    sides = [set(side.tokens(slice(None)).document_ids.tolist()) for side in (train, heldout)]
    assert not sides[0] & sides[1]
    assert len(train) + len(heldout) == N
    rows = torch.cat([train.rows(SITE, slice(None)), heldout.rows(SITE, slice(None))])
    assert sorted(rows.tolist()) == sorted(store.rows(SITE, slice(None)).tolist())
    assert (store.split_name, train.split_name, heldout.split_name) == ("all", "train", "heldout")
    assert len(store) == N  # the views did not change it


def test_the_share_of_documents_held_out_is_near_the_one_asked_for(folder):
    store = ActivationStore(folder)
    n, held = store.info()["documents"], store.split("heldout").info()["documents"]
    assert abs(held / n - 0.3) < 3 * (0.21 / n) ** 0.5


def test_a_document_stays_on_its_side_when_others_come_first(tmp_path, folder):
    documents = [Labelled(number, text) for number, text in enumerate(texts(100))][::-1]
    store = harvest(FakeModel(), documents, SITE, tmp_path / "store", n_tokens=800, context=16, heldout=0.3)
    there = set(ActivationStore(folder).split("heldout").tokens(slice(None)).document_ids.tolist())
    here = set(store.split("train").tokens(slice(None)).document_ids.tolist())
    assert not there & here


def test_an_empty_side_is_refused_when_it_is_asked_for(tmp_path):
    store = harvest(FakeModel(), ["5 6 7"], SITE, tmp_path / "store", n_tokens=3)
    side = "heldout" if len(store.split("train")) else "train"
    with pytest.raises(DataError, match=f"no document is on the {side} side .* 1 documents"):
        store.split(side)
    with pytest.raises(ValueError, match="'train' or 'heldout', got 'test'"):
        store.split("test")


# Contexts


@pytest.mark.parametrize("part", ["all", "heldout"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_contexts_name_the_row_of_every_token(folder, part, batch_size):
    store = ActivationStore(folder)
    store = store if part == "all" else store.split("heldout")
    seen = []
    for batch in store.context_batches(batch_size):
        stored = batch.rows >= 0
        where = store.tokens(batch.rows[stored])
        assert torch.equal(where.token_ids, batch.tokens.ids[stored])
        assert torch.equal(where.positions, stored.nonzero()[:, 1])
        assert torch.equal(where.document_ids, batch.document_ids[stored.nonzero()[:, 0]])
        assert not bool((stored & ~(batch.tokens.mask & ~batch.tokens.special)).any())
        assert bool(batch.tokens.mask.any(dim=0).all())  # no column of padding alone
        seen += batch.rows[stored].tolist()
    assert seen == list(range(len(store)))


def test_the_model_and_the_contexts_give_the_rows_again(folder):
    store = ActivationStore(folder)
    for batch in store.context_batches(16):
        x = FakeModel().activations(batch.tokens, SITES)[SITES[1]]
        assert torch.equal(x[batch.rows >= 0], store.rows(SITES[1], batch.rows[batch.rows >= 0]))


def test_contexts_come_in_batches_of_at_least_one(folder):
    with pytest.raises(ValueError, match="batch_size"):
        next(ActivationStore(folder).context_batches(0))


# Damage


def test_a_sound_store_is_verified(folder):
    ActivationStore(folder).verify()


@pytest.mark.parametrize("place", [-1, -5000, 3000])
def test_one_flipped_bit_is_found_and_its_shard_named(copied, place):
    shard = copied / "shard-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[place] ^= 4
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"shard-00002.safetensors has .*; restore it from a copy, or harvest again"):
        ActivationStore(copied).verify()


@pytest.mark.parametrize("kept", [0, 5, 900, -1])
def test_a_shard_that_is_cut_short_is_refused_at_once(copied, kept):
    shard = copied / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(StoreError, match=r"shard-00001.safetensors has [0-9]+ bytes, expected [0-9]+; restore"):
        ActivationStore(copied)


def test_a_missing_shard_is_refused_at_once(copied):
    (copied / "shard-00001.safetensors").unlink()
    with pytest.raises(StoreError, match=r"shard-00001.safetensors is missing"):
        ActivationStore(copied)


def rewrite(folder: Path, **changes) -> None:
    record = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"widths": [8, 7]}, r"activations/1.resid_post float16 \[[0-9]+, 6\], expected float16 \[[0-9]+, 7\]"),
        ({"dtype": "bfloat16"}, r"float16 \[[0-9]+, 8\], expected bfloat16"),
        ({"sites": ["0.resid_post", "3.resid_post"]}, "absent"),
        ({"label_names": ["even"]}, r"labels int16 \[[0-9]+, 2\], expected int16 \[[0-9]+, 1\]"),
        ({"label_names": []}, "expected absent"),
    ],
)
def test_a_shard_that_is_not_what_the_record_says_is_refused(copied, changes, says):
    rewrite(copied, **changes)
    with pytest.raises(StoreError, match=says):
        ActivationStore(copied)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 2}, "format_version"),
        ({"colour": 1}, "colour"),
        ({"dtype": "int4"}, "dtype"),
        ({"heldout": 1.5}, "heldout"),
        ({"n_rows": 1499}, "do not add up to 1499 rows"),
        ({"widths": [8]}, "2 sites, 1 widths"),
        ({"shards": []}, "shards"),
    ],
)
def test_a_record_of_another_kind_is_refused(copied, changes, says):
    rewrite(copied, **changes)
    with pytest.raises(StoreError, match=says):
        ActivationStore(copied)


def test_a_shard_elsewhere_is_refused(copied):
    record = json.loads((copied / "store.json").read_text())
    record["shards"][0]["file"] = "../shard-00000.safetensors"
    (copied / "store.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="file"):
        ActivationStore(copied)


def test_what_is_no_store_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=r"no activation store at .* harvest one there"):
            ActivationStore(path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(StoreError, match="not a store of format version 1"):
        ActivationStore(tmp_path)
