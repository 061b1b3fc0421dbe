"""The activation store beside other ways to keep rows on a disk: writing, reading in order, and shuffled batches.

    python benchmarks/store.py --gigabytes 2 --rounds 3 --out store.json
    python benchmarks/store.py --gigabytes 0.25 --peers FOLDER

Everyone keeps the same float16 rows, 768 wide. Rounds are interleaved; figures are medians over rounds, ratios medians
of ratios within a round, in order of ratios within pairs, so a machine that others use disturbs all alike.

- write: from memory until the disk says that it has the bytes (fsync of every file).
- verify: compare all bytes with their checksums; ours only.
- in order: all rows once, as float16 blocks of 65,536 rows in memory, opening included. The raw file is read beside, a
  block of the one and a block of the other, while both lie on the disk: up to `--pairs` times, of what reads slowly
  fewer.
- shuffled: float32 batches of 4,096 rows, opening and filling of buffers included, for `--batches` batches.

Before each reading the system is told to drop the files from its cache; `--warm` leaves them in. What can give single
rows (memmap, Arrow, datasets) gives rows drawn uniformly; what can only give whole files or chunks well gets the usual
remedy, a buffer of 131,072 rows filled from random chunks and permuted, the memory that our stream takes too.
`mixing` is the correlation of documents within a batch (docs/activations.md), documents being runs of 200 rows, or of
5,000.

`--peers FOLDER` looks for packages in the folders inside FOLDER, made by `pip install --target FOLDER/zarr zarr`. What
is not installed is skipped and named. `--only` takes names of contenders; the raw file and ours always run.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream
from sparsight.activations.mixing import mixing_of
from sparsight.activations.pieces import Context
from sparsight.activations.reading import Window
from sparsight.activations.record import Cursor, Settings
from sparsight.activations.writer import StoreWriter
from sparsight.models import Site

WIDTH, BATCH, BLOCK, CONTEXT = 768, 4096, 65536, 128
DOCUMENTS = (200, 5000)
BUFFER = 1 << 17
PIECE = 4 << 20  # bytes
PATIENCE = 20.0  # seconds of reading in order in a round, after which no other pair is begun
SITE = Site.parse("0.resid_post")
Rows = NDArray[np.float16]
Pair = tuple[float, float]  # seconds of the raw file and of what is read beside it


@lru_cache(maxsize=1)
def noise() -> Rows:
    return np.random.default_rng(0).standard_normal((BLOCK, WIDTH), dtype=np.float32).astype(np.float16)


def blocks(rows: int) -> Iterator[Rows]:
    """The data: the same block of noise again and again; nothing is compressed, so that makes nothing easier."""
    for begin in range(0, rows, BLOCK):
        yield noise()[: min(BLOCK, rows - begin)]


def sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def drop(folder: Path) -> None:
    """Ask the system to forget the files' content."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def uniform(rows: int, seed: int) -> Iterator[NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(rows)
    for begin in range(0, rows - BATCH + 1, BATCH):
        yield order[begin : begin + BATCH]


def buffered(rows: int, chunk: int, load: Callable[[int], Rows], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random chunks into a buffer, permuted, batch by batch; with the numbers of the rows."""
    g = np.random.default_rng(seed)
    chunks = g.permutation(-(-rows // chunk))
    per = max(1, BUFFER // chunk)
    for begin in range(0, len(chunks), per):
        mine = chunks[begin : begin + per]
        held = torch.from_numpy(np.concatenate([load(int(c)) for c in mine]))
        numbers = torch.cat([torch.arange(c * chunk, min((c + 1) * chunk, rows)) for c in mine])
        order = torch.from_numpy(g.permutation(len(held)))
        for at in range(0, len(held) - BATCH + 1, BATCH):
            chosen = order[at : at + BATCH]
            yield held.index_select(0, chosen).float(), numbers[chosen]


class Raw:
    """The floor: one file, written and read from end to end."""

    name = "raw file"

    def write(self, folder: Path, rows: int) -> None:
        with (folder / "raw").open("wb") as file:
            for block in blocks(rows):
                file.write(memoryview(block).cast("B"))

    def in_order(self, folder: Path, rows: int) -> Iterator[None]:
        buffer = memoryview(np.empty((BLOCK, WIDTH), np.float16)).cast("B")
        with (folder / "raw").open("rb", buffering=0) as file:
            for begin in range(0, rows, BLOCK):
                at, end = 0, min(BLOCK, rows - begin) * WIDTH * 2
                while at < end:  # a single read of a whole block is a third as fast
                    at += file.readinto(buffer[at : min(at + PIECE, end)])
                yield


class Ours:
    name = "sparsight"
    memory = 0

    def write(self, folder: Path, rows: int) -> None:
        settings = Settings(
            model="noise", family="none", sites=[str(SITE)], widths=[WIDTH], dtype="float16", context=CONTEXT,
            n_tokens=rows, batch_size=32, shard_rows=(64 << 20) // (2 * WIDTH), heldout=0.1, split_seed=0,
        )  # fmt: skip
        special = torch.zeros(CONTEXT, dtype=torch.bool)
        at = 0
        with StoreWriter(folder / "store", settings, resume=False, pad_id=0) as writer:
            for block in blocks(rows):
                whole = torch.from_numpy(block)
                for piece in whole.split(128 * CONTEXT):
                    contexts, marks = [], []
                    for begin in range(0, len(piece), CONTEXT):
                        n = min(CONTEXT, len(piece) - begin)
                        owners = torch.arange(at + begin, at + begin + n) // DOCUMENTS[0]
                        ids = torch.zeros(n, dtype=torch.int64)
                        contexts.append(Context(ids, special[:n], int(owners[0]), None, Cursor(), owners))
                        marks.append(~special[:n])
                    at += len(piece)
                    sums = {SITE: torch.zeros(len(piece), 3, dtype=torch.float64)}
                    writer.add(Window(contexts, marks, {SITE: piece}, {}, sums, Cursor(), [0] * len(contexts)), [])
            writer.finish(short_of=None, version="0", command="benchmark")

    def verify(self, folder: Path) -> None:
        ActivationStore(folder / "store").verify()

    def in_order(self, folder: Path, rows: int) -> Iterator[None]:
        store = ActivationStore(folder / "store")
        buffer = torch.from_numpy(np.empty((BLOCK, WIDTH), np.float16))  # as the others' buffers: large pages
        for begin in range(0, rows, BLOCK):
            part = slice(begin, min(begin + BLOCK, rows))
            store.rows(SITE, part, out=buffer[: part.stop - part.start])
            yield

    def shuffled(self, folder: Path, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        store = ActivationStore(folder / "store")
        stream = ActivationStream(store, SITE, BATCH, seed, memory=self.memory, buffer_rows=BUFFER)
        for batch in stream:
            assert isinstance(batch, Tensor)
            yield batch, None

    def numbers(self, folder: Path, seed: int, n: int) -> Iterator[Tensor]:
        stream = ActivationStream(ActivationStore(folder / "store"), SITE, BATCH, seed, memory=self.memory)
        return stream.row_numbers(n)


class Memmap:
    name = "numpy memmap"

    def write(self, folder: Path, rows: int) -> None:
        array = np.memmap(folder / "rows", np.float16, "w+", shape=(rows, WIDTH))
        at = 0
        for block in blocks(rows):
            array[at : at + len(block)] = block
            at += len(block)
        array.flush()

    def _open(self, folder: Path, rows: int) -> Any:
        return np.memmap(folder / "rows", np.float16, "r", shape=(rows, WIDTH))

    def in_order(self, folder: Path, rows: int) -> Iterator[None]:
        array = self._open(folder, rows)
        buffer = np.empty((BLOCK, WIDTH), np.float16)
        for begin in range(0, rows, BLOCK):
            part = array[begin : begin + BLOCK]
            buffer[: len(part)] = part
            yield

    def shuffled(self, folder: Path, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        array = self._open(folder, rows)
        for chosen in uniform(rows, seed):
            yield torch.from_numpy(np.asarray(array[chosen])).float(), torch.from_numpy(chosen)


class Chunks:
    """What is read a file or a chunk at a time."""

    chunk = BLOCK

    def load(self, folder: Path, index: int) -> Rows:
        raise NotImplementedError

    def in_order(self, folder: Path, rows: int) -> Iterator[None]:
        for begin in range(0, rows, BLOCK):
            for index in range(begin // self.chunk, -(-min(begin + BLOCK, rows) // self.chunk)):
                self.load(folder, index)
            yield

    def shuffled(self, folder: Path, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        return buffered(rows, self.chunk, lambda index: self.load(folder, index), seed)


class TorchSave(Chunks):
    name = "torch.save shards"

    def write(self, folder: Path, rows: int) -> None:
        for index, block in enumerate(blocks(rows)):
            torch.save(torch.from_numpy(block), folder / f"{index}.pt")

    def load(self, folder: Path, index: int) -> Rows:
        return torch.load(folder / f"{index}.pt", weights_only=True).numpy()


class Safetensors(Chunks):
    name = "safetensors shards"

    def write(self, folder: Path, rows: int) -> None:
        from safetensors.numpy import save_file

        for index, block in enumerate(blocks(rows)):
            save_file({"x": block}, folder / f"{index}.safetensors")

    def load(self, folder: Path, index: int) -> Rows:
        from safetensors.numpy import load_file

        return load_file(folder / f"{index}.safetensors")["x"]


def fixed_size(block: Rows) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(block).reshape(-1)), WIDTH)


def from_arrow(column: Any, n: int) -> Rows:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float16).reshape(n, WIDTH)


class ArrowIPC:
    name = "Arrow IPC"

    def write(self, folder: Path, rows: int) -> None:
        import pyarrow as pa

        schema = pa.schema([("x", pa.list_(pa.float16(), WIDTH))])
        with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for block in blocks(rows):
                writer.write_batch(pa.record_batch([fixed_size(block)], schema=schema))

    def _open(self, folder: Path) -> Any:
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")))

    def in_order(self, folder: Path, rows: int) -> Iterator[None]:
        reader = self._open(folder)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            from_arrow(batch.column(0), len(batch)).copy()
            yield

    def shuffled(self, folder: Path, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        reader = self._open(folder)
        views = [
            from_arrow(reader.get_batch(i).column(0), len(reader.get_batch(i)))
            for i in range(reader.num_record_batches)
        ]
        for chosen in uniform(rows, seed):
            out = np.empty((BATCH, WIDTH), np.float16)
            of = chosen // BLOCK
            for index, view in enumerate(views):
                here = of == index
                out[here] = view[chosen[here] - index * BLOCK]
            yield torch.from_numpy(out).float(), torch.from_numpy(chosen)


class Parquet(Chunks):
    name = "Parquet"
    chunk = 4096

    def write(self, folder: Path, rows: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("x", pa.list_(pa.float16(), WIDTH))])
        with pq.ParquetWriter(folder / "rows.parquet", schema, compression="none") as writer:
            for block in blocks(rows):
                writer.write_table(pa.table([fixed_size(block)], schema=schema), row_group_size=4096)

    def load(self, folder: Path, index: int) -> Rows:
        import pyarrow.parquet as pq

        if getattr(self, "_at", None) != folder:
            self._at, self._file = folder, pq.ParquetFile(folder / "rows.parquet")
        column = self._file.read_row_group(index).column(0).combine_chunks()
        return from_arrow(column, len(column))


class HFDatasets:
    name = "datasets"

    def write(self, folder: Path, rows: int) -> None:
        import datasets
        import pyarrow as pa

        table = pa.Table.from_arrays([pa.chunked_array([fixed_size(block) for block in blocks(rows)])], names=["x"])
        datasets.disable_progress_bars()
        datasets.Dataset(table).save_to_disk(str(folder / "rows"))

    def _open(self, folder: Path) -> Any:
        import datasets

        return datasets.load_from_disk(str(folder / "rows")).with_format("arrow")

    def in_order(self, folder: Path, rows: int) -> Iterator[None]:
        for table in self._open(folder).iter(BLOCK):
            column = table.column("x").combine_chunks()
            from_arrow(column, len(column)).copy()
            yield

    def shuffled(self, folder: Path, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        data = self._open(folder)
        for chosen in uniform(rows, seed):
            column = data[chosen]["x"].combine_chunks()
            yield torch.from_numpy(from_arrow(column, BATCH).copy()).float(), torch.from_numpy(chosen)


class Zarr(Chunks):
    name = "zarr"
    chunk = 4096

    def write(self, folder: Path, rows: int) -> None:
        import zarr

        array = zarr.create_array(
            store=str(folder / "rows"), shape=(rows, WIDTH), chunks=(4096, WIDTH), dtype="float16", compressors=None
        )
        at = 0
        for block in blocks(rows):
            array[at : at + len(block)] = block
            at += len(block)

    def load(self, folder: Path, index: int) -> Rows:
        import zarr

        if getattr(self, "_at", None) != folder:
            self._at, self._array = folder, zarr.open_array(str(folder / "rows"), mode="r")
        return np.asarray(self._array[index * 4096 : (index + 1) * 4096])


class TensorStore(Chunks):
    name = "tensorstore"
    chunk = 4096

    def _open(self, folder: Path, **more: Any) -> Any:
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "rows")}}
        return tensorstore.open(spec, **more).result()

    def write(self, folder: Path, rows: int) -> None:
        import tensorstore

        layout = tensorstore.ChunkLayout(chunk_shape=[4096, WIDTH])
        array = self._open(folder, create=True, dtype=tensorstore.float16, shape=[rows, WIDTH], chunk_layout=layout)
        at = 0
        for block in blocks(rows):
            array[at : at + len(block)].write(block).result()
            at += len(block)

    def load(self, folder: Path, index: int) -> Rows:
        if getattr(self, "_at", None) != folder:
            self._at, self._array = folder, self._open(folder)
        stop = min((index + 1) * 4096, self._array.shape[0])
        return np.asarray(self._array[index * 4096 : stop].read().result())


CONTENDERS: list[Any] = [
    Raw, Ours, Memmap, TorchSave, Safetensors, ArrowIPC, Parquet, HFDatasets, Zarr, TensorStore
]  # fmt: skip
NEEDS = {"zarr": "zarr", "tensorstore": "tensorstore"}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shuffled_seconds(contender: Any, folder: Path, rows: int, n_batches: int, seed: int) -> tuple[float, list[float]]:
    """Seconds per batch, and the mixing of the batches for each length of documents."""
    numbers: list[Tensor] = []
    start = time.perf_counter()
    n = 0
    for _, chosen in contender.shuffled(folder, rows, seed):
        if chosen is not None:
            numbers.append(chosen)
        n += 1
        if n == n_batches:
            break
    seconds = (time.perf_counter() - start) / n
    batches = numbers or list(contender.numbers(folder, seed, n))
    mixings = []
    for length in DOCUMENTS:
        owners = torch.arange(rows) // length
        mixings.append(mixing_of((owners[b] for b in batches), owners).correlation)
    return seconds, mixings


def pairs_in_order(
    contender: Any, folder: Path, raw: Path, rows: int, options: argparse.Namespace, seed: int
) -> list[Pair]:
    """Seconds of the raw file and of the contender, read in order side by side, a block of the one, then of the other.

    What was read is dropped behind, so that memory goes from hand to hand: a virtual machine gives back to its host
    what is free for seconds, and whoever takes it again waits several times as long as for what was just in use.
    """
    pairs: list[Pair] = []
    order = np.random.default_rng(
        seed
    )  # of the two within a block: what the one leaves behind helps or harms the other
    start = time.perf_counter()
    while len(pairs) < options.pairs and (not pairs or time.perf_counter() - start < PATIENCE):
        parties = [(raw, Raw().in_order(raw, rows)), (folder, contender.in_order(folder, rows))]
        for place in [] if options.warm else [raw, folder]:
            drop(place)
        seconds = dict.fromkeys((raw, folder), 0.0)
        for _ in range(-(-rows // BLOCK)):
            for party in order.permutation(2):
                place, blocks_read = parties[party]
                seconds[place] += timed(partial(next, blocks_read))
                if not options.warm:
                    drop(place)
        pairs.append((seconds[raw], seconds[folder]))
    return pairs


def measure(
    contender: Any, folder: Path, raw: Path, rows: int, options: argparse.Namespace, seed: int
) -> dict[str, float]:
    """One round: MB/s of everything the contender can do, beside a raw file that lies on the disk already."""
    megabytes = rows * WIDTH * 2 / 1e6
    result = {"write": megabytes / timed_writing(contender, folder, rows)}

    def cold() -> None:
        if not options.warm:
            drop(folder)

    pairs = pairs_in_order(contender, folder, raw, rows, options, seed)
    result["in order"] = megabytes / statistics.median(own for _, own in pairs)
    result["raw beside"] = megabytes / statistics.median(floor for floor, _ in pairs)
    result |= {f"raw / it, pair {i}": own / floor for i, (floor, own) in enumerate(pairs)}
    if hasattr(contender, "verify"):
        cold()
        result["verify"] = megabytes / timed(lambda: contender.verify(folder))
    if hasattr(contender, "shuffled"):
        cold()
        n_batches = min(options.batches, rows // BATCH)
        seconds, mixings = shuffled_seconds(contender, folder, rows, n_batches, seed)
        result |= {f"mixing {length}": value for length, value in zip(DOCUMENTS, mixings, strict=True)}
        result["shuffled"] = BATCH * WIDTH * 2 / 1e6 / seconds
    shutil.rmtree(folder)
    return result


def timed_writing(contender: Any, folder: Path, rows: int) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def write() -> None:
        contender.write(folder, rows)
        sync(folder)

    return timed(write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=4, help="Readings in order in a round, each beside a raw one.")
    parser.add_argument("--batches", type=int, default=10**9, help="Shuffled batches timed; default: an epoch.")
    parser.add_argument("--folder", type=Path, help="Where to write; default: a temporary folder.")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="*", choices=[kind.name for kind in CONTENDERS], metavar="NAME")
    parser.add_argument("--warm", action="store_true", help="Leave files in the cache.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.peers:
        sys.path += [str(folder) for folder in options.peers.iterdir() if folder.is_dir()]
    torch.set_num_threads(1)  # what is timed is copied in milliseconds: a second thread is waited for where others run
    rows = int(options.gigabytes * 1e9 / (2 * WIDTH))
    chosen = []
    for kind in CONTENDERS:
        if options.only is not None and kind.name not in (Raw.name, Ours.name, *options.only):
            continue
        if kind.name in NEEDS and importlib.util.find_spec(NEEDS[kind.name]) is None:
            print(f"{kind.name} is not installed: skipped", file=sys.stderr)
        else:
            chosen.append(kind())
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="store-benchmark-"))
    rounds: list[dict[str, dict[str, float]]] = []
    noise()
    try:
        for number in range(options.rounds):
            rounds.append({})
            for contender in chosen:
                place = folder / "raw" if contender.name == Raw.name else folder / "work"
                if contender.name == Raw.name:  # it stays for the whole round, and is read beside all others
                    figure = rows * WIDTH * 2 / 1e6 / timed_writing(contender, place, rows)
                    rounds[-1][Raw.name] = {"write": figure}
                else:
                    rounds[-1][contender.name] = measure(contender, place, folder / "raw", rows, options, number)
                figures = {
                    name: round(value, 4 if name.startswith("mixing") else 2 if "/" in name else 0)
                    for name, value in rounds[-1][contender.name].items()
                }
                print(f"round {number} {contender.name}: {figures}", file=sys.stderr, flush=True)
                if options.out:  # as far as it is: a run may be cut short
                    options.out.write_text(json.dumps(record(rounds, rows, options.warm), indent=1) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rounds, rows)


def record(rounds: list[dict[str, dict[str, float]]], rows: int, warm: bool) -> dict[str, Any]:
    machine = {"processor": platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"rows": rows, "width": WIDTH, "warm": warm, "machine": machine, "rounds": rounds}


def show(rounds: list[dict[str, dict[str, float]]], rows: int) -> None:
    """Medians in MB/s, and in brackets ours against theirs (in order and write: the raw file's against theirs)."""

    def median(name: str, what: str) -> float | None:
        values = [one[name][what] for one in rounds if what in one[name]]
        return statistics.median(values) if values else None

    def ratio(name: str, what: str) -> float:
        if what == "in order":
            return statistics.median(v for one in rounds for key, v in one[name].items() if key.startswith("raw / it"))
        over = Raw.name if what == "write" else Ours.name
        return statistics.median(one[over][what] / one[name][what] for one in rounds)

    beside = [value for one in rounds for figures in one.values() for key, value in figures.items() if "beside" in key]
    print(f"{rows:,} rows, {rows * WIDTH * 2 / 1e9:.2f} GB; MB/s, medians of {len(rounds)} rounds")
    print(f"raw file in order: {statistics.median(beside):,.0f} MB/s beside the others")
    lengths = " | ".join(f"mixing, {length:,} rows" for length in DOCUMENTS)
    print(f"| | write | raw / it | in order | raw / it | shuffled | ours / it | {lengths} | verify |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in rounds[0]:
        cells = []
        for what in ("write", "in order", "shuffled"):
            value = median(name, what)
            cells += ["", ""] if value is None else [f"{value:,.0f}", f"{ratio(name, what):.2f}"]
        for length in DOCUMENTS:
            mixing = median(name, f"mixing {length}")
            cells.append("" if mixing is None else f"{mixing:.5f}")
        verify = median(name, "verify")
        cells.append("" if verify is None else f"{verify:,.0f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
