"""Folders that are not what they claim to be are refused, in one line that says where and why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsight.dictionaries import JumpReLU, Normalization, TopK
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dictionary = TopK(12, 3).build(4, torch.Generator().manual_seed(0)).requires_grad_(False)
    dictionary.fold_(Normalization(torch.ones(4), 0.5))
    dictionary.save(tmp_path / "dictionary")
    return tmp_path / "dictionary"


def in_record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        record = json.loads((folder / "dictionary.json").read_text())
        change(record)
        (folder / "dictionary.json").write_text(json.dumps(record))

    return damage


def in_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "dictionary.safetensors")
        change(tensors)
        save_file(tensors, folder / "dictionary.safetensors")

    return damage


def truncate(folder: Path) -> None:
    path = folder / "dictionary.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unknown key": (in_record(lambda r: r.update(colour="red")), r"dictionary\.json: unknown key 'colour'"),
    "unknown config key": (in_record(lambda r: r["config"].update(kk=3)), r"unknown key 'config\.kk'"),
    "unknown nested key": (
        in_record(lambda r: r["normalization"].update(std=3)),
        r"unknown key 'normalization\.std'",
    ),
    "missing key": (in_record(lambda r: r.pop("architecture")), "key 'architecture' is missing"),
    "missing config key": (in_record(lambda r: r["config"].pop("k")), "in config: key 'k' is missing"),
    "impossible config": (in_record(lambda r: r["config"].update(k=600)), "got k=600"),
    "config of a wrong type": (in_record(lambda r: r["config"].update(k="many")), "in config: key 'k': .*'many'"),
    "unknown architecture": (in_record(lambda r: r.update(architecture="vae")), "unknown architecture 'vae'.* topk"),
    "later version": (in_record(lambda r: r.update(format_version=2)), "key 'format_version'.*2"),
    "unknown site": (in_record(lambda r: r.update(site="2.nowhere")), "key 'site'.*2.nowhere"),
    "not folded": (in_record(lambda r: r["normalization"].update(folded=False)), r"key 'normalization\.folded'"),
    "other width": (in_record(lambda r: r.update(n_latents=13)), "n_latents is 13 but config.n_latents is 12"),
    "other d_in": (in_record(lambda r: r.update(d_in=5)), r"must be \[5\], got \[4\]"),
    "no mean": (in_weights(lambda t: t.pop("normalization.mean")), "both be there or neither"),
    "no JSON": (lambda f: (f / "dictionary.json").write_text("{"), "not JSON"),
    "no record": (lambda f: (f / "dictionary.json").unlink(), r"has no dictionary\.json"),
    "no weights": (lambda f: (f / "dictionary.safetensors").unlink(), r"has no dictionary\.safetensors"),
    "truncated": (truncate, r"dictionary\.safetensors is truncated or no safetensors file"),
    "not safetensors": (lambda f: (f / "dictionary.safetensors").write_bytes(b"PK\x03\x04"), "no safetensors file"),
    "shape": (in_weights(lambda t: t.update(b_dec=torch.zeros(5))), r"b_dec must be \[4\].*got \[5\]"),
    "type": (in_weights(lambda t: t.update(b_dec=torch.zeros(4, dtype=torch.int64))), "b_dec must be.*int64"),
    "missing tensor": (in_weights(lambda t: t.pop("W_enc")), "expected tensors .*W_enc"),
    "extra tensor": (in_weights(lambda t: t.update(scale=torch.ones(1))), "expected tensors .*got .*scale"),
    "NaN": (in_weights(lambda t: t["b_enc"].fill_(torch.nan)), "b_enc holds NaN or infinity"),
    "NaN mean": (in_weights(lambda t: t["normalization.mean"].fill_(torch.nan)), "mean holds NaN"),
    "long atom": (in_weights(lambda t: t["atoms"][7].mul_(1.001)), "atom 7 has norm 1.001"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(name: str, folder: Path) -> None:
    damage, said = DAMAGES[name]
    load_dictionary(folder)
    damage(folder)
    with pytest.raises(FormatError, match=said) as refusal:
        load_dictionary(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("name", ["weights.ckpt", "ae.pth", "sae.pkl", "weights.bin"])
def test_pickles_are_refused_with_a_remedy_whether_or_not_they_exist(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for _ in range(2):
        with pytest.raises(FormatError, match=r"is a pickle, and pickles are not read .* give the folder"):
            load_dictionary(path)
        torch.save({"W": torch.zeros(2)}, path)


def test_missing_folders_and_plain_files_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FormatError, match="no dictionary folder at"):
        load_dictionary(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="is a file; give the folder"):
        load_dictionary(folder / "dictionary.json")


def test_saving_over_a_dictionary_replaces_it_and_leaves_other_files_alone(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("kept")
    JumpReLU(5, l0=0.1).build(4, torch.Generator().manual_seed(0)).save(folder)
    assert load_dictionary(folder).config == JumpReLU(5, l0=0.1)
    names = {path.name for path in folder.iterdir()}
    assert names == {"dictionary.json", "dictionary.safetensors", "metrics.jsonl"}


def test_a_full_disk_leaves_the_old_dictionary_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("sparsight.dictionaries.files.save_file", full)
    with pytest.raises(FormatError, match=r"cannot write .*No space left on device; nothing was changed"):
        TopK(5, 1).build(4).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_dictionary_with_nan_is_not_written(tmp_path: Path) -> None:
    dictionary = TopK(5, 1).build(4, torch.Generator().manual_seed(0)).requires_grad_(False)
    dictionary.b_dec[2] = torch.nan
    with pytest.raises(FormatError, match="b_dec holds NaN"):
        dictionary.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FormatError, match=r"cannot write .*taken: File exists"):
        TopK(5, 1).build(4, torch.Generator().manual_seed(0)).save(tmp_path / "taken")
