"""With a converted coefficient our loss is theirs in other units; the table of the docs is the one of the code."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import Gated, JumpReLU, ReLU, TopK
from sparsight.training.normalization import fit_normalization
from sparsight.training.objectives import OBJECTIVES
from sparsight.training.presets import NAMES, PRESETS, preset
from sparsight.training.presets.table import presets_table

D, M, B = 6, 20, 400
PAGE = Path(__file__).parents[2] / "docs" / "presets.md"


def raw() -> Tensor:
    g = torch.Generator().manual_seed(3)
    x = 7 * torch.randn(B, D, generator=g) * torch.linspace(0.5, 2, D) + torch.linspace(-5, 9, D)
    return x.double()


CONVERTED = [(p.name, name) for p in PRESETS.values() for name, d in p.definitions.items() if d.setting in ("l1", "l0")]


@pytest.mark.parametrize(("name", "architecture"), CONVERTED)
def test_our_loss_with_the_converted_coefficient_is_theirs_over_the_square_of_the_unit(name, architecture):
    """Their loss of the folded dictionary on raw activations, ours of the same dictionary on normalised ones."""
    p, x = preset(name), raw()
    normalization = fit_normalization([x]).like(x)
    ratio = p.norm_ratio(x)
    config = p.config(M, D, architecture=architecture, coefficient=0.3, norm_ratio=ratio)
    dictionary = config.build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        dictionary.normalize_atoms_()
    none = torch.zeros(M, dtype=torch.bool)
    objective: Any = OBJECTIVES[type(dictionary)]
    ours = float(objective(dictionary, normalization.apply(x), none, 1.0).loss.detach())
    dictionary.fold_(normalization)
    theirs = float(p.loss(dictionary, x, coefficient=0.3, scale=p.scale(x)).detach())
    # The mean and the scale of a normalisation are float32.
    assert ours == pytest.approx(theirs / p.unit(D, ratio) ** 2, rel=1e-5)
    assert ours > 0.2


@pytest.mark.parametrize("name", ["openai-topk", "dictionary-learning"])
def test_the_converted_weight_of_the_revival_does_the_same(name):
    p, x = preset(name), raw()
    normalization = fit_normalization([x]).like(x)
    ratio = p.norm_ratio(x)
    dictionary = p.config(M, D, architecture="topk", coefficient=0.3, norm_ratio=ratio, k=3).build(D).double()
    dead = torch.arange(M) < 2
    with torch.no_grad():
        dictionary.b_enc.fill_(3.0)
        dictionary.b_enc[dead] = 0.1  # positive on some tokens
    objective: Any = OBJECTIVES[type(dictionary)]
    found = objective(dictionary, normalization.apply(x), dead, 1.0)
    assert float(found.parts["auxiliary"]) > 0.3
    dictionary.fold_(normalization)
    with_dead, without = (p.loss(dictionary, x, coefficient=0.3, dead=d, scale=p.scale(x)) for d in (dead, None))
    theirs = float((with_dead - without).detach()) / p.unit(D, ratio) ** 2
    assert float(found.parts["auxiliary"]) == pytest.approx(theirs, rel=1e-5)


def test_scales_are_those_of_the_definitions():
    x = raw()
    scaled = preset("saelens").scale(x) * x
    assert float(scaled.norm(dim=1).mean()) == pytest.approx(math.sqrt(D))
    scaled = preset("gemma-scope").scale(x) * x
    assert float(scaled.square().sum(dim=1).mean()) == pytest.approx(1)
    assert preset("sparsify").scale(x) == preset("openai-topk").norm_ratio(x) == 1


def test_known_coefficients_convert_to_known_numbers():
    # Centred activations of equal norms: theirs over sqrt(d), theirs as it is, theirs over d.
    assert preset("anthropic-april-2024").coefficient(5.0, 2304) == pytest.approx(5 / 48)
    assert preset("dictionary-learning").coefficient(0.1, 2304) == 0.1
    assert preset("saelens").coefficient(1e-2, 2304, architecture="jumprelu") == pytest.approx(1e-2 / 2304)
    # A mean that carries three quarters of the energy: the norm is twice the spread, a unit of ours half of theirs.
    assert preset("gemma-scope").coefficient(1e-3, 2304, 2.0) == pytest.approx(4e-3)
    # 0.1 with mean square 1 is 4.8 with mean norm sqrt(2304).
    assert preset("saelens").coefficient(4.8, 2304) == pytest.approx(
        preset("dictionary-learning").coefficient(0.1, 2304)
    )


def test_configurations_carry_the_definition():
    relu = preset("anthropic-april-2024").config(64, 16)
    assert relu == ReLU(64, 5 / 4, norms="free", aux=0.0)
    jump = preset("gemma-scope").config(64, 16, target_l0=8.0, norm_ratio=2.0)
    assert jump == JumpReLU(64, target_l0=8.0, bandwidth=2e-3, threshold=2e-3, aux=0.0)
    assert preset("saelens").config(64, 16, architecture="gated") == Gated(64, 1 / 4, freeze_aux_decoder=False, aux=0.0)
    topk = preset("openai-topk").config(64, 16, k=4)
    assert topk == TopK(64, 4, aux=1 / 32, k_aux=256, dead_after=10_000_000)
    for p in PRESETS.values():
        for name in p.definitions:
            fields = {"k": 4} if name in ("topk", "batchtopk", "matryoshka") else {}
            fields |= {"widths": (16,)} if name == "matryoshka" else {}
            fields |= {"coefficient": 1e-3} if p.name == "gemma-scope" else {}
            assert p.config(64, 16, architecture=name, **fields).architecture == name


def test_schedules_are_shares_of_the_run():
    settings = preset("gemma-scope").training(4096 * 20_000, 1024)
    assert (settings.warmup, settings.sparsity_warmup, settings.lr) == (0.05, 0.5, 7e-5)
    assert (settings.betas, settings.clip, settings.batch_size) == ((0.0, 0.999), None, 4096)
    short = preset("gemma-scope").training(4096 * 100, 1024, lr=1e-3)
    assert (short.warmup, short.sparsity_warmup, short.lr) == (1.0, 1.0, 1e-3)
    # The rate at a width of 2^14 / 4 is twice that at 2^14; it falls from the warm-up's end to the last step.
    settings = preset("sparsify").training(65_536 * 4000, 2**12)
    assert (settings.lr, settings.warmup, settings.decay) == (4e-4, 0.25, 0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("sae"), "preset must be one of anthropic-april-2024, gemma-scope, .*got 'sae'"),
        (lambda: preset("gemma-scope").config(64, 16), "gemma-scope has no usual coefficient; give coefficient="),
        (lambda: preset("gemma-scope").config(64, 16, architecture="topk"), "gemma-scope defines jumprelu, not 'topk'"),
        (lambda: preset("saelens").scale(torch.zeros(4, 3)), "the 4 activations are all zero"),
        (lambda: preset("saelens").norm_ratio(torch.ones(4, 3)), "the 4 activations are all equal"),
    ],
)
def test_what_a_preset_cannot_give_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_losses_of_other_architectures_or_without_their_fields_are_refused():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="openai-topk defines topk, not 'relu'"):
        preset("openai-topk").loss(ReLU(8, 0.1).build(3), x)
    with pytest.raises(ValueError, match="this loss has a target"):
        preset("dictionary-learning").loss(JumpReLU(8, l0=0.1).build(3), x)


def test_the_table_of_the_docs_is_the_one_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert presets_table() in page, "run `python -m sparsight.training.presets.table docs/presets.md`"
    assert all(f"`{name}`" in page for name in NAMES)
