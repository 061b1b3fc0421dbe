"""Transcoders and crosscoders: units of several sites, shares of norm, folders, impossible settings."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    Crosscoder,
    JointNormalization,
    Normalization,
    Place,
    TopK,
    Transcoder,
)
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary
from sparsight.models import Site

WIDTHS = (6, 4)
CONFIGS = [Transcoder(20, 4), Transcoder(20, 4, skip=True), Crosscoder(20, 4), Crosscoder(20, l1=0.1)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.run_name)
# Scales 100 apart: sites in very different units.
UNITS = JointNormalization(
    (
        Normalization(torch.linspace(-3, 3, 6, dtype=torch.float64), 0.02),
        Normalization(torch.linspace(5, 8, 4, dtype=torch.float64), 2.0),
    )
)


def shaken(config: Any) -> AbstractDictionary:
    g = torch.Generator().manual_seed(0)
    dictionary = config.build(WIDTHS, g).double()
    with torch.no_grad():
        for parameter in (p for p in dictionary.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary.requires_grad_(False)


def data(n: int = 50) -> Tensor:
    return torch.randn(n, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / math.sqrt(10)


def raw(x: Tensor) -> Tensor:
    """Rows of both sites as they are before normalisation."""
    first, second = UNITS.parts
    return torch.cat([x[:, :6] / first.scale + first.mean, x[:, 6:] / second.scale + second.mean], dim=1)


def read(dictionary: AbstractDictionary, x: Tensor) -> Tensor:
    return x[:, : dictionary.d_in]


def written(dictionary: AbstractDictionary, x: Tensor) -> Tensor:
    return x[:, -dictionary.d_out :]


def test_a_joint_normalization_is_one_for_each_site() -> None:
    torch.testing.assert_close(UNITS.apply(raw(data())), data())
    torch.testing.assert_close(UNITS.inverse().apply(data()), raw(data()))
    assert UNITS.scale == (0.02, 2.0)


@every_config
def test_sites_of_very_different_units_fold_into_the_same_dictionary(config: Any) -> None:
    dictionary, x = shaken(config), data()
    code, x_hat = dictionary.encode_dense(read(dictionary, x)), dictionary(read(dictionary, x))
    whole = torch.zeros_like(x)
    written(dictionary, whole).copy_(x_hat)
    dictionary.fold_(UNITS)
    taken = read(dictionary, raw(x))
    folded = dictionary.encode_dense(taken)
    assert torch.equal(folded > 0, code > 0)  # the same latents are chosen
    torch.testing.assert_close(dictionary(taken), written(dictionary, raw(whole)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(20, dtype=torch.float64))
    dictionary.unfold_()
    torch.testing.assert_close(dictionary.encode_dense(read(dictionary, x)), code)
    torch.testing.assert_close(dictionary(read(dictionary, x)), x_hat)


def test_values_of_a_transcoder_have_the_units_of_its_output() -> None:
    dictionary, x = shaken(CONFIGS[0]), data()
    before = dictionary.encode_dense(x[:, :6])
    dictionary.fold_(UNITS)
    torch.testing.assert_close(dictionary.encode_dense(raw(x)[:, :6]), before / 2.0)


def test_the_skip_is_affine_and_beside_the_code() -> None:
    dictionary, x = shaken(CONFIGS[1]), data()[:, :6]
    passed = dictionary(x) - dictionary.decode(dictionary.encode(x))
    torch.testing.assert_close(passed, (x - dictionary.b_in) @ dictionary.W_skip)
    assert float(passed.abs().max()) > 0.01


def test_shares_of_norm_say_where_a_latent_writes_whatever_the_units() -> None:
    dictionary = shaken(CONFIGS[2])
    direction = torch.ones(6, dtype=torch.float64) / math.sqrt(6)
    other = torch.ones(4, dtype=torch.float64) / 2
    dictionary.atoms[0] = torch.cat([direction, 0 * other])
    dictionary.atoms[1] = torch.cat([0 * direction, other])
    dictionary.atoms[2] = torch.cat([direction, other]) / math.sqrt(2)
    dictionary.atoms[3] = torch.cat([3 * direction, other]) / math.sqrt(10)
    expected = torch.tensor([[1, 0], [0, 1], [0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(dictionary.atom_norms_by_site[:4], expected)
    dictionary.fold_(UNITS)
    torch.testing.assert_close(dictionary.atom_norms_by_site[:4], expected)


def test_the_code_of_a_crosscoder_sums_what_each_site_says() -> None:
    dictionary, x = shaken(CONFIGS[3]), data()
    parts = [(x[:, at] - dictionary.b_dec[at]) @ dictionary.W_enc[at] for at in dictionary.columns]
    torch.testing.assert_close(dictionary.encode_dense(x), (sum(parts) + dictionary.b_enc).relu())


def test_a_dictionary_of_several_sites_refuses_one_normalization_and_the_reverse() -> None:
    one = UNITS.parts[0]
    for config, said in ((CONFIGS[0], "two normalizations"), (CONFIGS[2], "2 sites is folded with as many")):
        with pytest.raises(ValueError, match=said):
            shaken(config).fold_(one)
    with pytest.raises(ValueError, match="topk reads one site"):
        TopK(8, 2).build(10).fold_(UNITS)


def saved(config: Any, folder: Path) -> AbstractDictionary:
    dictionary = shaken(config)
    dictionary.fold_(UNITS)
    dictionary.places = (Place(6, Site(0, "mlp_in"), "one"), Place(4, Site(0, "mlp_out"), "other"))
    dictionary.site = dictionary.places[0].site
    dictionary.save(folder)
    return dictionary


@every_config
def test_folders_keep_places_and_a_scale_for_each(config: Any, tmp_path: Path) -> None:
    dictionary = saved(config, tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.places == dictionary.places
    assert loaded.normalization.scale == (0.02, 2.0)
    assert torch.equal(loaded.normalization.mean, UNITS.mean)
    x = read(dictionary, raw(data()))
    assert torch.equal(loaded(x), dictionary(x))
    loaded.save(tmp_path / "again")
    for name in ("dictionary.json", "dictionary.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


def test_folders_of_one_site_have_no_key_for_places(tmp_path: Path) -> None:
    TopK(8, 2).build(4).requires_grad_(False).save(tmp_path)
    assert "places" not in json.loads((tmp_path / "dictionary.json").read_text())


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (CONFIGS[0], lambda r: r["places"].pop(), "transcoder does not have 1 places"),
        (CONFIGS[0], lambda r: r.pop("places"), "transcoder does not have 0 places"),
        (CONFIGS[2], lambda r: r["normalization"].update(scale=0.5), "one number for each of 2 places"),
        (CONFIGS[2], lambda r: r["normalization"].update(scale=[0.5, -1.0]), "normalization"),
        (CONFIGS[2], lambda r: r["places"][0].update(width=7), "d_in is 10 but the places make 11"),
        (CONFIGS[2], lambda r: r["places"][0].update(colour=7), "colour"),
        (CONFIGS[2], lambda r: r["places"][0].update(site="0.nowhere"), "nowhere"),
    ],
)
def test_altered_folders_are_refused(
    config: Any, change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    saved(config, tmp_path)
    record = json.loads((tmp_path / "dictionary.json").read_text())
    change(record)
    (tmp_path / "dictionary.json").write_text(json.dumps(record))
    with pytest.raises(FormatError, match=said) as refusal:
        load_dictionary(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Transcoder(8, 9), "k must be between 1 and n_latents=8, got k=9"),
        (lambda: Transcoder(8, 2, aux=-1.0), "aux must be 0"),
        (lambda: Transcoder(8, 2).build((4, 4, 4)), r"one input and one output, got widths \[4, 4, 4\]"),
        (lambda: Transcoder(8, 2).build((4, 0)), "d_out must be a positive number"),
        (lambda: Crosscoder(8), "exactly one of k .* and l1"),
        (lambda: Crosscoder(8, 2, l1=0.1), "exactly one of k .* and l1"),
        (lambda: Crosscoder(8, 9), "k must be between 1 and n_latents=8, got k=9"),
        (lambda: Crosscoder(8, l1=-0.1), "l1 must be 0 or a positive number"),
        (lambda: Crosscoder(8, 2).build((4,)), r"two sites or more, got widths \[4\]"),
        (lambda: Crosscoder(8, 2).build((4, 0)), "d_in must be a positive number"),
    ],
)
def test_impossible_settings_of_several_sites_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_run_names_of_dictionaries_of_several_sites() -> None:
    assert [c.run_name for c in CONFIGS] == [
        "transcoder-20-k4",
        "transcoder-20-k4-skip",
        "crosscoder-20-k4",
        "crosscoder-20-l1_0.1",
    ]
