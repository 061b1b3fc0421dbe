"""How much memory a run needs, computed before anything is allocated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparsight.dictionaries import DictionaryConfig
from sparsight.dictionaries.selection import block_rows
from sparsight.errors import TrainingError
from sparsight.training.compiled.choice import takes_compiled_step
from sparsight.training.compiled.terms import KEPT_FROM
from sparsight.training.settings import Training

# Architectures whose step never holds a whole matrix of pre-activations.
SPARSE = ("topk", "batchtopk", "matryoshka", "transcoder", "pursuit")
FLOAT = 4
GIB = 2**30


def estimated_bytes(
    config: DictionaryConfig, widths: Sequence[int], training: Training, device: torch.device, processes: int = 1
) -> dict[str, int]:
    """Bytes that training one dictionary takes, by purpose.

    Parameters: encoder and atoms, `n_latents (d_in + d_out)`, and a few vectors. As many again for gradients, twice for
    Adam's averages, once for an average of the weights. A batch: the activations four times, and the pre-activations
    four times (values, which are active, and their gradients), of one block of rows where the step is sparse. The
    compiled step keeps gradients only where a latent is active often (those of dead latents while they are revived are
    not counted here), and has two copies of the encoder in bfloat16: one as it is, one laid out for products.
    """
    m, d = config.n_latents, sum(widths)
    has_encoder = config.architecture != "pursuit"
    pair = 2 * d if len(widths) == 1 or config.architecture == "crosscoder" else d
    shard = -(-m // processes) if training.parallel == "latents" else m
    parameters = FLOAT * (shard * ((pair if has_encoder else d) + 4) + 2 * d)
    rows = -(-training.batch_size // training.accumulate)
    if training.parallel == "data":
        rows = -(-rows // processes)
    whole = min(rows, block_rows(shard, device)) if config.architecture in SPARSE else 4 * rows
    needed = {
        "parameters": parameters,
        "gradients": parameters,
        "Adam": 2 * parameters,
        "batch": FLOAT * (4 * training.batch_size * d + whole * shard),
    }
    if takes_compiled_step(config, m * d, training, device, processes):
        k: int = getattr(config, "k", m)
        needed["gradients"] = FLOAT * 2 * m * d if training.batch_size * k > KEPT_FROM * m else 0
        needed["screening"] = 4 * m * d
    if training.ema is not None:
        needed["average"] = parameters
    if not has_encoder:
        update: Any = getattr(config, "update", "gradient")
        if update in ("mod", "online"):  # two float64 sums, of pairs of latents and of latents with activations
            needed["gradients"], needed["Adam"] = 0, 8 * m * (m + d)
    return needed


def available_bytes(device: torch.device) -> int | None:
    """Bytes that may still be allocated on a device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    known = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free = known.get("MemAvailable")
    limit, used = _number(Path("/sys/fs/cgroup/memory.max")), _number(Path("/sys/fs/cgroup/memory.current"))
    if free is not None and limit is not None and used is not None:
        free = min(free, limit - used)
    return free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or "max": no limit
        return None


def require_memory(
    configs: Sequence[DictionaryConfig],
    widths: Sequence[int],
    training: Training,
    device: torch.device,
    processes: int = 1,
) -> None:
    """Refuse a run that will not fit: all dictionaries keep their weights, one at a time holds a batch.

    Raises:
        TrainingError: more is needed than there is.
    """
    each = [estimated_bytes(config, widths, training, device, processes) for config in configs]
    kept = {name: sum(needed.get(name, 0) for needed in each) for name in each[0] if name != "batch"}
    kept["batch"] = max(needed["batch"] for needed in each)
    needed, available = sum(kept.values()), available_bytes(device)
    if available is None or needed <= available:
        return
    purposes = ", ".join(f"{name} {size / GIB:.1f}" for name, size in kept.items())
    raise TrainingError(
        f"training needs about {needed / GIB:.1f} GiB ({purposes}), but {available / GIB:.1f} GiB are free on "
        f"{device}; "
        "lower n_latents or batch_size, raise accumulate, train fewer dictionaries at once, or go on all the same with "
        "check_memory=False (--no-check-memory)"
    )
