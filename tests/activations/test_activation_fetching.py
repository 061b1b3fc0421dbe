"""Rows read from files are those of the map: near and far segments, converted or not, however long."""

import pytest
import torch

from sparsight.activations import fetching
from sparsight.activations.fetching import Segment, fetch
from sparsight.activations.shards import map_shard, write_shard
from sparsight.errors import StoreError

N, D = 700, 6
NEAR = [Segment(0, 0, 3, 10), Segment(7, 0, 12, 15), Segment(10, 0, 15, 40)]
FAR = [Segment(0, 1, 690, 700), Segment(10, 0, 0, 5), Segment(15, 1, 0, 300), Segment(315, 0, 100, 101)]
MANY = [Segment(10 * i, i % 2, 70 * (9 - i), 70 * (9 - i) + 10) for i in range(10)]
BACK = [Segment(0, 0, 300, 310), Segment(10, 0, 298, 302), Segment(14, 0, 100, 110)]
ALL = [Segment(0, 0, 0, N), Segment(N, 1, 0, N)]


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16, torch.float32, torch.int8])
def shards(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    files = [folder / f"{i}.safetensors" for i in range(2)]
    g = torch.Generator().manual_seed(0)
    for file in files:
        rows = torch.randint(-100, 100, (N, D), generator=g).to(request.param)
        write_shard(file, {"before": [torch.arange(5)], "x": [rows[:200], rows[200:]], "after": [torch.ones(3)]})
    return files, [map_shard(file)["x"] for file in files]


@pytest.mark.parametrize("piece", [50, 1000, 4 << 20])
@pytest.mark.parametrize("segments", [NEAR, FAR, MANY, BACK, ALL])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_is_read_from_files_is_what_the_maps_hold(shards, monkeypatch, piece, segments, dtype):
    monkeypatch.setattr(fetching, "_PIECE", piece)
    monkeypatch.setattr(fetching, "_GAP", 40)
    files, tensors = shards
    expected = torch.cat([tensors[part.shard][part.begin : part.end] for part in segments]).to(
        dtype or tensors[0].dtype
    )
    out = torch.full_like(expected, 111)
    fetch(files, tensors, segments, out)
    assert torch.equal(out, expected)


def test_segments_that_lie_close_together_are_one_read(monkeypatch):
    monkeypatch.setattr(fetching, "_GAP", 24)
    assert list(fetching._reads(NEAR, 12)) == [NEAR]
    assert list(fetching._reads(NEAR, 13)) == [NEAR[:1], NEAR[1:]]
    assert list(fetching._reads(FAR, 12)) == [[part] for part in FAR]


def test_short_reads_of_a_file_go_together_and_a_long_one_alone(monkeypatch):
    monkeypatch.setattr(fetching, "_PIECE", 100)
    monkeypatch.setattr(fetching, "_TOGETHER", 3)
    a, b, c, d = ([Segment(0, 0, 100 * i, 100 * i + 5)] for i in range(4))
    long, other = [Segment(0, 0, 500, 510)], [Segment(0, 1, 0, 5)]
    assert list(fetching._errands([a, b, c, d, long, a, other, b], 10)) == [
        [a, b, c], [d], [long], [a], [other], [b],
    ]  # fmt: skip
    assert list(fetching._errands([], 10)) == []


def test_a_file_that_ends_before_its_rows_is_refused(tmp_path):
    file = tmp_path / "0.safetensors"
    write_shard(file, {"x": [torch.ones(N, D)]})
    tensor = map_shard(file)["x"]
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1)
    with pytest.raises(StoreError, match="is cut short"):
        fetch([file], [tensor], [Segment(0, 0, 0, N)], torch.empty(N, D))
