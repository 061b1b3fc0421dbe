"""What effects of all latents at all layers cost: a random Llama of MiniLM's shape with wide random TopK dictionaries.

python benchmarks/effects.py --method integrated_gradients --kinds resid_post
"""

import argparse
import json
import resource
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.circuits import latent_effects, log_probability
from sparsight.dictionaries import TopK
from sparsight.models import LanguageModel, Site, Tokens, load_model

LAYERS, WIDTH, INNER, HEADS = 6, 384, 1536, 12


def model() -> LanguageModel:
    """Random weights; the organism's vocabulary."""
    tokenizer = load_model("organism", device="cpu").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
    )
    return LanguageModel(LlamaForCausalLM(config).requires_grad_(False), tokenizer, name="random-llama-6x384")


def sequences(n: int, length: int, seed: int) -> Tokens:
    """Random words behind a token that begins every sequence."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 1000, (n, length), generator=g)
    ids[:, 0] = 1
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    return Tokens(ids, torch.ones_like(special), special)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="integrated_gradients")
    parser.add_argument("--kinds", nargs="+", default=["resid_post"])
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = model()
    sites = [Site(layer, kind) for layer in range(LAYERS) for kind in options.kinds]
    made = {}
    for i, site in enumerate(sites):
        dictionary = TopK(options.latents, options.k).build(WIDTH, torch.Generator().manual_seed(100 + i))
        made[site] = dictionary.requires_grad_(False)
    clean, corrupted = (sequences(options.examples, options.length, seed) for seed in (1, 2))
    before = _peak()
    began, worked = time.perf_counter(), time.process_time()
    effects = latent_effects(
        lm,
        made,
        clean,
        corrupted,
        log_probability(clean, torch.full((options.examples,), 17)),
        method=options.method,
        steps=options.steps,
        joint=options.joint,
    )
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    n = len(sites)
    steps = options.steps if options.method == "integrated_gradients" else 0
    moves = 1 if options.joint else n
    expected = (2 + moves + moves * steps) * options.examples
    assert effects.passes.forward == expected, (effects.passes, expected)
    assert effects.passes.backward == (moves * steps or 1) * options.examples, effects.passes
    print(
        json.dumps(
            {
                "method": effects.method,
                "sites": n,
                "latents": options.latents * n,
                "examples": options.examples,
                "tokens": options.examples * options.length,
                "effects": int(sum((at.change != 0).sum() for at in effects.values())),
                "seconds": round(seconds, 1),
                "processor_seconds": round(processor, 1),
                "forward": effects.passes.forward,
                "backward": effects.passes.backward,
                "memory_before_mb": before,
                "memory_peak_mb": _peak(),
                "largest_residual": max(effects.largest_residual(site) for site in sites),
            },
            indent=1,
        )
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
