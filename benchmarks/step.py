"""The training step beside SAELens, dictionary_learning and sparsify, and beside what the machine allows.

    python benchmarks/step.py --size M --rounds 5 --peers-python .venv-peers/bin/python --out step.json

Every contender runs in a process of its own; rounds are interleaved, so a machine that others use disturbs all alike.
Figures are medians over rounds, ratios medians of ratios within a round. Before anything is timed, each contender is
given the same weights and batch, and its gradients of the reconstruction are compared with the dense ones in float64,
each gradient divided by its norm (sparsify's loss is a fraction of variance: the same up to a factor).

The floor is what no sparse step can do without (`sparsight.training.cost`), at the rates at which this machine
multiplies matrices, in float32 and in bfloat16, and copies memory: both measured here, in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.training.cost import Machine, step_seconds

SIZES = {"T": (64, 512, 8, 256), "S": (512, 4096, 32, 2048), "M": (768, 16384, 32, 2048), "L": (768, 24576, 32, 4096)}
OURS = ("sparsight", "sparsight-dense")
PEERS = {
    "topk": ("sparsify", "dictionary_learning", "saelens"),
    "batchtopk": ("dictionary_learning", "saelens"),
    "matryoshka": ("dictionary_learning",),
    "jumprelu": ("dictionary_learning", "saelens"),
    "relu": ("dictionary_learning", "saelens"),
    "gated": ("dictionary_learning", "saelens"),
}
WORKER = Path(__file__).with_name("step_worker.py")


class Contender:
    """A process that takes steps when told to."""

    def __init__(self, name: str, python: str, arguments: list[str]) -> None:
        self.name = name
        command = [python, str(WORKER), name, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def end(self) -> None:
        self.process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self.name} ended with {self.process.wait()}; what it printed is above")


def check(contenders: list[Contender], architecture: str, d: int, m: int, k: int) -> dict[str, float]:
    """Largest difference between a contender's gradients and the dense ones, of norm 1 both."""
    g = torch.Generator().manual_seed(5)
    atoms = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    W_enc = atoms.T + 0.3 * torch.randn(d, m, generator=g) / d**0.5
    x = torch.randn(256, d, generator=g) / d**0.5
    true = dense_gradients(x.double(), W_enc.double(), atoms.double(), architecture, k)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"x": x, "atoms": atoms, "W_enc": W_enc.contiguous()}, Path(folder) / "given.pt")
        if architecture in ("jumprelu", "relu", "gated"):  # with thresholds and penalties of ours: our own dense step
            (dense,) = (contender for contender in contenders if contender.name == "sparsight-dense")
            dense.ask(f"gradients {folder}")
            kept = torch.load(Path(folder) / "sparsight-dense.pt", weights_only=True)
            true = {name: gradient.double() for name, gradient in kept.items()}
        for contender in contenders:
            contender.ask(f"gradients {folder}")
            theirs = torch.load(Path(folder) / f"{contender.name}.pt", weights_only=True)
            found[contender.name] = max(
                (
                    float((theirs[n].double() / theirs[n].double().norm() - gradient / gradient.norm()).abs().max())
                    for n, gradient in true.items()
                    if n in theirs
                ),
                default=float("nan"),  # not comparable
            )
    return found


def dense_gradients(x: Tensor, W_enc: Tensor, atoms: Tensor, architecture: str, k: int) -> dict[str, Tensor]:
    """Autograd through codes with a column for every latent, in float64."""
    W_enc, atoms = W_enc.clone().requires_grad_(), atoms.clone().requires_grad_()
    b_enc = torch.zeros(len(atoms), dtype=x.dtype, requires_grad=True)
    pre = x @ W_enc + b_enc
    rows = pre if architecture == "topk" else pre.reshape(1, -1)
    kept = rows.topk(k if architecture == "topk" else k * len(x), dim=1)
    code = torch.zeros_like(rows).scatter(1, kept.indices, kept.values.relu()).view_as(pre)
    m = len(atoms)
    widths = (m // 8, m // 4, m // 2, m) if architecture == "matryoshka" else (m,)
    errors = [(x - code[:, :width] @ atoms[:width]).square().sum(dim=1).mean() for width in widths]
    torch.stack(errors).sum().backward()
    found = {"atoms": atoms.grad, "W_enc": W_enc.grad, "b_enc": b_enc.grad}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def rates() -> dict[str, float]:
    """What the machine does: matmuls in floating-point operations and copies in bytes, per second."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(1024, 768).to(dtype), torch.randn(768, 8192).to(dtype)
        found[name] = 2 * 1024 * 768 * 8192 / fastest(lambda a=a, b=b: torch.mm(a, b))  # type: ignore[misc]
    source, target = torch.zeros(2**26), torch.zeros(2**26)
    found["bytes"] = 2 * 4 * 2**26 / fastest(lambda: target.copy_(source))
    return found


def fastest(work: Any, repeats: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def floors(rate: dict[str, float], d: int, m: int, k: int, batch: int) -> dict[str, dict[str, float]]:
    """Seconds of a step that no implementation can save, by the precision of the encoder's product and by phase."""
    return {
        name: step_seconds(Machine(products=rate[name], memory=rate["bytes"]), d=d, n_latents=m, k=k, batch=batch)
        for name in ("float32", "bfloat16")
    }


def peak_bytes(name: str, python: str, arguments: list[str]) -> int:
    """Largest memory of a process that takes steps and does nothing else: checking gradients needs more."""
    contender = Contender(name, python, arguments)
    contender.ask("steps 4")
    peak: int = contender.ask("memory")["bytes"]
    contender.end()
    return peak


def measure(contenders: list[Contender], rounds: int, least: float) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round."""
    steps: dict[str, int] = {}
    for contender in contenders:
        contender.ask("steps 2")
        once = contender.ask("steps 1")["seconds"]
        steps[contender.name] = max(1, round(least / once))
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            n = steps[contender.name]
            found[contender.name].append(contender.ask(f"steps {n}")["seconds"] / n)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="M")
    parser.add_argument("--architecture", choices=PEERS, default="topk")
    parser.add_argument("--dead", type=float, default=0.0, help="share of latents that are dead (topk only)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="least duration of a contender's part of a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers-python", default=None, help="a Python in which the others are installed")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    d, m, k, batch = SIZES[options.size]
    torch.set_num_threads(options.threads)
    if options.dead and options.architecture != "topk":
        parser.error(f"--dead is for topk, got {options.architecture}")
    alive = [options.architecture, *map(str, (d, m, k, batch, options.threads)), "0"]
    arguments = [*alive[:-1], str(round(options.dead * m))]
    pythons = dict.fromkeys(OURS, sys.executable)
    if options.peers_python is not None:
        pythons |= dict.fromkeys(PEERS[options.architecture], options.peers_python)
    contenders = [Contender(name, python, alive) for name, python in pythons.items()]
    differences = check(contenders, options.architecture, d, m, k)
    for name, difference in differences.items():
        print(f"{name:20s} gradients off by {difference:.1e} of their norm", flush=True)
        if name in OURS and difference > 1e-5:
            raise SystemExit(f"{name}: wrong gradients are not timed")
    if arguments != alive:
        for contender in contenders:
            contender.end()
        contenders = [Contender(name, python, arguments) for name, python in pythons.items()]
    rate = rates()
    seconds = measure(contenders, options.rounds, options.seconds)
    profile = contenders[0].ask("phases 11")["seconds"]
    for contender in contenders:
        contender.end()
    memory = {name: peak_bytes(name, python, arguments) for name, python in pythons.items()}
    floor = floors(rate, d, m, k, batch)
    ours = seconds["sparsight"]
    report: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "date": time.strftime("%Y-%m-%d"),
        "size": {"d": d, "n_latents": m, "k": k, "batch": batch},
        "architecture": options.architecture,
        "dead": options.dead,
        "rates": rate,
        "floor_seconds": floor,
        "phases_seconds": profile,
        "contenders": {},
    }
    print(f"{'':20s} tokens/s     spread      ours/theirs   peak MB")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        ratio = statistics.median(theirs / mine for theirs, mine in zip(taken, ours, strict=True))
        report["contenders"][name] = {
            "tokens_per_second": batch / median,
            "slowest": batch / max(taken),
            "fastest": batch / min(taken),
            "ratio": ratio,
            "peak_bytes": memory[name],
            "gradient_difference": differences[name],
        }
        spread = f"{batch / max(taken):,.0f}-{batch / min(taken):,.0f}"
        print(f"{name:20s} {batch / median:8,.0f} {spread:>15s} {ratio:9.2f} {memory[name] / 1e6:12,.0f}")
    for name, phases in floor.items():
        least = sum(phases.values())
        of = ", ".join(f"{phase} {1000 * seconds:.0f} ms" for phase, seconds in phases.items())
        print(f"floor, {name:13s} {batch / least:8,.0f}   our share of it {least / statistics.median(ours):.0%} ({of})")
    whole = sum(profile.values())
    print(f"our step, {1000 * whole:.0f} ms: " + ", ".join(f"{n} {1000 * s:.0f}" for n, s in profile.items()))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
