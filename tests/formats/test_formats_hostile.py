"""Files made to harm: refused in one line; nothing runs, nothing is written, no memory is asked for."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import D, M, drawn, shaken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sparsight.dictionaries import JumpReLU, TopK
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, write_dictionary_as
from sparsight.models import Site

# Each format with the file of its weights and that of its configuration.
FILES = {
    "sparsight": ("dictionary.safetensors", "dictionary.json"),
    "saelens": ("sae_weights.safetensors", "cfg.json"),
    "dictionary_learning": ("ae.pt", "config.json"),
    "sparsify": ("sae.safetensors", "cfg.json"),
    "gemma_scope": ("params.npz", None),
    "gemma_scope_2": ("params.safetensors", "config.json"),
    "llama_scope": ("sae_weights.safetensors", "config.json"),
}
every_format = pytest.mark.parametrize("name", FILES)
WITH_SAFETENSORS = [name for name, (weights, _) in FILES.items() if weights.endswith(".safetensors")]
WITH_JSON = [name for name, (_, config) in FILES.items() if config is not None]


def written(name: str, folder: Path) -> Path:
    config = JumpReLU(M, l0=0.0) if name.startswith("gemma") else TopK(M, 4)
    dictionary = shaken(config.build(D, torch.Generator().manual_seed(1)))
    dictionary.model, dictionary.site = "gpt2", Site(3, "resid_post")
    write_dictionary_as(dictionary, folder, name)
    return folder


def refused(path: Path, message: str = ".") -> str:
    with pytest.raises(FormatError, match=message) as caught:
        load_dictionary(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", ["ae.pt", "0.pt", "ae_100.pt"])
@pytest.mark.parametrize("how", ["torch", "plain", "inside"])
def test_a_pickle_that_would_run_code_does_not(file: str, how: str, tmp_path: Path) -> None:
    target, path = tmp_path / "harmed", tmp_path / file
    harm: Any = {"encoder.weight": torch.ones(3), "x": Harm(target)} if how == "inside" else Harm(target)
    if how == "plain":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, path)
    refused(path)
    if file == "ae.pt":
        refused(tmp_path)
    assert not target.exists()
    # The file does what it is made for where it is let.
    if how == "plain":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


def test_an_array_of_objects_in_an_archive_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "harmed"
    np.savez(tmp_path / "params.npz", W_enc=np.array([Harm(target)], dtype=object))
    refused(tmp_path, "holds object, not numbers")
    assert not target.exists()


@pytest.mark.parametrize("entry", ["../escaped.npy", "/tmp/escaped.npy", "a/../../escaped.npy", "..\\escaped.npy"])
def test_paths_in_an_archive_lead_nowhere(entry: str, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    array = io.BytesIO()
    np.save(array, np.ones(3))
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr(zipfile.ZipInfo(entry), array.getvalue())
    before = sorted(tmp_path.rglob("*"))
    refused(folder, "is no array")
    assert sorted(tmp_path.rglob("*")) == before


def header(shape: tuple[int, ...], order: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": order, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**12, 10**6)) + bytes(64), "says it holds"),
        (header((2**62, 4)) + bytes(64), "says it holds"),
        (header((-4,)) + bytes(16), "says it holds|negative"),
        (bytes(5_000_000), "unpacks to 5000000 bytes"),
    ],
    ids=["terabytes", "overflow", "negative", "bomb"],
)
def test_an_archive_that_claims_more_than_it_holds_is_refused_unopened(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", content)
    refused(tmp_path, message)


def safetensors_with(found: dict[str, Any], content: bytes = b"") -> bytes:
    text = json.dumps(found).encode()
    return struct.pack("<Q", len(text)) + text + content


@pytest.mark.parametrize("name", WITH_SAFETENSORS)
@pytest.mark.parametrize(
    "content",
    [
        safetensors_with({"W_enc": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}),
        safetensors_with({"W_enc": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 64]}}, bytes(64)),
        safetensors_with({"W_enc": {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]}}, bytes(64)),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        safetensors_with({"W_enc": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]}}, bytes(64)),
    ],
    ids=["terabytes", "longer", "before", "header", "negative header", "overflow"],
)
def test_safetensors_with_a_lying_header_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    folder = written(name, tmp_path / "d")
    (folder / FILES[name][0]).write_bytes(content)
    refused(folder, "truncated or no safetensors file")


@pytest.mark.parametrize("name", WITH_SAFETENSORS)
def test_tensors_of_no_numbers_ask_for_no_memory(name: str, tmp_path: Path) -> None:
    """An axis of length 0 may stand beside one of any length at no bytes."""
    folder = written(name, tmp_path / "d")
    shape = {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}
    names = ("W_enc", "w_enc", "W_E", "encoder.weight", "atoms", "b_dec", "b_D", "W_dec", "w_dec")
    (folder / FILES[name][0]).write_bytes(safetensors_with(dict.fromkeys(names, shape)))
    refused(folder)


def test_a_tensor_whose_strides_repeat_one_number_asks_for_no_memory(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save(
        {"pre_bias": torch.zeros(6), "latent_bias": torch.zeros(3), "encoder.weight": huge[:, :6]}, tmp_path / "0.pt"
    )
    refused(tmp_path / "0.pt", r"encoder\.weight says it is \[1000000, 6\]")


@pytest.mark.parametrize("key", ["n_latents", "d_in"])
def test_a_record_that_asks_for_more_than_the_weights_hold_is_refused(key: str, tmp_path: Path) -> None:
    folder = written("sparsight", tmp_path)
    record = json.loads((folder / "dictionary.json").read_text())
    record[key] = 10**12
    record["config"]["n_latents"] = record["n_latents"]
    (folder / "dictionary.json").write_text(json.dumps(record))
    refused(folder, "ask for more than the .* numbers")


@every_format
def test_links_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = written(name, tmp_path / "d")
    for file in (file for file in FILES[name] if file is not None):
        elsewhere = tmp_path / "elsewhere" / file
        elsewhere.parent.mkdir(exist_ok=True)
        shutil.move(folder / file, elsewhere)
        (folder / file).symlink_to(elsewhere)
        refused(folder, "is a link that leads out of its folder")
        (folder / file).unlink()
        shutil.move(elsewhere, folder / file)
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    assert load_dictionary(tmp_path / "link").n_latents == M


def test_a_link_of_the_folder_of_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d" / "hyperparams.json").write_text("{}")
    save_file(drawn(x=(3,)), tmp_path / "elsewhere" / "final.safetensors")
    (tmp_path / "d" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "d", "leads out of its folder")


JSONS: dict[str, Callable[[str], str]] = {
    "twice": lambda text: '{"x": 1, "x": 2, ' + text.lstrip()[1:],
    "deep": lambda text: "[" * 100_000,
    "deep objects": lambda text: '{"a":' * 50_000,
    "long number": lambda text: '{"x": ' + "9" * 100_000 + "}",
    "list": lambda text: "[]",
    "nothing": lambda text: "",
    "bytes": lambda text: "\x00\ufffe",
}


@pytest.mark.parametrize("name", WITH_JSON)
@pytest.mark.parametrize("how", JSONS)
def test_a_configuration_made_to_harm_is_refused(name: str, how: str, tmp_path: Path) -> None:
    folder = written(name, tmp_path)
    config = folder / str(FILES[name][1])
    config.write_text(JSONS[how](config.read_text()))
    refused(folder)


@pytest.mark.parametrize("name", WITH_JSON)
def test_a_huge_configuration_is_not_even_read(name: str, tmp_path: Path) -> None:
    folder = written(name, tmp_path)
    with (folder / str(FILES[name][1])).open("wb") as file:
        file.truncate(65 * 2**20)  # a hole: no bytes on the disk
    refused(folder, "is larger than 64 MiB")


@every_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(name: str, bad: float, tmp_path: Path) -> None:
    folder = written(name, tmp_path)
    weights = folder / FILES[name][0]
    if weights.suffix == ".npz":
        arrays = dict(np.load(weights))
        arrays["W_dec"][0, 0] = bad
        np.savez(weights, **arrays)
    else:
        from safetensors.torch import load_file

        tensors = torch.load(weights) if weights.suffix == ".pt" else load_file(weights)
        for tensor in tensors.values():
            if tensor.ndim == 2:
                tensor[0, 0] = bad
        (torch.save if weights.suffix == ".pt" else save_file)(tensors, weights)
    refused(folder, "holds NaN or infinity")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in FILES:
        written(name, folder / name)
    return folder


@every_format
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_or_with_bytes_changed_is_refused_or_read(
    name: str, data: st.DataObject, whole: Path
) -> None:
    """Cut files are refused. Where bytes were changed, numbers may still be numbers; else a refusal comes, no crash."""
    file = data.draw(st.sampled_from([file for file in FILES[name] if file is not None]))
    content = (whole / name / file).read_bytes()
    damaged = whole.parent / f"damaged-{name}"
    shutil.copytree(whole / name, damaged, dirs_exist_ok=True)
    cut = data.draw(st.booleans())
    if cut:
        end = data.draw(st.integers(0, len(content.rstrip()) - 1))
        (damaged / file).write_bytes(content[:end])
        refused(damaged)
        return
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (damaged / file).write_bytes(bytes(changed))
    with contextlib.suppress(FormatError):
        load_dictionary(damaged)
