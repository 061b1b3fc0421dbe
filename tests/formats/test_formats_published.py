"""References to published dictionaries: the right files are asked for, the cache serves, and offline is one line."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from foreign_files import D, M, drawn

from sparsight.dictionaries import TopK
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary
from sparsight.formats.published import Reference, reference_of
from sparsight.models import Site


class Hub:
    """A hub that is a folder: `snapshot_download` of what was asked for, into a cache with links to blobs."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.asked = cache, list[dict[str, Any]]()
        self.offline = False

    def add(self, repo: str, name: str, content: bytes) -> None:
        root = self.cache / f"models--{repo.replace('/', '--')}"
        blob, link = root / "blobs" / name.replace("/", "_"), root / "snapshots" / "abc123" / name
        for path in (blob, link, root / "refs" / "main"):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        (root / "refs" / "main").write_text("abc123")

    def snapshot_download(self, repo: str, **options: Any) -> str:
        self.asked.append({"repo": repo, **options})
        if self.offline:
            raise OSError("no network here\nand a long explanation")
        return str(self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc123")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.cache))
    return hub


def add_gemma(hub: Hub, tmp_path: Path, folder: str) -> None:
    t = drawn(W_enc=(D, M), b_enc=(M,), W_dec=(M, D), b_dec=(D,), threshold=(M,))
    np.savez(tmp_path / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
    hub.add("google/gemma-scope-2b-pt-res", f"{folder}/params.npz", (tmp_path / "params.npz").read_bytes())


@pytest.mark.parametrize(
    "text", ["gemma-scope-2b-pt-res/layer_12/average_l0_82", "hf:google/gemma-scope-2b-pt-res/layer_12/average_l0_82"]
)
@pytest.mark.parametrize("offline", [False, True])
def test_a_reference_is_fetched_or_taken_from_the_cache(text: str, offline: bool, hub: Hub, tmp_path: Path) -> None:
    add_gemma(hub, tmp_path, "layer_12/average_l0_82")
    hub.offline = offline
    dictionary = load_dictionary(text)
    assert (dictionary.model, dictionary.site) == ("google/gemma-2-2b", Site(12, "resid_post"))
    assert dictionary.provenance["published_as"] == "hf:google/gemma-scope-2b-pt-res/layer_12/average_l0_82"
    assert hub.asked[0]["repo"] == "google/gemma-scope-2b-pt-res"
    assert "layer_12/average_l0_82/params.npz" in hub.asked[0]["allow_patterns"]
    assert not any("*" in pattern for pattern in hub.asked[0]["allow_patterns"])


def test_what_neither_hub_nor_cache_has_is_one_line_with_a_remedy(hub: Hub) -> None:
    hub.offline = True
    with pytest.raises(FormatError, match=r"hf:a/b/c is not in the cache.*no network here\).*run once where") as caught:
        load_dictionary("hf:a/b/c")
    assert "\n" not in str(caught.value)


def test_a_folder_that_the_repository_lacks_is_said(hub: Hub) -> None:
    hub.add("a/b", "other/cfg.json", b"{}")
    with pytest.raises(FormatError, match="the repository has no 'c'"):
        load_dictionary("hf:a/b/c")


def test_a_link_in_a_repository_that_leads_elsewhere_is_refused(hub: Hub, tmp_path: Path) -> None:
    TopK(M, 3).build(D).save(tmp_path / "d")
    secret = tmp_path / "secret.json"
    secret.write_bytes((tmp_path / "d" / "dictionary.json").read_bytes())
    hub.add("a/b", "dictionary.safetensors", (tmp_path / "d" / "dictionary.safetensors").read_bytes())
    (hub.cache / "models--a--b/snapshots/abc123/dictionary.json").symlink_to(secret)
    with pytest.raises(FormatError, match=r"dictionary\.json is a link that leads out of its folder"):
        load_dictionary("hf:a/b")
    (hub.cache / "models--a--b/snapshots/abc123/dictionary.json").unlink()
    hub.add("a/b", "dictionary.json", secret.read_bytes())
    assert torch.equal(load_dictionary("hf:a/b").atoms, load_dictionary(tmp_path / "d").atoms)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:a/b", Reference("a/b")),
        ("hf:a/b@main", Reference("a/b", revision="main")),
        ("hf:a/b@v1.0/c/d", Reference("a/b", "c/d", "v1.0")),
        ("hf:EleutherAI/sae-pythia-70m-32k/layers.3", Reference("EleutherAI/sae-pythia-70m-32k", "layers.3")),
        ("google/gemma-scope-2-1b-pt/resid_post/layer_7_width_16k_l0_small",
         Reference("google/gemma-scope-2-1b-pt", "resid_post/layer_7_width_16k_l0_small")),
        ("Llama3_1-8B-Base-L15R-8x", Reference("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x")),
        ("runs/dictionaries/topk", None),
        ("gemma", None),
    ],
)  # fmt: skip
def test_references_are_read(text: str, expected: Reference | None) -> None:
    assert reference_of(text) == expected
    if expected is not None:
        assert reference_of(str(expected)) == expected


@pytest.mark.parametrize("text", ["hf:a", "hf:", "hf:a/b/../c", "hf:a/b//c", "hf:a b/c"])
def test_what_is_no_place_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="expected hf:OWNER/NAME"):
        reference_of(text)


def test_only_files_that_are_read_are_asked_for() -> None:
    patterns = Reference("a/b", "layers.3").patterns
    assert {"layers.3/cfg.json", "layers.3/sae.safetensors", "config.json"} <= set(patterns)
    assert Reference("a/b", "run/checkpoints/ae_100.pt").patterns == [
        "run/checkpoints/ae_100.pt",
        "run/checkpoints/config.json",
        "run/config.json",
    ]


def test_a_folder_on_this_disk_goes_before_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TopK(M, 3).build(D).save("gemma-scope-2b-pt-res/layer_1")
    assert load_dictionary("gemma-scope-2b-pt-res/layer_1").n_latents == M
    assert hub.asked == []
