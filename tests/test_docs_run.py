"""The pages about activations, formats and models: their commands and their Python run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs import ROOT, commands

from sparsight.activations import ActivationStore, harvest
from sparsight.activations.record import StoreRecord
from sparsight.cli import main
from sparsight.dictionaries import TopK
from sparsight.formats import foreign
from sparsight.models import load_model
from sparsight.models.organism import corpus

DOCS = ROOT / "docs"
GEMMA = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    lm = load_model("organism")
    for seed, name in enumerate(("store", "store-1", "store-2")):
        harvest(lm, corpus(seed, 300), "3.resid_post", folder / "runs" / name, n_tokens=600 if seed else 4500)
    dictionary = TopK(32, 4).build(6, torch.Generator().manual_seed(0)).requires_grad_(False)
    for name in ("runs/dictionaries/topk-1024-k16", "gemma-sae", "pythia"):
        dictionary.save(folder / name)
    dictionary.save(folder / "hub")
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 16384), "b_enc": (16384,), "W_dec": (16384, 4), "b_dec": (4,), "threshold": (16384,)}
    (folder / GEMMA).mkdir(parents=True)
    arrays = {name: torch.randn(shape, generator=g).abs().numpy() for name, shape in shapes.items()}
    np.savez(folder / GEMMA / "params.npz", **arrays)
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among those files; what is on the hub lies in `hub`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(foreign, "fetched", lambda reference: folder / "hub")


@pytest.mark.parametrize("page", ["activations", "formats"])
def test_every_command_of_a_page_runs(page: str) -> None:
    found = commands(DOCS / f"{page}.md")
    assert len(found) >= 2
    for arguments in found:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0, arguments


@pytest.mark.parametrize("page", ["activations", "formats", "models", "toy-superposition"])
def test_the_python_of_a_page_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf8"), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    exec("import torch\nimport sparsight as ss\nimport sparsight\nrows = torch.arange(5)\n" + "\n".join(blocks), names)
    if page == "activations":
        assert tuple(names["batch"].shape) == (2048, ActivationStore("runs/store").width("3.resid_post"))


def test_every_key_of_the_stores_record_is_on_the_page() -> None:
    section = (DOCS / "formats.md").read_text(encoding="utf8").split("# The activation store")[1].split("\n# ")[0]
    for key in StoreRecord.model_fields:
        assert f"`{key}`" in section, key
