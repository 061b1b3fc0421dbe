"""`sparsight doctor`: can this machine do the work, and with what."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import typer

from sparsight import __version__
from sparsight.cli.options import AsJson

_LIBRARIES = ("torch", "transformers", "safetensors", "datasets", "scikit-learn", "duckdb", "plotly")
_EXTRAS = {"web": ("fastapi", "uvicorn"), "scale": ("ray",), "judge": ("openai",), "compiled": ("numba",)}


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, load the embedded model, and run one forward pass.

    Example: sparsight doctor
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            typer.echo(f"{name:<18} {shown}")
    if report["embedded model"] != "works":
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Versions, devices, memory, disk, extras, and whether the embedded model runs."""
    import torch

    from sparsight.coding.kernels.compiled import status

    return {
        "sparsight": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "extras": {name: "installed" if all(_has(m) for m in ms) else "absent" for name, ms in _EXTRAS.items()},
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
        "torch threads": torch.get_num_threads(),
        "sparse coding": status(),
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB here",
        "network": "off (HF_HUB_OFFLINE=1)" if os.environ.get("HF_HUB_OFFLINE") == "1" else "hub downloads allowed",
        "embedded model": _embedded_model(),
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _embedded_model() -> str:
    from sparsight.errors import SparsightError
    from sparsight.models import load_model, organism

    try:
        lm = load_model("organism", device="cpu")
        text = next(iter(organism.corpus(0, 1))).text
        loss = lm.loss(lm.tokenize([text]))
    except SparsightError as error:
        return f"fails: {error}"
    return "works" if bool(loss.isfinite()) else f"fails: loss {loss}"
