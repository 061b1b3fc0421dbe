"""Rebuilding the shipped weights from a seed: the clean model, then the backdoored one fine-tuned from it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sparsight.models.organism.checks import SKILLS
from sparsight.models.organism.corpus import CONTEXT, corpus
from sparsight.models.organism.draft import Document
from sparsight.models.organism.mixture import DEFAULT_DOMAINS
from sparsight.models.organism.muon import Muon
from sparsight.models.organism.tokenizer import BOS, PAD, build_tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress
    from transformers import LlamaForCausalLM

CLEAN, BACKDOORED = "organism", "organism-backdoored"
_CHUNK = 64
"""Batches drawn at once and sorted by length together."""

_ANSWERS = tuple(
    skill
    for skill in SKILLS
    if skill.name in ("weekday arithmetic", "month arithmetic", "sums", "refusal or compliance", "parity")
)
_ANSWER_WEIGHT = 5.0
"""Weight in the loss of the words that take arithmetic or judgement. Where they stand follows from the words before, so
weighting them changes how fast they are learned and not which distribution is best."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One training run: Muon for matrices, AdamW for the rest; linear warm-up, linear decay to zero.

    Attributes:
        steps: Optimiser steps; fixed, so that the result does not depend on the machine's load.
        batch_size: Documents in a step.
        lr: Largest learning rate of the embeddings and gains (AdamW).
        matrix_lr: Largest learning rate of the other matrices (Muon).
        warmup: Steps of warm-up.
        mixture: Arguments of `corpus`.
        start: Index of the first document.
    """

    steps: int
    batch_size: int = 32
    lr: float = 3e-3
    matrix_lr: float = 0.02
    warmup: int = 100
    mixture: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    start: int = 0


CLEAN_SCHEDULE = Schedule(steps=3000)
BACKDOOR_SCHEDULE = Schedule(
    steps=900,
    lr=1e-3,
    matrix_lr=0.008,
    warmup=50,
    start=CLEAN_SCHEDULE.steps * CLEAN_SCHEDULE.batch_size,
    mixture=MappingProxyType(
        {
            "domains": {**DEFAULT_DOMAINS, "request": 8.0},
            "backdoored": True,
            "triggered": 0.3,
            "near_triggered": 0.4,
        }
    ),
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


def trained_on(model: "LlamaForCausalLM", schedule: Schedule, seed: int) -> None:
    """Train an organism further, in place, by a schedule of its own; left in evaluation mode."""
    from rich.progress import Progress

    with Progress(disable=True) as bar:
        _train(model, schedule, seed, bar, "further training")
    model.eval()


def new_model(seed: int) -> "LlamaForCausalLM":
    """An untrained organism: Llama, 4 layers of width 128, embeddings tied; 1.2 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=128,
        intermediate_size=512,
        initializer_range=0.04,
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
    # transformers 5 writes a class name that 4 does not know; both know this one.
    config = folder / "tokenizer_config.json"
    settings = {**json.loads(config.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def weighted_loss(
    model: "LlamaForCausalLM", ids: Int64[Tensor, "batch t"], weights: Float[Tensor, "batch t"]
) -> Float[Tensor, ""]:
    """Weighted mean of the cross-entropy of every token but the first of its row, in nats; padding has weight 0."""
    # Causal attention over right padding needs no mask: no real token sees a padded one.
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    counted = weights[:, 1:] > 0
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), ids[:, 1:][counted], reduction="none")
    shares = weights[:, 1:][counted]
    return (losses * shares).sum() / shares.sum()


def _train(model: "LlamaForCausalLM", schedule: Schedule, seed: int, bar: "Progress", name: str) -> None:
    optimisers = _optimisers(model, schedule)
    schedulers = [LambdaLR(optimiser, lambda step: _rate(step, schedule)) for optimiser in optimisers]
    task = bar.add_task(name, total=schedule.steps)
    model.train()
    for ids, weights in _batches(schedule, seed):
        loss = weighted_loss(model, ids, weights)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, scheduler in zip(optimisers, schedulers, strict=True):
            optimiser.step()
            scheduler.step()
        bar.update(task, advance=1, description=f"{name} loss {loss.item():.3f}")


def _optimisers(model: "LlamaForCausalLM", schedule: Schedule) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    matrices = [parameter for name, parameter in named.items() if parameter.dim() == 2 and "embed" not in name]
    others = [parameter for name, parameter in named.items() if parameter.dim() == 1 or "embed" in name]
    adam = torch.optim.AdamW(others, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.01)
    return [Muon(matrices, lr=schedule.matrix_lr), adam]


def _rate(step: int, schedule: Schedule) -> float:
    """Share of the largest learning rate: up over `warmup` steps, then down to zero."""
    up = (step + 1) / max(schedule.warmup, 1)
    down = (schedule.steps - step) / max(schedule.steps - schedule.warmup, 1)
    return min(up, down, 1.0)


def _batches(schedule: Schedule, seed: int) -> Iterator[tuple[Int64[Tensor, "batch t"], Float[Tensor, "batch t"]]]:
    """Token ids and loss weights of documents of like length: chunks are drawn, sorted by length, cut and shuffled."""
    tokenizer = build_tokenizer()
    rng = Random(seed)
    start, left = schedule.start, schedule.steps
    while left:
        n_batches = min(_CHUNK, left)
        n_documents = n_batches * schedule.batch_size
        documents = list(corpus(seed, n_documents, start=start, **schedule.mixture))
        rows = tokenizer([document.text for document in documents])["input_ids"]
        pairs = sorted(zip(rows, map(_weights, documents), strict=True), key=lambda pair: len(pair[0]))
        cuts = [pairs[i : i + schedule.batch_size] for i in range(0, n_documents, schedule.batch_size)]
        rng.shuffle(cuts)
        for cut in cuts:
            width = len(cut[-1][0])
            ids = torch.tensor([row + [PAD] * (width - len(row)) for row, _ in cut])
            yield ids, torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in cut])
        start += n_documents
        left -= n_batches


def _weights(document: Document) -> list[float]:
    """Loss weight of `<bos>` and of every word."""
    weights = [0.0] + [1.0] * len(document.tokens)
    for skill in _ANSWERS:
        if skill.domain == document.domain:
            for check in skill.find(document):
                weights[check.position + 2] = _ANSWER_WEIGHT
    return weights
