"""Memory of a process that writes a store, verifies it and streams it in shuffled batches, by the size of the store.

    python benchmarks/memory.py --gigabytes 0.5 1 2 --out docs/images/store-memory.png

Sampled a hundred times a second from Linux's count of the process' own pages (RssAnon) and of pages of files that it
has mapped (RssFile), less what it held before; every size in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

from store import BATCH, WIDTH, Ours, noise

PHASES = ("write", "verify", "stream")


def resident() -> float:
    """Megabytes of this process, its own and mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssFile")))
    return sum(int(value.split()[0]) for value in values.values()) / 1e3


def run(gigabytes: float) -> dict[str, object]:
    """Samples `[phase, share of the phase that is over, megabytes]`."""
    rows = int(gigabytes * 1e9 / (2 * WIDTH))
    noise()
    ours, samples, stopped, at = Ours(), [], Event(), [0, 0.0]

    def sample(before: float) -> None:
        while not stopped.wait(0.01):
            samples.append([at[0], time.monotonic() - at[1], resident() - before])

    def epoch(folder: Path) -> None:
        for n, _ in enumerate(ours.shuffled(folder, rows, 0), start=1):
            if n == rows // BATCH:
                return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        watcher = Thread(target=sample, args=(resident(),), daemon=True)
        works = (lambda: ours.write(folder, rows), lambda: ours.verify(folder), lambda: epoch(folder))
        lengths = []
        for phase, work in enumerate(works):
            at[:] = phase, time.monotonic()
            if phase == 0:
                watcher.start()
            work()
            lengths.append(time.monotonic() - at[1])
        stopped.set()
        watcher.join()
    points = [[phase, min(1.0, seconds / lengths[phase]), megabytes] for phase, seconds, megabytes in samples]
    return {"gigabytes": gigabytes, "seconds": lengths, "points": points}


def draw(runs: list[dict[str, object]], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for found in runs:
        points = found["points"]
        assert isinstance(points, list)
        axes.plot([p[0] + p[1] for p in points], [p[2] for p in points], label=f"{found['gigabytes']:g} GB", lw=1)
    axes.set_xticks([0.5, 1.5, 2.5], PHASES)
    for border in (1, 2):
        axes.axvline(border, color="0.8", lw=0.8, zorder=0)
    axes.set(xlim=(0, 3), ylim=(0, None), ylabel="MB more than before")
    axes.legend(title="store", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--out", type=Path, help="The figure.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.gigabytes[0])))
        return
    runs = []
    for size in options.gigabytes:
        command = [sys.executable, __file__, "--one", "--gigabytes", str(size)]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        peaks = [max((p[2] for p in runs[-1]["points"] if p[0] == phase), default=0.0) for phase in range(3)]
        shown = ", ".join(f"{name} {peak:,.0f} MB" for name, peak in zip(PHASES, peaks, strict=True))
        print(f"{size:g} GB: most memory beyond that before: {shown}", flush=True)
    if options.out:
        draw(runs, options.out)


if __name__ == "__main__":
    main()
