"""`sparsight train --preset`: the project's definition reaches the run, its coefficient converted for the store."""

import json
from pathlib import Path

import pytest

from sparsight.activations import ActivationStore, harvest
from sparsight.cli import main
from sparsight.models import load_model, organism
from sparsight.training.presets import NAMES, preset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    lm = load_model("organism", device="cpu")
    return harvest(lm, organism.corpus(5, 10**6), "1.resid_post", tmp_path_factory.mktemp("s") / "s", n_tokens=1500)


def train(store: ActivationStore, out: Path, *arguments: str) -> int:
    call = ["train", "--activations", str(store.path), "--out", str(out), "--latents", "64", "--tokens", "512"]
    with pytest.raises(SystemExit) as ended:
        main([*call, "--batch-size", "256", "--quiet", *arguments])
    return int(ended.value.code or 0)


def test_the_usual_coefficient_is_converted_and_the_schedule_taken(store, tmp_path):
    assert train(store, tmp_path / "o", "--preset", "anthropic-april-2024", "--revive", "resample") == 0
    plan = json.loads((tmp_path / "o" / "training.json").read_text())
    [config] = plan["configs"].values()
    part = store.split("train")
    p = preset("anthropic-april-2024")
    rows = part.rows("1.resid_post", slice(0, len(part)))
    assert config["architecture"] == "relu"
    assert config["l1"] == pytest.approx(5 / p.unit(128, p.norm_ratio(rows)))
    assert (plan["training"]["lr"], plan["training"]["sparsity_warmup"]) == (5e-5, 0.05)
    assert plan["training"]["revive"] == "resample"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_trains(store, tmp_path, name):
    assert train(store, tmp_path / "o", "--preset", name, "--k", "4") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "sae"], "preset must be one of anthropic-april-2024"),
        (["--preset", "gemma-scope"], "gemma-scope has no usual coefficient"),
        (["--preset", "sparsify", "--architecture", "relu"], "sparsify defines topk, not 'relu'"),
        (["--preset", "saelens", "--l1", "3"], "--l1 is in our own units"),
        (["--coefficient", "3", "--k", "4"], "give --preset too"),
        (["--revive", "hope", "--k", "4"], "revive must be one of aux, resample, got 'hope'"),
    ],
)
def test_wrong_calls_are_answered_in_one_line(store, tmp_path, capsys, arguments, message):
    assert train(store, tmp_path / "o", *arguments) == 2
    assert message in capsys.readouterr().err
