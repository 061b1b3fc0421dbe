"""Training that goes on from a dictionary that exists."""

from pathlib import Path

import pytest
import torch
from test_training_settings_of_the_step import CONFIGS, D
from torch import Tensor

from sparsight.activations import ActivationStore, harvest
from sparsight.cli import main
from sparsight.dictionaries import Pursuit, TopK
from sparsight.errors import TrainingError
from sparsight.models import load_model
from sparsight.models.organism import corpus
from sparsight.training import FineTune, Training, train


def data(seed: int = 0) -> Tensor:
    return 3 * torch.randn(500, D, generator=torch.Generator().manual_seed(seed)) + 5


SETTINGS = Training(n_tokens=10 * 64, batch_size=64, lr=0.01)


@pytest.mark.parametrize("config", [*CONFIGS, Pursuit(32, 4, update="gradient")], ids=lambda c: c.architecture)
def test_with_no_learning_rate_the_same_dictionary_comes_back(config: object, tmp_path: Path) -> None:
    [first] = train(data(), [config], SETTINGS, out=tmp_path / "first")
    still = Training(n_tokens=64, batch_size=64, lr=1e-30)
    # On other data, hence another normalisation.
    [again] = train(100 * data(1) - 7, [first.dictionary], still, out=tmp_path / "again")
    assert again.folder.name == f"finetune-{first.folder.name}"
    for (name, a), b in zip(first.dictionary.named_parameters(), again.dictionary.parameters(), strict=True):
        if config.architecture != "pursuit" or name == "atoms":  # Pursuit's offset is a running mean
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3, msg=name)
    if config.architecture != "pursuit":
        torch.testing.assert_close(first.dictionary(data()), again.dictionary(data()), rtol=1e-3, atol=1e-2)


def test_fine_tuning_starts_where_training_ended_and_goes_further(tmp_path: Path) -> None:
    [first] = train(data(), [TopK(32, 4)], SETTINGS, out=tmp_path / "first")
    entries = [TopK(32, 4), FineTune(first.folder)]
    fresh, tuned = train(data(), entries, SETTINGS, out=tmp_path / "second")
    assert tuned.metrics[0]["fvu"] < 0.7 * fresh.metrics[0]["fvu"]
    assert tuned.metrics[-1]["fvu"] < first.metrics[-1]["fvu"]
    assert tuned.dictionary.provenance["started_from"]["tokens_seen"] == 640


def test_resuming_from_other_weights_is_refused(tmp_path: Path) -> None:
    [first] = train(data(), [TopK(32, 4)], SETTINGS, out=tmp_path / "first")
    train(data(), [first.dictionary], SETTINGS, out=tmp_path / "tuned")
    with torch.no_grad():
        first.dictionary.b_dec += 1
    with pytest.raises(TrainingError, match="starts_from"):
        train(data(), [first.dictionary], SETTINGS, out=tmp_path / "tuned", resume=True)


def exit_code(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


def test_the_command_goes_on_from_a_folder_and_refuses_options_that_choose_another_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store, site = tmp_path / "store", "2.resid_post"
    harvest(load_model("organism"), corpus(0, 40), [site], store, n_tokens=800)
    settings = Training(n_tokens=256, batch_size=64)
    [first] = train(ActivationStore(store), [TopK(16, 2)], settings, out=tmp_path / "first")
    command = ["train", "--activations", str(store), "--from", str(first.folder), "--out", str(tmp_path / "second")]
    given = ["--tokens", "256", "--batch-size", "64", "--ema", "0.9", "--precision", "bf16", "--quiet"]
    assert exit_code([*command, *given]) == 0
    assert (tmp_path / "second" / "finetune-topk-16-k2" / "dictionary.json").exists()
    assert exit_code([*command, "--latents", "32"]) == 2
    assert "--from keeps width, architecture and sparsity" in capsys.readouterr().err
