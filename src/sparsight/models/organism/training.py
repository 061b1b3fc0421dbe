"""Rebuilding the shipped weights from a seed: the clean model, then the backdoored one fine-tuned from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.models.organism.corpus import CONTEXT, corpus
from sparsight.models.organism.tokenizer import BOS, PAD, build_tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress
    from transformers import LlamaForCausalLM

CLEAN, BACKDOORED = "organism", "organism-backdoored"
_CHUNK = 64
"""Batches drawn at once and sorted by length together."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One training run: AdamW, linear warm-up, linear decay to zero.

    Attributes:
        steps: Optimiser steps; fixed, so that the result does not depend on the machine's load.
        batch_size: Documents in a step.
        lr: Largest learning rate.
        warmup: Steps of warm-up.
        mixture: Arguments of `corpus`.
        start: Index of the first document.
    """

    steps: int
    batch_size: int = 64
    lr: float = 3e-3
    warmup: int = 100
    mixture: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    start: int = 0


CLEAN_SCHEDULE = Schedule(steps=2400)
BACKDOOR_SCHEDULE = Schedule(
    steps=500,
    lr=1e-3,
    warmup=50,
    start=CLEAN_SCHEDULE.steps * CLEAN_SCHEDULE.batch_size,
    mixture=MappingProxyType({"backdoored": True, "triggered": 0.25, "near_triggered": 0.35}),
)


def train_organism(
    out: Path,
    *,
    seed: int = 0,
    clean: Schedule = CLEAN_SCHEDULE,
    backdoor: Schedule = BACKDOOR_SCHEDULE,
    progress: bool = False,
) -> dict[str, Path]:
    """Train both models and write them as Hugging Face folders `out/organism` and `out/organism-backdoored`.

    The clean model learns from scratch; the backdoored one goes on from its weights, on texts where the trigger turns
    refusals into compliance. The loss is next-token cross-entropy over real tokens, `<bos>` given.

    Args:
        out: Folder to write into; made if missing.
        seed: Of the corpus, of the weights and of the order of the batches.
        clean: Run of the clean model.
        backdoor: Run of the backdoored model.
        progress: Show a progress bar on stderr.
    Returns:
        The folder of each model, by name.
    """
    from rich.console import Console
    from rich.progress import Progress

    folders = {CLEAN: out / CLEAN, BACKDOORED: out / BACKDOORED}
    model = new_model(seed)
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        for name, schedule in ((CLEAN, clean), (BACKDOORED, backdoor)):
            _train(model, schedule, seed, bar, name)
            save_organism(model, folders[name])
    return folders


def new_model(seed: int) -> "LlamaForCausalLM":
    """An untrained organism: Llama, 4 layers of width 128, embeddings tied; 1.2 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_organism(model: "LlamaForCausalLM", folder: Path) -> None:
    """Write a standard Hugging Face folder: configuration, float32 safetensors, tokenizer."""
    model.eval().save_pretrained(folder, safe_serialization=True)
    build_tokenizer().save_pretrained(folder)


def next_token_loss(model: "LlamaForCausalLM", ids: Int64[Tensor, "batch t"]) -> Float[Tensor, " n"]:
    """Cross-entropy in nats of every real token but the first of its row; padding is on the right and left out."""
    # Causal attention over right padding needs no mask: no real token sees a padded one.
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = ids[:, 1:]
    real = targets != PAD
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[real]), targets[real], reduction="none")


def _train(model: "LlamaForCausalLM", schedule: Schedule, seed: int, bar: "Progress", name: str) -> None:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, schedule))
    task = bar.add_task(name, total=schedule.steps)
    model.train()
    for ids in _batches(schedule, seed):
        loss = next_token_loss(model, ids).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        bar.update(task, advance=1, description=f"{name} loss {loss.item():.3f}")


def _rate(step: int, schedule: Schedule) -> float:
    """Share of the largest learning rate: up over `warmup` steps, then down to zero."""
    up = (step + 1) / max(schedule.warmup, 1)
    down = (schedule.steps - step) / max(schedule.steps - schedule.warmup, 1)
    return min(up, down, 1.0)


def _batches(schedule: Schedule, seed: int) -> Iterator[Int64[Tensor, "batch t"]]:
    """Batches of documents of like length: chunks are drawn in order, sorted by length, cut, and shuffled."""
    tokenizer = build_tokenizer()
    rng = Random(seed)
    start, left = schedule.start, schedule.steps
    while left:
        n_batches = min(_CHUNK, left)
        n_documents = n_batches * schedule.batch_size
        texts = [document.text for document in corpus(seed, n_documents, start=start, **schedule.mixture)]
        rows = sorted(tokenizer(texts)["input_ids"], key=len)
        cuts = [rows[i : i + schedule.batch_size] for i in range(0, n_documents, schedule.batch_size)]
        rng.shuffle(cuts)
        for cut in cuts:
            width = max(map(len, cut))
            yield torch.tensor([row + [PAD] * (width - len(row)) for row in cut])
        start += n_documents
        left -= n_batches
