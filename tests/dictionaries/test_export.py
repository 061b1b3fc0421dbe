"""A dictionary exported is the same dictionary: codes are equal, records go along."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    DictionaryConfig,
    Gated,
    GatedDictionary,
    JumpReLU,
    Normalization,
    Pursuit,
    ReLU,
    TopK,
)
from sparsight.dictionaries.export import gated_to_jumprelu, relu_to_jumprelu, unfolded
from sparsight.formats import load_dictionary
from sparsight.models import Site

D, M = 6, 40
ARCHITECTURES = [
    TopK(M, 5),
    JumpReLU(M, target_l0=5),
    Pursuit(M, 5),
    ReLU(M, 0.1),
    ReLU(M, 0.1, norms="free", p_end=0.5),
    Gated(M, 0.1),
    Gated(M, 0.1, untied=True),
    Gated(M, 0.1, shared_bias=True),
]


def shaken(config: DictionaryConfig, size: float = 0.3) -> AbstractDictionary:
    """A float64 dictionary whose trained parameters are far from their start."""
    g = torch.Generator().manual_seed(0)
    dictionary = config.build(D, g).double()
    with torch.no_grad():
        for parameter in (p for p in dictionary.parameters() if p.requires_grad):
            parameter += size * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary.requires_grad_(False)


def data(n: int = 2000) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dyadic(dictionary: GatedDictionary) -> GatedDictionary:
    """The dictionary with entries that are multiples of 1/64 and magnitudes that are powers of 2 times the gate's.

    Sums and products of such numbers are exact, so that two ways to compute one code agree to the last bit.
    """
    for parameter in dictionary.parameters():
        parameter.copy_((parameter * 64).round() / 64)
    dictionary.r_mag.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64).log().repeat(M // 4))
    return dictionary


def test_a_gated_dictionary_and_its_export_differ_nowhere() -> None:
    dictionary = dyadic(shaken(Gated(M, 0.1)))
    exported = gated_to_jumprelu(dictionary)
    theta = dictionary.b_mag - dictionary.r_mag.exp() * dictionary.b_gate
    assert 5 < int((theta < 0).sum()) < 35  # both kinds of latent are there
    x = (data() * 64).round() / 64
    gate, _, _ = dictionary.paths(x)
    on_the_boundary = (gate.abs() < 1e-12) | ((gate * dictionary.r_mag.exp() + theta).abs() < 1e-12)
    difference = (dictionary.encode_dense(x) - exported.encode_dense(x)).abs()
    assert float(difference[~on_the_boundary].max()) == 0
    assert float(on_the_boundary.double().mean()) < 0.01
    assert 0.1 < float((dictionary.encode_dense(x) > 0).double().mean()) < 0.9


@pytest.mark.parametrize(
    "options", [{}, {"fixed_r_mag": True}, {"shared_bias": True}, {"heaviside": False}, {"target_l0": 5.0}], ids=str
)
def test_every_tied_variant_exports_to_the_same_code(options: dict[str, Any]) -> None:
    dictionary = shaken(Gated(M, **{"l1": None if "target_l0" in options else 0.1, **options}))
    exported = gated_to_jumprelu(dictionary)
    torch.testing.assert_close(exported.encode_dense(data()), dictionary.encode_dense(data()), rtol=1e-12, atol=1e-12)
    assert torch.equal(exported.encode_dense(data()) > 0, dictionary.encode_dense(data()) > 0)
    torch.testing.assert_close(exported(data()), dictionary(data()), rtol=1e-12, atol=1e-12)


def test_untied_magnitudes_have_no_threshold_and_are_refused() -> None:
    with pytest.raises(ValueError, match="untied magnitudes is no JumpReLU dictionary"):
        gated_to_jumprelu(shaken(Gated(M, 0.1, untied=True)))


@pytest.mark.parametrize("norms", ["unit", "free"])
def test_a_relu_dictionary_is_a_jumprelu_dictionary_with_threshold_zero(norms: str) -> None:
    dictionary = shaken(ReLU(M, 0.1, norms=norms))
    exported = relu_to_jumprelu(dictionary)
    assert torch.equal(exported.encode_dense(data()), dictionary.encode_dense(data()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_export_can_be_saved_and_knows_where_it_comes_from(dtype: torch.dtype, tmp_path: Path) -> None:
    dictionary = shaken(Gated(M, 0.1)).to(dtype)
    dictionary.normalize_atoms_()
    dictionary.site, dictionary.model, dictionary.provenance = Site(1, "mlp_out"), "some-model", {"seed": 3}
    dictionary.fold_(Normalization(torch.full((D,), 2.0, dtype=dtype), 0.01))
    exported = gated_to_jumprelu(dictionary)
    exported.save(tmp_path)
    loaded = load_dictionary(tmp_path)
    assert (loaded.site, loaded.model) == (dictionary.site, "some-model")
    assert loaded.provenance == {"seed": 3, "exported_from": "gated"}
    raw = 100 * data().to(dtype) + 2
    torch.testing.assert_close(loaded.encode_dense(raw), dictionary.encode_dense(raw), rtol=1e-4, atol=1e-3)
    assert loaded.normalization is not None
    assert loaded.normalization.scale == 0.01
    assert not any(p.requires_grad for p in exported.parameters())


@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: c.run_name)
def test_folding_and_unfolding_lead_back(config: DictionaryConfig) -> None:
    dictionary = shaken(config)
    normalization = Normalization(torch.linspace(-3, 3, D, dtype=torch.float64), 0.02)
    before = {name: p.clone() for name, p in dictionary.named_parameters()}
    dictionary.fold_(normalization)
    folded = {name: p.clone() for name, p in dictionary.named_parameters()}
    copied, taken_out = unfolded(dictionary)
    assert taken_out.scale == 0.02
    assert copied.normalization is None
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=1e-12, atol=1e-13, msg=name)
    for name, parameter in dictionary.named_parameters():
        assert torch.equal(parameter, folded[name])  # the original is as it was
    copied.fold_(taken_out)
    raw = data(50) / 0.02 + normalization.mean
    torch.testing.assert_close(copied.encode_dense(raw), dictionary.encode_dense(raw), rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="no normalization is folded"):
        unfolded(shaken(config))
