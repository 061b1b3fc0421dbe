"""Promises about the package as a whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import sparsight

ROOT = Path(__file__).parent.parent


def test_import_is_quick():
    """Under 3 s is promised; the lazy root takes milliseconds, so a second is already a regression."""
    code = "import time; t = time.perf_counter(); import sparsight; print(time.perf_counter() - t)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(printed) < 1


def test_every_public_name_exists():
    for name in sparsight.__all__:
        assert getattr(sparsight, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sparsight.nothing


def test_the_package_works_without_the_optional_extras():
    code = (
        "import sys\n"
        "for name in ('fastapi', 'uvicorn', 'ray', 'openai', 'beartype', 'playwright'):\n"
        "    sys.modules[name] = None\n"
        "import sparsight\n"
        "for name in sparsight.__all__: getattr(sparsight, name)\n"
        "from sparsight.cli import app\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shapes_in_signatures_are_enforced_here():
    with pytest.raises(jaxtyping.TypeCheckError):
        sparsight.SparseCode(torch.zeros(2, 3), torch.zeros(2, 3), 5)  # indices must be integers


def test_no_module_hides_its_shapes_from_the_check():
    for path in (ROOT / "src").rglob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(encoding="utf8"), path


def test_nothing_is_unpickled():
    """`torch.load` without weights_only=True, pickle, allow_pickle and trust_remote_code run what a file says."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert "allow_pickle=True" not in call, path
                assert "trust_remote_code=True" not in call, path
                assert not call.startswith("pickle."), path
                assert not call.startswith("torch.load(") or "weights_only=True" in call, path


def test_a_latent_is_never_called_a_feature():
    # In quotes it is the key of another project's file.
    slips = re.compile(
        r"\b(n_features|num_features|feature_(idx|index|id|acts?)|(?<![\"`])d_sae|sae_features?|SAE features?)\b"
    )
    for folder in ("src", "docs", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".html"} and path.is_file():
                found = slips.search(path.read_text(encoding="utf8"))
                assert found is None, f"{path}: {found.group()}" if found else ""
