"""How well batches from a store on disk are mixed, by the length of blocks and of documents; nothing is read.

    python benchmarks/mixing.py --rows 1302083 --batch-size 4096

The correlation of documents within a batch (docs/activations.md), over the first 64 batches of an epoch, for documents
of equal length; then for a stream from a model, whose buffers hold neighbouring documents; last, for rows permuted as a
whole.
"""

import argparse
from typing import Any, cast

import torch

from sparsight.activations.chunks import OnDisk
from sparsight.activations.mixing import mixing_of
from sparsight.activations.stream import numbers_of_rows
from sparsight.models import Site

BATCHES, BUFFER = 64, 1 << 17


class Nothing:
    """A store of so many rows, which are never asked for."""

    dtype = torch.float16

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def width(self, site: Site) -> int:
        return 1


class Neighbours(OnDisk):
    """Buffers of neighbouring rows, as a model makes them."""

    def _blocks(self, epoch: int, index: int) -> list[slice]:
        first = index * self.blocks_per_chunk
        numbers = range(first, min(first + self.blocks_per_chunk, self.n_blocks))
        return [slice(i * self.block_rows, min((i + 1) * self.block_rows, len(self.store))) for i in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_302_083)
    parser.add_argument("--batch-size", type=int, default=4096)
    options = parser.parse_args()
    n, size = options.rows, options.batch_size
    drawn = {}
    for block in (64, 256, 1024):
        chunks = OnDisk(cast(Any, Nothing(n)), [Site.parse("embed")], 0, block, BUFFER)
        drawn[f"blocks of {block}"] = list(numbers_of_rows(chunks, size, 0, BATCHES))
    live = Neighbours(cast(Any, Nothing(n)), [Site.parse("embed")], 0, 256, BUFFER)
    drawn["from a model"] = list(numbers_of_rows(live, size, 0, BATCHES))
    whole = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    drawn["permuted as a whole"] = list(whole[: BATCHES * size].split(size))
    print("| | rows in a document | correlation | standard error | documents in a batch |\n|---|---|---|---|---|")
    for name, batches in drawn.items():
        for length in (200, 1000, 5000):
            owners = torch.arange(n) // length
            mixing = mixing_of((owners[rows] for rows in batches), owners)
            found = f"{mixing.correlation:.1e} | {mixing.standard_error:.0e} | {mixing.documents:,.0f}"
            print(f"| {name} | {length} | {found} |")


if __name__ == "__main__":
    main()
