"""Shared by all tests: no network, few threads, one place for the real model's folder."""

import os

import torch

# Triton reads this when it is imported, which any test may do: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
