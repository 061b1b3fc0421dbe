"""The bytes of a shard: another library reads what we write, and what is damaged is refused."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sparsight.activations.shards import file_crc32, map_shard, write_shard
from sparsight.errors import StoreError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.bool]


def examples() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {str(dtype): (torch.randn(7, 3, generator=g) * 10).to(dtype) for dtype in DTYPES}


@pytest.mark.parametrize("name", sorted(examples()))
def test_what_is_written_is_read_by_safetensors_and_by_us(tmp_path, name):
    tensors = examples()
    path = tmp_path / "shard"
    size, crc = write_shard(path, {each: [tensor[:2], tensor[2:]] for each, tensor in tensors.items()})
    assert (size, crc) == (path.stat().st_size, zlib.crc32(path.read_bytes()))
    assert file_crc32(path) == crc
    assert torch.equal(load_file(path)[name], tensors[name])
    assert torch.equal(map_shard(path)[name], tensors[name])
    assert [file.name for file in tmp_path.iterdir()] == ["shard"]


def test_what_safetensors_writes_is_read_by_us(tmp_path):
    save_file(examples(), tmp_path / "shard")
    mapped = map_shard(tmp_path / "shard")
    assert all(torch.equal(mapped[name], tensor) for name, tensor in examples().items())


def test_a_mapped_tensor_never_writes_to_the_file(tmp_path):
    write_shard(tmp_path / "shard", {"x": [torch.ones(3)]})
    map_shard(tmp_path / "shard")["x"].zero_()
    assert torch.equal(map_shard(tmp_path / "shard")["x"], torch.ones(3))


def damage_header(path: Path, change: dict[str, object]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["x"].update(change)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [5]},
        {"shape": [3, -1]},
        {"shape": [1 << 70]},
        {"shape": 4},
        {"shape": [True, 4]},
        {"dtype": "F64"},
        {"dtype": "F16"},
        {"data_offsets": [0, 1 << 40]},
        {"data_offsets": [4, 20]},
        {"data_offsets": [16, 0]},
        {"data_offsets": [0]},
        {"extra": 1},
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, change):
    write_shard(tmp_path / "shard", {"x": [torch.ones(4)], "y": [torch.ones(2, dtype=torch.int16)]})
    damage_header(tmp_path / "shard", change)
    with pytest.raises(StoreError, match=r"shard .*header.*restore"):
        map_shard(tmp_path / "shard")


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 10**6))
def test_any_cut_is_refused(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "shard"
    write_shard(path, {"x": [torch.ones(4)], "y": [torch.ones(2, dtype=torch.int16)]})
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(StoreError, match="shard"):
        map_shard(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (2).to_bytes(8, "little") + b"{}xx"]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "shard").write_bytes(content)
    with pytest.raises(StoreError, match="shard"):
        map_shard(tmp_path / "shard")


def test_a_link_is_refused(tmp_path):
    write_shard(tmp_path / "elsewhere", {"x": [torch.ones(4)]})
    (tmp_path / "shard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="not a plain file"):
        map_shard(tmp_path / "shard")
