"""What harvest is asked for beside the text: packing, special tokens, outliers, types of storage."""

import json
import sys
from pathlib import Path

import pytest
import torch
from activations_fake import BOS, EOS, SITES, FakeModel, Labelled, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.activations import ActivationStore, ActivationStream, RayReaders, harvest
from sparsight.activations.rounding import from_int8, to_int8
from sparsight.activations.split import is_heldout
from sparsight.errors import ModelError

SITE = SITES[0]


def collect(out: Path, documents=None, lm=None, sites=SITES, **more) -> ActivationStore:
    small = {"n_tokens": 1500, "context": 16, "shard_rows": 150, "batch_size": 3}
    return harvest(lm or FakeModel(), documents or texts(100), sites, out, **{**small, **more})


def contexts(store: ActivationStore) -> list[list[int]]:
    batches = [batch.tokens for batch in store.context_batches(7)]
    return [row[mask].tolist() for b in batches for row, mask in zip(b.ids, b.mask, strict=True)]


def words(documents: list[str]) -> list[list[int]]:
    return [[int(word) for word in text.split()] for text in documents]


# Special tokens


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("bos", "expected"),
    [
        ("context", [[BOS, 5, 6, 7, EOS], [BOS, 8, EOS]]),
        ("document", [[BOS, 5, 6, 7, 8], [EOS]]),
        ("none", [[5, 6, 7, 8]]),
    ],
)
def test_special_tokens_stand_where_they_are_asked_for(tmp_path, bos, expected, packed):
    store = collect(tmp_path / "store", ["5 6 7 8"], context=5, bos=bos, packed=packed)
    assert contexts(store) == [piece for piece in expected if piece != [EOS]]  # a piece without text has no row
    assert store.tokens(slice(None)).token_ids.tolist() == [5, 6, 7, 8]
    assert store.record.bos == bos


def test_special_tokens_have_rows_when_asked_for_and_no_label(tmp_path):
    store = collect(tmp_path / "store", [Labelled(3, "5 6 7 8")], context=5, n_tokens=8, special_rows=True)
    assert store.tokens(slice(None)).token_ids.tolist() == [BOS, 5, 6, 7, EOS, BOS, 8, EOS]
    assert store.rows(SITE, slice(None))[:, 0].tolist() == [BOS, 5, 6, 7, EOS, BOS, 8, EOS]
    assert store.labels(slice(None))["even"].tolist() == [-1, 0, 1, 0, -1, -1, 1, -1]
    (batch,) = store.context_batches(8)
    assert batch.rows.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, -1, -1]]


# Packing


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), context=st.integers(3, 40), bos=st.sampled_from(["context", "document", "none"]))
def test_packed_contexts_hold_the_documents_of_each_side_one_after_the_other(tmp_path_factory, seed, context, bos):
    """The slow twin: write out the tokens of a side, cut the list."""
    documents = texts(40, seed)
    store = collect(
        tmp_path_factory.mktemp("store"), documents, context=context, packed=True, bos=bos, heldout=0.3, n_tokens=10**6
    )
    sides = is_heldout(torch.arange(40).numpy(), 0.3, 0)
    for name, wanted in (("train", False), ("heldout", True)):
        mine = [text for text, side in zip(words(documents), sides, strict=True) if side == wanted]
        if not mine:
            continue
        view = store.split(name)
        around = bos == "context"
        long = [token for text in mine for token in ([BOS, *text, EOS] if bos == "document" else text)]
        room = context - 2 * around
        cut = [long[begin : begin + room] for begin in range(0, len(long), room)]
        expected = [[BOS, *piece, EOS] if around else piece for piece in cut if set(piece) - {BOS, EOS}]
        assert contexts(view) == expected
        owners = [number for number, side in enumerate(sides) if side == wanted for _ in words(documents)[number]]
        assert view.tokens(slice(None)).document_ids.tolist() == owners
        assert view.info()["documents"] == len(mine)
    assert len(store) == sum(len(text) for text in words(documents))


def test_packed_labels_stand_at_their_tokens(tmp_path):
    documents = [Labelled(1000 - number, text) for number, text in enumerate(texts(60))]
    for bos in ("context", "document"):
        store = collect(tmp_path / bos, documents, n_tokens=700, packed=True, bos=bos)
        tokens = store.tokens(slice(None)).token_ids
        assert torch.equal(store.labels(slice(None))["even"], (tokens % 2 == 0).long())


def test_packing_leaves_no_padding_but_at_the_ends(tmp_path):
    store = collect(tmp_path / "store", packed=True, n_tokens=10**6)
    assert sum(len(piece) < 16 for piece in contexts(store)) <= 2
    assert sum(len(piece) < 16 for piece in contexts(collect(tmp_path / "padded", n_tokens=10**6))) > 50


class Stop(RuntimeError):
    """Raised in the middle of a text."""


@pytest.mark.parametrize("after", [65, 80, 99])
def test_a_packed_harvest_is_resumed_to_the_same_bytes(tmp_path, after):
    whole = collect(tmp_path / "whole", packed=True)

    def breaking():
        yield from texts(100)[:after]
        raise Stop

    with pytest.raises(Stop):
        collect(tmp_path / "store", breaking(), packed=True)
    with pytest.raises(Exception, match="documents differ"):
        collect(tmp_path / "store", ["5", *texts(100)[1:]], packed=True, resume=True)
    resumed = collect(tmp_path / "store", packed=True, resume=True)
    for shard in whole.record.shards:
        assert (resumed.path / shard.file).read_bytes() == (whole.path / shard.file).read_bytes()
    assert resumed.record.shards == whole.record.shards


# Outliers


class Loud(FakeModel):
    """Token 50 has a row a hundred times as long as any other."""

    def activations(self, tokens, sites):
        x = super().activations(tokens, sites)
        for rows in x.values():
            rows[..., 2] = 0
            rows[tokens.ids == 50] *= 100
        return x


def test_tokens_of_large_norm_are_left_out_and_counted(tmp_path):
    documents = texts(100)
    store = collect(tmp_path / "store", documents, Loud(), n_tokens=1000, max_norm=20.0)
    all_tokens = [token for text in words(documents) for token in text]
    kept = [token for token in all_tokens if token != 50]
    assert store.tokens(slice(None)).token_ids.tolist() == kept[:1000]
    assert float(store.rows(SITE, slice(None)).abs().max()) < 200
    n_until_the_end = all_tokens.index(50)
    assert 0 < n_until_the_end < 900
    assert store.record.excluded > 0
    for batch in store.context_batches(5):
        stored = batch.rows >= 0
        assert torch.equal(store.tokens(batch.rows[stored]).token_ids, batch.tokens.ids[stored])
        assert not bool((stored & (batch.tokens.ids == 50)).any())
    assert collect(tmp_path / "all", documents, Loud(), n_tokens=1000).record.excluded == 0


def test_a_context_of_outliers_alone_has_no_row_and_harms_nothing(tmp_path):
    documents = ["5 6 7 8", "50 50", *texts(30)]
    store = collect(tmp_path / "store", documents, Loud(), n_tokens=300, max_norm=20.0)
    assert 1 not in store.tokens(slice(None)).document_ids
    seen = [row for batch in store.context_batches(2) for row in batch.rows[batch.rows >= 0].tolist()]
    assert seen == list(range(300))
    whole = store.rows(SITE, slice(None))
    assert torch.equal(store.rows(SITE, torch.arange(300)), whole)
    train = store.split("train")
    assert torch.equal(train.rows(SITE, slice(None)), train.rows(SITE, torch.arange(len(train))))


@pytest.mark.parametrize("value", [1.0, 0.0, -3.0, float("nan"), float("inf")])
def test_a_largest_norm_that_would_leave_out_half_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="max_norm is a multiple of the median norm, above 1"):
        collect(tmp_path / "store", max_norm=value)
    with pytest.raises(ValueError, match="bos must be one of context, document, none, got 'often'"):
        collect(tmp_path / "store", bos="often")


# Types of storage


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(-30, 30))
def test_int8_is_off_by_half_a_step_at_most(seed, scale):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 17, generator=g) * 10**scale
    x[3] = 0
    q, scales = to_int8(x)
    assert bool(((from_int8(q, scales) - x).abs() <= 0.501 * scales[:, None] + 1e-44).all())
    assert bool((from_int8(q, scales)[3] == 0).all())
    assert int(q.abs().max()) == 127


def test_rows_in_int8_are_read_back_by_slice_by_number_and_by_stream(tmp_path):
    exact = collect(tmp_path / "exact", dtype="float32").rows(SITE, slice(None))
    store = collect(tmp_path / "store", dtype="int8")
    rows = store.rows(SITE, slice(None))
    step = exact.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rows - exact).abs() <= 0.501 * step).all())
    assert not torch.equal(rows, exact)
    index = torch.tensor([1400, 3, 3, 700])
    assert torch.equal(store.rows(SITE, index), rows[index])
    for memory in (0, 1 << 30):
        stream = ActivationStream(store, SITE, 1500, memory=memory, block_rows=16, buffer_rows=128)
        assert sorted(next(stream).tolist()) == sorted(rows.tolist())
    store.verify()


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("float32", 0, 0), ("float16", 1e-9, 1e-7), ("bfloat16", 1e-7, 1e-5), ("int8", 1e-7, 1e-4)],
)
def test_what_rounding_lost_is_what_the_rows_say(tmp_path, dtype, low, high):
    class Smooth(FakeModel):
        def activations(self, tokens, sites):
            g = torch.Generator().manual_seed(int(tokens.ids.sum()))
            return {
                site: x + torch.randn(x.shape, generator=g) for site, x in super().activations(tokens, sites).items()
            }

    exact = collect(tmp_path / "exact", lm=Smooth(), dtype="float32")
    store = collect(tmp_path / "store", lm=Smooth(), dtype=dtype)
    for site in SITES:
        x, back = (s.rows(site, slice(None)).double() for s in (exact, store))
        error = (x - back).square().sum()
        assert store.rounding[str(site)]["relative"] == pytest.approx(
            float(error / x.square().sum()), rel=1e-4, abs=1e-12
        )
        assert low <= store.rounding[str(site)]["relative"] <= high
        # The mean is taken over each window, of some 150 rows here: one degree of freedom in 150.
        fvu = float(error / (x - x.mean(dim=0)).square().sum())
        assert store.rounding[str(site)]["fvu"] == pytest.approx(fvu, rel=0.25, abs=1e-12)


def test_a_store_without_the_newer_settings_still_opens(tmp_path):
    store = collect(tmp_path / "store")
    record = json.loads((store.path / "store.json").read_text())
    for name in ("packed", "bos", "special_rows", "max_norm", "excluded"):
        del record[name]
    for shard in record["shards"]:
        del shard["sums"], shard["excluded"]
    (store.path / "store.json").write_text(json.dumps(record))
    old = ActivationStore(store.path)
    assert (old.rounding, old.record.bos, len(old)) == ({}, "context", 1500)


# What is said


def test_ray_that_is_not_installed_is_asked_for_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'sparsight\[scale\]'") as error:
        RayReaders(FakeModel, 2)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        RayReaders(FakeModel, 0)


def test_bytes_are_forecast_before_and_the_rate_is_shown(tmp_path, capsys):
    store = collect(tmp_path / "store", n_tokens=1500, progress=True)
    said = capsys.readouterr().err
    assert "about 75.0 kB for 1,500 tokens, 50 bytes each" in said  # 2 (8 + 6) + 16 + 6
    assert "storing as float16 lost 0.00e+00 of the variance" in said
    assert store.info()["bytes"] == pytest.approx(75_000, rel=0.5)
