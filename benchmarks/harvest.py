"""Harvest against the model's own forward pass on the same batches, in one run.

    python benchmarks/harvest.py --model organism --tokens 100000 --rounds 3
    python benchmarks/harvest.py --model FOLDER_OF_MINILM --text FILE

The bare pass is the model called by itself on the padded batches that harvest makes, tokenized beforehand, nothing
kept: no cache of keys and values either. Harvest reads the last block's residual stream, so that stopping early gains
nothing; it tokenizes, checks, rounds, sums up errors, writes and syncs. Rounds are interleaved, each begins with the
other of the two; the figures are the medians of the ratios, of seconds passed and of processor seconds, which a machine
that others use disturbs less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sparsight.activations import documents_from_files, harvest
from sparsight.activations.contexts import Cutter, windows
from sparsight.activations.reading import pad
from sparsight.models import LanguageModel, Tokens, load_model
from sparsight.models.organism import corpus
from sparsight.models.tokenization import padding_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism")
    parser.add_argument("--text", type=Path, help="Default: the organism's corpus.")
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lm = load_model(options.model)
    site = f"{lm.n_layers - 1}.resid_post"
    if options.text:
        documents = [document.text for document in documents_from_files([options.text])]
    else:
        documents = [document.text for document in corpus(0, options.tokens // 10)]
    batches, n = batches_of(lm, documents, options)
    trunk = lm.model.base_model
    print(f"{options.model}: {n:,} tokens in {len(batches)} batches, site {site}, {torch.get_num_threads()} threads")

    kept = {"use_cache": False} if lm.has_causal_loss else {}

    def bare() -> None:
        with torch.no_grad():
            for tokens in batches:
                trunk(input_ids=tokens.ids.to(lm.device), attention_mask=tokens.mask.long().to(lm.device), **kept)

    def harvesting() -> None:
        with tempfile.TemporaryDirectory() as folder:
            size = options.batch_size
            harvest(lm, documents, site, Path(folder) / "store", n_tokens=n, context=options.context, batch_size=size)

    ratios = []
    for number in range(options.rounds + 1):
        works = (bare, harvesting) if number % 2 else (harvesting, bare)
        found = {work: timed(work) for work in works}
        if number:  # the first round warms up
            ratios.append([b / w for b, w in zip(found[bare], found[harvesting], strict=True)])
            rates = ", ".join(f"{work.__name__} {n / found[work][0]:,.0f} tokens/s" for work in (bare, harvesting))
            print(f"{rates}, ratio {ratios[-1][0]:.3f}, of processor seconds {ratios[-1][1]:.3f}", flush=True)
    passed, processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median: harvest at {passed:.1%} of the bare forward pass; {processor:.1%} by processor seconds")


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds passed, and those of all processors."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def batches_of(lm: LanguageModel, documents: list[str], options: argparse.Namespace) -> tuple[list[Tokens], int]:
    """The padded batches that harvest makes, and the rows in them."""
    cutter = Cutter(lm, options.context)
    batches, n = [], 0
    for window in windows(cutter.cut(documents), 4 * options.batch_size, options.tokens):
        n += sum(context.n_counted for context in window)
        window = sorted(window, key=lambda context: -len(context.ids))
        for begin in range(0, len(window), options.batch_size):
            part = window[begin : begin + options.batch_size]
            batches.append(pad([c.ids for c in part], [c.special for c in part], padding_id(cutter.lm.tokenizer)))
    return batches, min(n, options.tokens)


if __name__ == "__main__":
    main()
