"""Readers of others' files: plain numbers come through as they are, anything else is one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsight.errors import FormatError
from sparsight.formats.safe_reading import Tensors, read_json, read_npz, read_safetensors, read_torch
from sparsight.formats.sites import HOOKS, hook_of_site, site_of_hook
from sparsight.formats.weights import integer
from sparsight.models import Site


def test_arrays_of_numbers_are_read_from_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W_enc=np.arange(6, dtype=np.float32).reshape(2, 3), n=np.int64(3))
    found = read_npz(tmp_path / "a.npz")
    assert torch.equal(found["W_enc"], torch.arange(6.0).reshape(2, 3))
    assert int(found["n"]) == 3


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W_enc=np.array([{}, []], dtype=object))
    with pytest.raises(FormatError, match=r"a\.npz: no NumPy archive of plain numbers"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("reader", [read_npz, read_safetensors, read_torch, read_json])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04damaged", b"\xff" * 100, b"[1, 2]"], ids=["empty", "zip", "bytes", "list"]
)
def test_every_reader_refuses_what_is_no_such_file_in_one_line(reader, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"file\.bin") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [read_npz, read_safetensors, read_torch, read_json])
def test_every_reader_says_that_a_file_is_not_there(reader, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nothing"):
        reader(tmp_path / "nothing")


def test_a_bfloat16_tensor_is_widened_and_a_float64_one_stays(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float64)}, tmp_path / "f")
    tensors = Tensors(read_safetensors(tmp_path / "f"), tmp_path / "f")
    assert tensors.take("a", 2).dtype == torch.float32
    assert tensors.take("b", None).dtype == torch.float64


@pytest.mark.parametrize("value", [True, torch.ones(2), "3", torch.tensor(torch.nan), None])
def test_one_number_is_one_finite_number(value: object) -> None:
    with pytest.raises(FormatError, match="k must be one finite number"):
        Tensors({"k": value}, Path("f")).number("k")


@pytest.mark.parametrize("value", [True, 2.5, "3", None, float("nan"), float("inf")])
def test_a_whole_number_is_one(value: object) -> None:
    with pytest.raises(FormatError, match="key 'k' must be a whole number"):
        integer(value, "k", Path("f"))


def test_hooks_and_sites_are_read_back() -> None:
    for kind in HOOKS:
        assert site_of_hook(hook_of_site(Site(7, kind))) == Site(7, kind)
    assert site_of_hook(hook_of_site(Site(None, "embed"))) == Site(None, "embed")
    for name in ("blocks.x.hook_resid_post", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_in", "", None):
        assert site_of_hook(name) is None
    assert hook_of_site(Site(3, "mlp_in")) is None
