"""Steps of one very wide TopK dictionary: peak memory beside the estimate, and swap.

    python benchmarks/wide.py --latents 1048576 --d 768 --k 32 --batch 2048 --steps 3

The estimate is the one that `train` refuses runs by; what Python and torch hold before the dictionary exists is added.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

from sparsight.dictionaries import TopK
from sparsight.training import Training
from sparsight.training.member import Member
from sparsight.training.memory import estimated_bytes


def held(name: str, file: str = "/proc/self/status") -> float:
    """Gigabytes that Linux counts under a name."""
    values = dict(line.split(":", 1) for line in Path(file).read_text().splitlines())
    return int(values[name].split()[0]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=2**20)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cpu")
    config = TopK(options.latents, options.k)
    training = Training(n_tokens=10**9, batch_size=options.batch, step="sparse")
    parts = estimated_bytes(config, [options.d], training, device)
    before, swap_free = held("VmRSS"), held("SwapFree", "/proc/meminfo")
    estimate = before + sum(parts.values()) / 1e9
    print(f"estimate {estimate:.1f} GB: " + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items()))
    member = Member("wide", config, options.d, training, device)
    print(f"built, peak so far {held('VmHWM'):.1f} GB", flush=True)
    g, seconds, losses = torch.Generator().manual_seed(0), [], []
    for _ in range(options.steps):
        x = torch.randn(options.batch, options.d, generator=g) / options.d**0.5
        started = time.monotonic()
        losses.append(float(member.step(x, 1e-4, 1.0).loss))
        seconds.append(time.monotonic() - started)
        print(f"step of {seconds[-1]:.1f} s, loss {losses[-1]:.4f}, peak {held('VmHWM'):.1f} GB", flush=True)
    swapped = swap_free - held("SwapFree", "/proc/meminfo")
    peak = held("VmHWM")
    print(f"peak {peak:.1f} GB, {peak / estimate:.0%} of the estimate; swapped {swapped:.2f} GB")
    print(json.dumps({"peak_gb": peak, "estimate_gb": estimate, "seconds": seconds, "swapped_gb": swapped}))


if __name__ == "__main__":
    main()
