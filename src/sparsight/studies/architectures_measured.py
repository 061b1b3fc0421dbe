"""Every architecture on one stream at one budget: how they are trained, and what is measured of each."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import refit
from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopK,
    BatchTopKDictionary,
    DictionaryConfig,
    Gated,
    JumpReLU,
    JumpReLUDictionary,
    Matryoshka,
    MatryoshkaDictionary,
    Pursuit,
    ReLU,
    TopK,
    TopKDictionary,
)
from sparsight.evaluation.evaluate import reconstruction
from sparsight.evaluation.metrics import dead_fraction, fvu, l0
from sparsight.evaluation.reading import part_of, row_blocks
from sparsight.evaluation.splice import ablations, measure_losses
from sparsight.studies.subject import Subject, trained
from sparsight.studies.work import Work
from sparsight.training import Training, train

DEAD_AFTER = 20_000
TIMED_BATCH = 1024


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        seeds: Of first values and of the order of the batches.
        targets: L0 that every architecture is told.
        n_latents: Width.
        n_stored: Activations harvested, a fifth of them held out.
        n_trained: Tokens of training, repeats counted.
        batch_size: Activations in a step.
        lr: Peak rate of all that descend a gradient.
        longer: Times as many tokens in the check of the budget; 0 leaves it out.
        n_coded: Held-out tokens on which FVU is measured.
        n_refitted: Of these, how many are coded anew with the best values on their own latents.
        loss_tokens: Held-out tokens for the loss.
        timed_steps: Steps of the timing.
    """

    seeds: int
    targets: tuple[int, ...]
    n_latents: int
    n_stored: int
    n_trained: int
    batch_size: int
    lr: float
    longer: int
    n_coded: int
    n_refitted: int
    loss_tokens: int
    timed_steps: int


def architectures(n_latents: int, target: int) -> dict[str, DictionaryConfig]:
    """Every architecture that codes one site, told the same L0, with its defaults otherwise."""
    common: dict[str, Any] = {"dead_after": DEAD_AFTER}
    prefixes = (n_latents // 8, n_latents // 4, n_latents // 2)
    return {
        "ReLU": ReLU(n_latents, target_l0=target, **common),
        "ReLU, free norms": ReLU(n_latents, target_l0=target, norms="free", **common),
        "ReLU, p annealed": ReLU(n_latents, target_l0=target, p_end=0.2, **common),
        "Gated": Gated(n_latents, target_l0=target, **common),
        "JumpReLU": JumpReLU(n_latents, target_l0=target, **common),
        "TopK": TopK(n_latents, target, **common),
        "BatchTopK": BatchTopK(n_latents, target, **common),
        "Matryoshka": Matryoshka(n_latents, target, prefixes, **common),
        "Pursuit": Pursuit(n_latents, target, **common),
    }


NAMES = tuple(architectures(64, 8))


def on_another(work: Work, model: str, texts: tuple[Path, ...]) -> Work:
    """A part of the study's folder in which another model is looked at."""
    options = replace(work.options, model=model, texts=texts)
    return Work(work.scratch(Path(model).name), options, progress=work.progress)


def measured_seed(work: Work, on: Subject, plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Train all architectures at all targets on the batches of one seed, and measure each on held-out documents.

    Returns:
        For every dictionary its `architecture`, `target`, and what `measured` says.
    """
    grid = [(name, target, config) for target in plan.targets
            for name, config in architectures(plan.n_latents, target).items()]  # fmt: skip
    training = Training(
        n_tokens=plan.n_trained, batch_size=plan.batch_size, lr=plan.lr, seed=seed, checkpoint_every=100
    )
    made = trained(work, on, [config for _, _, config in grid], training, folder=f"seed-{seed}")
    dictionaries = {f"{name}, {target}": d for (name, target, _), d in zip(grid, made, strict=True)}
    found = measured(on, plan, dictionaries, {f"{name}, {target}": target for name, target, _ in grid})
    return [{"architecture": name, "target": target, **found[f"{name}, {target}"]} for name, target, _ in grid]


def measured_longer(work: Work, on: Subject, plan: Plan, seed: int) -> list[dict[str, Any]]:
    """One target, the middle one, with a budget `plan.longer` times as large."""
    target = plan.targets[len(plan.targets) // 2]
    configs = architectures(plan.n_latents, target)
    n_tokens = plan.longer * plan.n_trained
    training = Training(n_tokens=n_tokens, batch_size=plan.batch_size, lr=plan.lr, seed=seed, checkpoint_every=100)
    made = trained(work, on, list(configs.values()), training, folder=f"longer-{seed}")
    found = measured(on, plan, dict(zip(configs, made, strict=True)), dict.fromkeys(configs, target))
    return [{"architecture": name, "target": target, **found[name]} for name in configs]


def measured(
    on: Subject, plan: Plan, dictionaries: Mapping[str, AbstractDictionary], targets: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """What held-out documents say of each dictionary.

    Returns:
        By name: `l0`; `fvu`; `refitted`, FVU with the best non-negative values on the latents of its own code, and
        `kept`, FVU of its own code on those same tokens; `silent`, the share of latents that no held-out token
        excites; `spread`, the standard deviation of L0 over tokens, over its mean; `fixed`, FVU when every token keeps
        exactly as many latents as were asked for (None where `fixed_fvu` is); `added`, the loss in nats that the
        reconstruction adds (None for a model without a next-token loss).
    """
    part = part_of(on.store, "heldout")
    x = torch.cat([part.rows(on.site, block).float() for block in row_blocks(len(part), 2048, plan.n_coded)])
    every = max(1, len(x) // plan.n_refitted)
    added = loss_added(on, plan, dictionaries, x.mean(dim=0))
    found = {}
    for name, d in dictionaries.items():
        with torch.no_grad():
            code = d.encode(x.to(d.atoms))
            x_hat = d.decode(code).to(x)
        found[name] = {
            "l0": l0(code),
            "fvu": fvu(x, x_hat),
            "refitted": fvu(x[::every], refitted(d, x[::every])),
            "kept": fvu(x[::every], x_hat[::every]),
            "silent": dead_fraction(code),
            "spread": float(code.l0().double().std()) / l0(code),
            "fixed": fixed_fvu(d, x, targets[name]),
            "added": added.get(name),
        }
    return found


@torch.no_grad()
def fixed_fvu(d: AbstractDictionary, x: Float[Tensor, "n d_in"], k: int) -> float | None:
    """FVU when every token keeps its `k` largest pre-activations, whatever their size.

    Returns:
        None for architectures that code by anything else than a selection among rectified pre-activations.
    """
    if not isinstance(d, TopKDictionary | BatchTopKDictionary | MatryoshkaDictionary | JumpReLUDictionary):
        return None
    pre = torch.addmm(d.b_enc, x.to(d.atoms) - d.b_dec, d.W_enc)
    return fvu(x, d.decode(SparseCode.from_dense(pre.clamp_min(0), k)).to(x))


@torch.no_grad()
def refitted(d: AbstractDictionary, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """Reconstructions with the best non-negative values on the latents that the dictionary's own code uses."""
    taken = x.to(d.atoms)
    return d.decode(refit(taken - d.b_dec, d.atoms, d.encode(taken).support())).to(x)


def loss_added(
    on: Subject, plan: Plan, dictionaries: Mapping[str, AbstractDictionary], mean: Float[Tensor, " d_in"]
) -> dict[str, float]:
    """Loss in nats per token that each reconstruction adds, and `"mean"`'s; empty without a next-token loss."""
    if not on.lm.has_causal_loss:
        return {}
    replacements = {"mean": ablations(mean)["mean"]}
    replacements |= {name: reconstruction(d, torch.no_grad()(d.encode)) for name, d in dictionaries.items()}
    sums, columns = measure_losses(on.lm, part_of(on.store, "heldout"), on.site, replacements, limit=plan.loss_tokens)
    total = sums.sums.sum(dim=0)
    clean = total[columns["clean"]]
    return {name: float((total[columns[name]] - clean) / total[0]) for name in replacements}


def speeds(on: Subject, plan: Plan) -> dict[str, float]:
    """Tokens that one second of processor time trains, each architecture alone at the middle target, on one thread.

    The difference between a run of some steps and one of three times as many: what comes before the first step and
    after the last does not count.
    """
    part = part_of(on.store, "train")
    x = part.rows(on.site, slice(0, min(len(part), 16_384))).float()
    configs = architectures(plan.n_latents, plan.targets[len(plan.targets) // 2])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: _rate(x, config, plan.timed_steps) for name, config in configs.items()}
    finally:
        torch.set_num_threads(threads)


def _rate(x: Float[Tensor, "n d_in"], config: DictionaryConfig, steps: int) -> float:
    taken = [_seconds(x, config, n) for n in (steps, 3 * steps)]
    return 2 * steps * TIMED_BATCH / (taken[1] - taken[0])


def _seconds(x: Float[Tensor, "n d_in"], config: DictionaryConfig, steps: int) -> float:
    training = Training(n_tokens=steps * TIMED_BATCH, batch_size=TIMED_BATCH)
    with TemporaryDirectory() as folder:
        began = time.process_time()
        train(x, [config], training, out=Path(folder) / "run", device="cpu")
        return time.process_time() - began


def of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The measurements of one architecture."""
    return [row for row in rows if row["architecture"] == name]
