"""Puts the slow twins of `tests/reference` on the path, and has Triton interpret its kernels where there is no GPU."""

import os
import sys
from pathlib import Path

import torch

# Read when Triton is imported, so it must be set before any test imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parents[1]))
