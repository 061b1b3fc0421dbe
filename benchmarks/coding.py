"""Sparse coders side by side: signals per second, what they lose and what they find, in one run.

    python benchmarks/coding.py --size S --rounds 5 --out coding.json
    python benchmarks/coding.py --size M --clock cpu --threads 1 --peers FOLDER

Signals are planted: `k` random atoms with weights `1 + Exp(1)` and noise of 22 % of the signal's norm. Before anything
is timed, the fast search is held against the dense one, row by row. Rounds are interleaved and ratios paired: each
round times every contender once, and a ratio is the median over rounds of two times of the same round; so a machine
that others use disturbs all alike. `--clock cpu` counts processor time instead of the wall's, for such machines.

The exact search with a kept table runs in compiled code where numba is installed, and a second time in torch's
operations alone. Approximate searches are timed last, with the share of their choices that they proved and their loss
beside the exact search's on the same signals. SPAMS makes its Gram matrix in every call, so its rate depends on how
many signals a call gets: it is timed with `--signals` and, once, with `--long-call`; so is our table made in the call.
`--refit` times least squares on given supports at k = 64.

A peer that is not installed is skipped and named. `--peers FOLDER` also looks in the folders inside FOLDER, made by
`pip install --no-deps --target FOLDER/NAME NAME`, which leaves torch alone.
"""

import argparse
import ast
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from sparsight.coding import (
    GramTable,
    Screening,
    SparseCode,
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
    refit,
)
from sparsight.coding.kernels.compiled import status

SIZES = {"XS": (128, 1024, 16), "S": (512, 4096, 32), "M": (768, 16384, 32)}


@dataclass(frozen=True)
class Contender:
    """A coder and how many signals it is given: slow ones get few, rates are per signal."""

    name: str
    run: Callable[[Tensor], Tensor | SparseCode]
    n: int


@dataclass(frozen=True)
class Row:
    """One line of the table; `ratio` is against the plain coder, paired by round."""

    name: str
    signals: int
    signals_per_second: float
    ratio: float
    fvu: float
    recall: float


def planted(d: int, n_latents: int, k: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(n_latents, d, generator=g))
    support = torch.rand(n, n_latents, generator=g).topk(k, dim=1).indices
    x = SparseCode(support, 1 - torch.rand(n, k, generator=g).clamp_min(1e-6).log(), n_latents).decode(atoms)
    noise = torch.randn(n, d, generator=g)
    return x + 0.22 * noise * x.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True), atoms, support


def dense(code: Tensor | SparseCode) -> Tensor:
    return code.to_dense() if isinstance(code, SparseCode) else code


def module_from(file: Path) -> ModuleType:
    """One file of a package, without whatever else the package imports."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{name} is not installed")
    return Path(found.submodule_search_locations[0])


def scikit_learn(atoms: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    from sklearn.linear_model import orthogonal_mp

    columns = atoms.T.numpy()
    return lambda x: torch.from_numpy(np.atleast_2d(orthogonal_mp(columns, x.T.numpy(), n_nonzero_coefs=k).T)).float()


def dictionary_learning(atoms: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    module = module_from(installed("dictionary_learning") / "grad_pursuit.py")
    columns = atoms.T.contiguous()
    return lambda x: module.grad_pursuit(x, columns, target_l0=k)


def sae_lens(atoms: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    tree = ast.parse((installed("sae_lens") / "saes" / "matching_pursuit_sae.py").read_text())
    # Only the function: its module imports a training framework.
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_encode_matching_pursuit"]
    names: dict[str, object] = {"torch": torch}
    exec(compile(tree, "matching_pursuit_sae.py", "exec"), names)
    encode = names["_encode_matching_pursuit"]
    assert callable(encode)
    return lambda x: encode(x, atoms, 0.0, k, False)


def overcomplete(name: str) -> Callable[[Tensor, int], Callable[[Tensor], Tensor]]:
    def build(atoms: Tensor, k: int) -> Callable[[Tensor], Tensor]:
        installed("overcomplete")
        module = importlib.import_module(f"overcomplete.sae.{'mp_sae' if name == 'MpSAE' else 'omp_sae'}")
        model = getattr(module, name)(atoms.shape[1], atoms.shape[0], k=k)
        model.get_dictionary = lambda: atoms
        return lambda x: model.encode(x)[1]

    return build


def spams(threads: int) -> Callable[[Tensor, int], Callable[[Tensor], Tensor]]:
    def build(atoms: Tensor, k: int) -> Callable[[Tensor], Tensor]:
        module = importlib.import_module("spams")
        columns = np.asfortranarray(atoms.T.numpy())

        def run(x: Tensor) -> Tensor:
            signals = np.asfortranarray(x.T.numpy())
            code = module.omp(signals, columns, L=k, eps=0.0, numThreads=threads)
            return torch.from_numpy(code.T.toarray()).float()

        return run

    return build


def contenders(
    atoms: Tensor, table: GramTable, plain: GramTable | None, k: int, n: int, threads: int
) -> tuple[list[Contender], dict[str, str]]:
    """Ours, then every peer that can be had; and why the others cannot."""
    few = max(8, n // 16)
    found = [
        Contender("gradient pursuit, dense", lambda x: gradient_pursuit(x, atoms, k, search="dense"), n),
        Contender("gradient pursuit, table kept", lambda x: gradient_pursuit(x, atoms, k, search=table), n),
        Contender(
            "gradient pursuit, table made in the call", lambda x: gradient_pursuit(x, atoms, k, search="gram"), n
        ),
        Contender(
            "OMP non-negative, dense", lambda x: orthogonal_matching_pursuit(x, atoms, k, search="dense"), n // 2
        ),
        Contender("OMP non-negative, table kept", lambda x: orthogonal_matching_pursuit(x, atoms, k, search=table), n),
        Contender(
            "OMP signed, table kept",
            lambda x: orthogonal_matching_pursuit(x, atoms, k, nonnegative=False, search=table),
            n,
        ),
        Contender("matching pursuit, dense", lambda x: matching_pursuit(x, atoms, k, search="dense"), n // 2),
        Contender("matching pursuit, table kept", lambda x: matching_pursuit(x, atoms, k, search=table), n),
    ]
    if plain is not None:
        alone = "gradient pursuit, table kept, torch alone"
        found.append(Contender(alone, lambda x: gradient_pursuit(x, atoms, k, search=plain), n))
    peers: list[tuple[str, Callable[[Tensor, int], Callable[[Tensor], Tensor]], int]] = [
        ("scikit-learn orthogonal_mp, signed", scikit_learn, few),
        ("dictionary_learning grad_pursuit", dictionary_learning, n // 4),
        ("SAELens matching pursuit", sae_lens, n // 4),
        ("overcomplete matching pursuit", overcomplete("MpSAE"), n // 4),
        ("overcomplete OMP", overcomplete("OMPSAE"), n // 4),
        ("SPAMS omp, signed", spams(threads), n),
    ]
    missing: dict[str, str] = {}
    for name, build, signals in peers:
        try:
            run = build(atoms, k)
            run(planted(atoms.shape[1], atoms.shape[0], k, 2)[0])
        except Exception as error:  # whatever stops a peer is reported, not hidden
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            found.append(Contender(name, run, max(signals, 8)))
    return found, missing


def screened(atoms: Tensor, table: GramTable, k: int, n: int) -> tuple[list[Contender], dict[str, Screening]]:
    """Approximate searches of several sizes; each keeps count of what it did."""
    searches = {
        "approximate, 64 candidates, 4 scans": Screening(atoms, candidates=64, scans=4, table=table),
        "approximate, 128 candidates, 3 scans": Screening(atoms, candidates=128, scans=3, table=table),
        "approximate, 64 and 4, no table": Screening(atoms, candidates=64, scans=4),
    }

    def contender(name: str) -> Contender:
        return Contender(name, lambda x: gradient_pursuit(x, atoms, k, search=searches[name]), n)

    return [contender(name) for name in searches], searches


def long_call(
    name: str, run: Callable[[Tensor], Tensor | SparseCode], x: Tensor, n: int, clock: Callable[[], float]
) -> tuple[str, float]:
    """Signals per second of one call with many signals."""
    signals = x.repeat(-(-n // len(x)), 1)[:n]
    started = clock()
    run(signals)
    return name, n / (clock() - started)


def time_refit(clock: Callable[[], float], rounds: int) -> None:
    """Non-negative least squares on the 64 atoms nearest to each signal: milliseconds for a row."""
    for d in (384, 768):
        x, atoms, _ = planted(d, 6144, 32, 512)
        support = (x @ atoms.T).topk(64, dim=1).indices
        times = []
        for _ in range(rounds):
            started = clock()
            refit(x, atoms, support)
            times.append((clock() - started) / len(x))
        print(f"refit, non-negative, k=64, d={d}: {1e3 * statistics.median(times):.3f} ms per row")


def check(x: Tensor, atoms: Tensor, table: GramTable, k: int) -> None:
    """The fast search must give the dense one's codes, up to ties in float32."""
    for coder in (gradient_pursuit, orthogonal_matching_pursuit, matching_pursuit):
        plain, fast = (coder(x, atoms, k, search=search) for search in ("dense", table))
        same = ((plain.to_dense() - fast.to_dense()).abs().amax(dim=1) < 1e-3).float().mean().item()
        loss = [(x - code.decode(atoms)).square().sum().item() for code in (plain, fast)]
        if same < 0.95 or abs(loss[1] / loss[0] - 1) > 0.005:
            raise SystemExit(f"{coder.__name__}: {same:.1%} of rows agree, losses {loss}; not timing a wrong coder")


def measure(
    found: list[Contender], x: Tensor, atoms: Tensor, support: Tensor, rounds: int, clock: Callable[[], float]
) -> list[Row]:
    times: dict[str, list[float]] = {c.name: [] for c in found}
    quality: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for contender in found:
            signals = x[: contender.n]
            started = clock()
            code = contender.run(signals)
            times[contender.name].append((clock() - started) / contender.n)
            if contender.name not in quality:
                z = dense(code)
                fvu = (signals - z @ atoms).square().sum() / (signals - signals.mean(0)).square().sum()
                quality[contender.name] = float(fvu), float((z != 0).float().gather(1, support[: contender.n]).mean())
    plain = times[found[0].name]
    return [
        Row(
            c.name,
            c.n,
            1 / statistics.median(times[c.name]),
            statistics.median(p / t for p, t in zip(plain, times[c.name], strict=True)),
            *quality[c.name],
        )
        for c in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="XS")
    parser.add_argument("--signals", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--peers", type=Path, help="folder of folders with peers installed by pip --target")
    parser.add_argument("--long-call", type=int, default=0, help="signals of one long call, for what repays its table")
    parser.add_argument("--refit", action="store_true", help="also time least squares on given supports")
    parser.add_argument(
        "--only", nargs="+", help="beside the dense coder only exact ones whose names contain one of these"
    )
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peers:
        sys.path.extend(str(folder) for folder in arguments.peers.iterdir() if folder.is_dir())
    d, n_latents, k = SIZES[arguments.size]
    x, atoms, support = planted(d, n_latents, k, arguments.signals)
    table = GramTable(atoms)
    check(x[:128], atoms, table, k)
    if arguments.only:
        found, missing = contenders(atoms, table, None, k, arguments.signals, arguments.threads)
        found = found[:1] + [c for c in found[1:] if any(text in c.name for text in arguments.only)]
        searches: dict[str, Screening] = {}
    else:
        plain = GramTable(atoms, compiled=False)
        check(x[:128], atoms, plain, k)
        found, missing = contenders(atoms, table, plain, k, arguments.signals, arguments.threads)
        approximate, searches = screened(atoms, plain, k, arguments.signals)
        found += approximate
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    rows = measure(found, x, atoms, support, arguments.rounds, clock)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    setting = f"d={d}, {n_latents} atoms, k={k}, {arguments.rounds} rounds, {arguments.threads} thread(s)"
    print(f"{setting}, {arguments.clock} time; exact search: {status()}; {machine}; load {os.getloadavg()[0]:.1f}\n")
    print(f"{'coder':42s} {'signals':>8s} {'per second':>11s} {'ratio':>7s} {'FVU':>7s} {'recall':>7s}")
    for row in rows:
        print(
            f"{row.name:42s} {row.signals:8d} {row.signals_per_second:11.0f} {row.ratio:7.2f} "
            f"{row.fvu:7.4f} {row.recall:7.3f}"
        )
    for name, search in searches.items():
        report = search.report()
        exact = next(row for row in rows if row.name == "gradient pursuit, table kept")
        worse = next(row for row in rows if row.name == name).fvu / exact.fvu - 1
        print(f"{name}: {report.proven_share:.1%} of {report.choices} choices proven exact; FVU {worse:+.2%} of exact")
    long_calls = {}
    for contender in found if arguments.long_call else []:
        if contender.name in ("gradient pursuit, table made in the call", "SPAMS omp, signed"):
            name, rate = long_call(contender.name, contender.run, x, arguments.long_call, clock)
            long_calls[name] = rate
            print(f"{name}: {rate:.0f} per second in one call of {arguments.long_call}")
    if arguments.refit:
        time_refit(clock, arguments.rounds)
    for name, reason in missing.items():
        print(f"{name:42s} skipped: {reason}")
    if arguments.out:
        figures = {"setting": setting, "clock": arguments.clock, "machine": machine, "missing": missing}
        figures["rows"] = [asdict(row) for row in rows]
        figures["approximate"] = {name: asdict(search.report()) for name, search in searches.items()}
        figures["long_calls"] = {"signals": arguments.long_call, **long_calls}
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
