"""The exact search in compiled code: on CPUs, where numba is installed and the dictionary is large enough."""

import functools
import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsight.coding.arguments import rounding_floor
from sparsight.coding.kernels.search import BLOCK_BYTES
from sparsight.coding.kernels.swept_table import SweptTable
from sparsight.coding.nonnegative_least_squares import gradient_tolerance

# `0` never uses compiled code, `1` does so however small the problem is.
VARIABLE = "SPARSIGHT_COMPILED"
# Below this many entries of the dictionary dense products cost little.
SMALLEST_DICTIONARY = 2**19
# Multiplications that the dense search would make, from which on the seconds that the first use of compiled code on a
# machine takes (about ten, then it is kept on disk) are repaid within one call.
SMALLEST_WORK = 5e11

Rule = Literal["matching", "gradient", "orthogonal"]


class Pursued(NamedTuple):
    """Codes of a block of rows, and the least-squares problems on their supports (matching pursuit has none)."""

    indices: Int64[Tensor, "b k"]
    values: Float[Tensor, "b k"]
    gram: Float[Tensor, "b k2 k2"]
    target: Float[Tensor, "b k2"]
    used: Bool[Tensor, "b k"]


def is_used(atoms: Float[Tensor, "n_latents d"], row_steps: int | None = None) -> bool:
    """Whether an exact search with a table of these atoms runs in compiled code.

    Args:
        atoms: The dictionary.
        row_steps: Steps of all rows together, where they are known; else many.
    Raises:
        ValueError: the environment asks for compiled code that this machine cannot run, or for something unknown.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 (never compiled code), 1 (always) or unset, got {wish!r}")
    if wish == "0" or atoms.device.type != "cpu":
        return False
    small = atoms.numel() < SMALLEST_DICTIONARY
    if wish == "" and (small or (row_steps is not None and row_steps * atoms.numel() < SMALLEST_WORK)):
        return False
    module, reason = _load()
    if module is None and wish == "1":
        raise ValueError(
            f"{VARIABLE}=1 asks for compiled code, but: {reason}; install it by pip install 'sparsight[compiled]'"
        )
    return module is not None


def is_available() -> bool:
    """Whether compiled code can be had here at all."""
    return _load()[0] is not None


def status() -> str:
    """In words: which exact search large dictionaries get on a CPU of this machine, and why."""
    module, reason = _load()
    if module is None:
        return f"torch ({reason}; faster with pip install 'sparsight[compiled]')"
    if os.environ.get(VARIABLE) == "0":
        return f"torch ({VARIABLE}=0)"
    return f"compiled (numba {importlib.import_module('numba').__version__})"


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """The module of compiled functions; or None, and why it cannot be had."""
    try:
        return importlib.import_module("sparsight.coding.kernels.compiled_rows"), ""
    # numba is absent, does not know this NumPy, or finds no folder to keep what it compiled.
    except (ImportError, RuntimeError) as error:
        return None, str(error).splitlines()[0]


def pursue(
    x: Float[Tensor, "n d"],
    table: SweptTable,
    k: int,
    *,
    rule: Rule,
    nonnegative: bool,
    tol: float,
    inner_steps: int = 1,
) -> Iterator[Pursued]:
    """Greedy codes of all rows, block by block.

    One product of a block's rows with all atoms, in float32, gives the first scores; then every row runs on its own,
    `torch.get_num_threads()` rows at a time. Rows whose kept scores no longer tell the atoms apart are scanned again
    together. What is kept, applied and bounded is as in `GramSearch`, but for three things: more changes are applied as
    long as more than a few atoms stay in the race; the table is rounded to equal steps; and scores that decide are
    float64 inner products of atoms with the residual.

    Args:
        x: Rows, balanced.
        table: Of the atoms.
        k: Steps.
        rule: How weights follow a choice.
        nonnegative: Whether the largest inner product is best; else the largest magnitude.
        tol: Score, relative to the norm of the row, at which a row ends.
        inner_steps: Line searches after a choice.
    """
    rows, reason = _load()
    if rows is None:
        raise RuntimeError(f"compiled code cannot be had: {reason}")
    shared = _shared(rows, table, x.dtype, rule, nonnegative, tol, inner_steps)
    scores = torch.empty(min(len(x), _block_rows(table, k)), table.products.shape[1])
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for part in torch.split(x.contiguous(), max(len(scores), 1)):
            problem = rows.Problem(part.double().numpy(), *shared)
            block = _fresh_block(rows, part, scores, k, rule)
            waiting = np.arange(len(part))
            while len(waiting) > 0:
                _scan(waiting, part, table, block)
                # More pieces than threads: rows differ in what they cost.
                pieces = np.array_split(waiting, min(len(waiting), 8 * threads)) if threads > 1 else [waiting]
                run = partial(rows.advance, problem=problem, block=block)
                list(pool.map(run, pieces) if len(pieces) > 1 else map(run, pieces))
                waiting = np.flatnonzero(block.status == rows.WANTS_SCAN)
            yield Pursued(
                torch.from_numpy(block.indices),
                torch.from_numpy(block.values).to(x.dtype),
                torch.from_numpy(block.gram).to(x.dtype),
                torch.from_numpy(block.target).to(x.dtype),
                torch.arange(k) < torch.from_numpy(block.filled).unsqueeze(1),
            )


def _shared(
    rows: ModuleType,
    table: SweptTable,
    dtype: torch.dtype,
    rule: Rule,
    nonnegative: bool,
    tol: float,
    inner_steps: int,
) -> tuple[Any, ...]:
    """What `Problem` holds beside the rows."""
    return (
        table.high.numpy(),
        table.products.numpy(),
        table.coherence.numpy(),
        table.unit,
        table.error,
        {"matching": rows.MATCHING, "gradient": rows.GRADIENT, "orthogonal": rows.ORTHOGONAL}[rule],
        inner_steps,
        nonnegative,
        max(float(tol), rounding_floor(dtype)),
        64 * torch.finfo(dtype).eps,
        gradient_tolerance(dtype),
    )


def _fresh_block(
    rows: ModuleType, part: Float[Tensor, "b d"], scores: Float32[Tensor, "most padded"], k: int, rule: Rule
) -> Any:
    n = len(part)
    chosen = 0 if rule == "matching" else k
    factored = k if rule == "orthogonal" else 0
    return rows.Block(
        scores=scores[:n].numpy(),
        indices=np.zeros((n, k), np.int64),
        values=np.zeros((n, k)),
        applied=np.zeros((n, k)),
        gram=np.zeros((n, chosen, chosen)),
        target=np.zeros((n, chosen)),
        residual=np.empty(part.shape),
        factor=np.empty((n, factored, factored)),
        free=np.empty((n, factored), np.int64),
        n_free=np.zeros(n, np.int64),
        meter=np.zeros((n, 5)),
        filled=np.zeros(n, np.int64),
        status=np.zeros(n, np.int64),
    )


def _scan(waiting: NDArray[np.int64], part: Float[Tensor, "b d"], table: SweptTable, block: Any) -> None:
    """Score all atoms against the residuals of some rows, and keep that."""
    scores = torch.from_numpy(block.scores)[:, : table.low.shape[0]]
    if len(waiting) == len(part) and not block.filled.any():
        torch.mm(part.float(), table.low.T, out=scores)
    else:
        residual = torch.from_numpy(block.residual[waiting]).float()
        scores[torch.from_numpy(waiting)] = residual @ table.low.T


def _block_rows(table: SweptTable, k: int) -> int:
    """Rows in a block so that their scores, and the inner products of their atoms, stay in the cache."""
    return max(1, BLOCK_BYTES // (4 * table.products.shape[1] + 16 * k * k + 64 * k))
