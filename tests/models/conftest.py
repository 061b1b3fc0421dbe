"""Tiny models, saved once and loaded as a user loads a folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import CAUSAL, TINY, KeepFloat64, in_float64, save_tiny

from sparsight.models import LanguageModel, load_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny(name, root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[[str], Path]) -> Callable[..., LanguageModel]:
    loaded: dict[tuple[str, str], LanguageModel] = {}

    def model(name: str, dtype: str = "float64") -> LanguageModel:
        if (name, dtype) not in loaded:
            double = dtype == "float64"
            lm = load_model(tiny_folder(name), device="cpu", dtype="float32" if double else dtype)
            if double:
                in_float64(lm.model)
            loaded[name, dtype] = lm
        return loaded[name, dtype]

    return model


@pytest.fixture(params=list(TINY))
def lm(request: pytest.FixtureRequest, tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """Every tiny model, in float64."""
    return tiny(request.param)


@pytest.fixture(
    params=[
        "gpt2",
        "gpt_neox",
        "gpt_neox_sequential",
        "llama",
        "gemma2",
        "phi",
        "opt",
        "opt_norms_behind",
        "bert",
        "roberta",
    ]
)
def family_lm(request: pytest.FixtureRequest, tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """One tiny model for each table of sites, in float64."""
    return tiny(request.param)


@pytest.fixture(params=CAUSAL)
def causal_lm(request: pytest.FixtureRequest, tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """Every tiny model that predicts the next token, in float64."""
    return tiny(request.param)


@pytest.fixture
def exact() -> Iterator[None]:
    """Everything in float64. Without it a softmax that transformers takes in float32 has NaN where all is masked."""
    with KeepFloat64():
        yield
