"""`sparsight train` understands every architecture by name, and refuses settings that are not the architecture's."""

from typing import Any

import pytest

from sparsight.cli.train import _Given
from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, Pursuit, ReLU, TopK


def given(architecture: str, latents: int = 64, **options: Any) -> _Given:
    return _Given(architecture, latents, options.get("k"), options.get("l1"), options.get("widths"), skip=False)


def test_every_architecture_is_configured_from_its_options() -> None:
    assert given("topk", k=4).config() == TopK(64, 4)
    assert given("batchtopk", k=4).config() == BatchTopK(64, 4)
    assert given("matryoshka", k=4, widths="8,16").config() == Matryoshka(64, 4, (8, 16))
    assert given("matryoshka", k=4).config() == Matryoshka(64, 4, (4, 8, 16, 32))
    assert given("matryoshka", latents=4, k=1).config() == Matryoshka(4, 1, (1, 2))
    assert given("jumprelu", k=4).config() == JumpReLU(64, target_l0=4.0)
    assert given("pursuit", k=4).config() == Pursuit(64, 4)
    assert given("relu", k=4).config() == ReLU(64, target_l0=4.0)
    assert given("gated", l1=0.1).config() == Gated(64, 0.1)


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (given("topk"), "--architecture topk needs --k"),
        (
            given("batchtopk", l1=0.1),
            "--l1 is a setting of relu, gated and crosscoder, got --architecture batchtopk; give --k",
        ),
        (given("relu"), "needs either --k, .* or --l1"),
        (given("gated", k=3, l1=0.1), "needs either --k, .* or --l1"),
        (given("topk", k=4, widths="8"), "--widths is a setting of matryoshka, got --architecture topk"),
        (given("matryoshka", k=4, widths="8;9"), "--widths must be numbers with commas between"),
        (given("sae", k=4), "--architecture must be 'topk', 'batchtopk', .* or 'crosscoder', got 'sae'"),
    ],
)
def test_settings_that_are_not_the_architectures_are_refused(refused: _Given, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        refused.config()
    assert "\n" not in str(refusal.value)
