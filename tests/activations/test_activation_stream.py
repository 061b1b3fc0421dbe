"""The stream: every row once in an epoch, in an order that the seed decides, resumable at any batch."""

import itertools
import json

import pytest
import torch
from activations_fake import SITES, FakeModel, texts

from sparsight.activations import ActivationStore, ActivationStream, harvest
from sparsight.activations import stream as streaming
from sparsight.errors import DataError, StoreError

SITE = SITES[0]
KINDS = ["tensor", "memory", "disk", "view", "live"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    out = tmp_path_factory.mktemp("stores") / "store"
    return harvest(FakeModel(), texts(100), SITES, out, n_tokens=1000, context=16, shard_rows=300, batch_size=4)


def stream(kind: str, store: ActivationStore, batch_size: int = 48, seed: int = 0, sites=SITE) -> ActivationStream:
    if kind == "tensor":
        return ActivationStream(store.rows(SITE, slice(None)), None, batch_size, seed)
    if kind == "live":
        source = (FakeModel(), texts(40))
        return ActivationStream(source, sites, batch_size, seed, buffer_rows=120, context=16, model_batch_size=2)
    source = store.split("train") if kind == "view" else store
    memory = 1 << 30 if kind == "memory" else 0
    return ActivationStream(source, sites, batch_size, seed, memory=memory, block_rows=16, buffer_rows=100)


def epoch_rows(kind: str, store: ActivationStore) -> torch.Tensor:
    """What an epoch must hold."""
    return (store.split("train") if kind == "view" else store).rows(SITE, slice(None))


def rows_of(stream: ActivationStream, n: int) -> torch.Tensor:
    """The next n rows, and the rest of the last batch."""
    return torch.cat(list(itertools.islice(stream, -(-n // stream.batch_size))))


def multiset(rows: torch.Tensor) -> list[list[float]]:
    return sorted(rows.tolist())


@pytest.mark.parametrize("kind", ["tensor", "memory", "disk", "view"])
@pytest.mark.parametrize("batch_size", [1, 48, 5000])
def test_every_row_comes_once_in_each_epoch(store, kind, batch_size):
    expected = epoch_rows(kind, store)
    n = len(expected)
    s = stream(kind, store, batch_size)
    assert s.n_rows == n
    rows = rows_of(s, 3 * n)
    epochs = [rows[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        assert multiset(epoch) == multiset(expected)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_a_model_gives_every_token_of_its_documents_once_in_each_epoch(store):
    documents = texts(40)
    whole = sum(len(text.split()) for text in documents)
    rows = rows_of(stream("live", store, 10), 2 * whole)
    words = sorted(float(word) for text in documents for word in text.split())
    assert sorted(rows[:whole, 0].tolist()) == words
    assert sorted(rows[whole : 2 * whole, 0].tolist()) == words
    assert not torch.equal(rows[:whole], rows[whole : 2 * whole])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_float32_of_one_size(store, kind):
    for batch in itertools.islice(stream(kind, store), 60):
        assert batch.dtype == torch.float32
        assert batch.shape == (48, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_order(store, kind):
    one, same, other = (rows_of(stream(kind, store, seed=seed), 600) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 25])
def test_a_restored_stream_goes_on_bit_for_bit(store, kind, steps):
    one = stream(kind, store)
    list(itertools.islice(one, steps))
    state = json.loads(json.dumps(one.state()))
    expected = rows_of(one, 30 * 48)
    fresh, used = stream(kind, store), stream(kind, store)
    rows_of(used, 13 * 48)
    for other in (fresh, used, one):
        other.restore(state)
        assert torch.equal(rows_of(other, 30 * 48), expected)


@pytest.mark.parametrize("kind", ["memory", "disk", "live"])
def test_two_sites_give_the_same_rows(store, kind):
    for batch in itertools.islice(stream(kind, store, sites=SITES), 50):
        assert list(batch) == SITES
        assert torch.equal(batch[SITES[1]], -batch[SITES[0]][:, :6])


def test_a_text_that_may_mean_several_sites_gives_batches_by_site(store):
    by_site = next(ActivationStream(store, "all.resid_post", 48, seed=3))
    assert list(by_site) == SITES
    assert torch.equal(by_site[SITE], next(ActivationStream(store, SITE, 48, seed=3)))
    assert list(next(ActivationStream((FakeModel(), texts(40)), "1-1.resid_post", 48))) == SITES[1:]


def test_a_batch_is_not_changed_by_those_after_it(store):
    """The buffers of a stream are used again; what it gave out must not be."""
    s = stream("disk", store)
    first = next(s)
    kept = first.clone()
    rows_of(s, 3000)
    assert torch.equal(first, kept)


def test_rows_from_disk_are_mixed_across_the_store(store):
    """A chunk of blocks drawn at random spans the store: a batch has rows of its first and last fifth."""
    where = store.rows(SITE, slice(None))
    place = {tuple(row): i for i, row in enumerate(where.tolist())}
    s = ActivationStream(store, SITE, 128, memory=0, block_rows=8, buffer_rows=256)
    for batch in itertools.islice(s, 7):
        places = torch.tensor([place[tuple(row)] for row in batch.tolist()])
        assert (places < 200).any()
        assert (places > 800).any()
        assert (places.diff() < 0).float().mean() > 0.3  # a sorted batch would have none


def test_other_blocks_meet_in_each_epoch(store):
    """1,000 rows in chunks of 96: were the blocks in one order for ever, the same rows would meet again."""
    rows = rows_of(stream("disk", store, 1), 2000)
    first, second = ({tuple(row) for row in rows[begin : begin + 96].tolist()} for begin in (0, 1000))
    assert len(first & second) < 48


def test_a_permutation_in_memory_is_uniform():
    """Each of the six orders of three rows comes equally often: a chi-square over 600 epochs."""
    s = ActivationStream(torch.arange(3.0)[:, None], batch_size=3)
    orders = [tuple(next(s)[:, 0].tolist()) for _ in range(600)]
    counts = torch.tensor([orders.count(order) for order in itertools.permutations([0.0, 1.0, 2.0])])
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # p = 0.001 with 5 degrees of freedom


def test_how_rows_are_mixed_is_said(store):
    assert stream("memory", store).mixing == "all 1,000 rows in memory, permuted as a whole"
    assert "blocks of 16 neighbouring rows in random order, 6 blocks (96 rows)" in stream("disk", store).mixing
    assert "neighbouring documents, 120 or more" in stream("live", store).mixing


def test_widths_are_known_before_the_first_batch(store):
    assert stream("tensor", store).width() == 8
    assert stream("disk", store, sites=SITES).width("1.resid_post") == 6
    with pytest.raises(ValueError, match="say which site"):
        stream("disk", store, sites=SITES).width()
    with pytest.raises(ValueError, match="no site"):
        stream("disk", store).width("1.resid_post")


def test_a_state_of_another_stream_is_refused(store):
    state = stream("memory", store).state()
    with pytest.raises(ValueError, match="seed 0; this one has 1"):
        stream("memory", store, seed=1).restore(state)
    with pytest.raises(ValueError, match="mixing all 1,000"):
        stream("disk", store).restore(state)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"block_rows": 0}, ValueError, "block_rows"),
        ({"buffer_rows": 0}, ValueError, "buffer_rows"),
        ({"seed": -1}, ValueError, "seed"),
        ({}, ValueError, "say which site.*0.resid_post, 1.resid_post"),
        ({"sites": []}, ValueError, "one or more"),
        ({"sites": [SITE, SITE]}, ValueError, "each once"),
        ({"sites": "7.resid_post"}, StoreError, "no site 7.resid_post"),
    ],
)
def test_a_wrong_argument_is_refused(store, arguments, error, says):
    with pytest.raises(error, match=says):
        ActivationStream(store, **arguments)


@pytest.mark.parametrize(
    ("tensor", "error", "says"),
    [
        (torch.zeros(0, 3), DataError, "no rows"),
        (torch.tensor([[1.0, float("nan")]]), DataError, "NaN or infinite"),
        (torch.tensor([[1.0, float("inf")]]), DataError, "NaN or infinite"),
        (torch.zeros(3), ValueError, r"\[n, d\]"),
        (torch.zeros(3, 3, dtype=torch.int64), ValueError, "floating"),
    ],
)
def test_a_tensor_that_is_no_activations_is_refused(tensor, error, says):
    with pytest.raises(error, match=says):
        ActivationStream(tensor)


def test_a_tensor_has_no_sites(store):
    with pytest.raises(ValueError, match="a tensor has no sites"):
        ActivationStream(torch.ones(3, 3), SITE)


def test_documents_that_run_dry_are_refused():
    once = iter(["5 6 7 8"])
    s = ActivationStream((FakeModel(), once), SITE, 4)
    next(s)
    with pytest.raises(DataError, match="no tokens in epoch 1; give a list"):
        next(s)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_that_are_picked_in_pieces_are_those_of_the_order(monkeypatch, dtype):
    monkeypatch.setattr(streaming, "_SERIAL", 20)  # pieces of 6 rows
    rows = torch.arange(150.0).view(50, 3).to(dtype)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:40]
    out = torch.empty(40, 3)
    streaming._pick(rows, order, out)
    assert torch.equal(out, rows[order].float())
