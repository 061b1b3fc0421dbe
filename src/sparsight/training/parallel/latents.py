"""TopK with its latents cut into shards, one on each process, for widths that do not fit on one device.

A process holds the rows of `atoms`, the columns of `W_enc` and the entries of `b_enc` of its latents, with Adam's
averages of them; `b_dec` is on all. Every process sees the whole batch. In a step travel: the `k` best candidates of
every process and token, the partial reconstructions, and the gradient of the offset through the encoders.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, TopKDictionary
from sparsight.dictionaries.selection import Slots, block_rows, top_k
from sparsight.training.objectives.terms import Objective, objective_of, revived_at_once, squared_error
from sparsight.training.parallel.processes import Processes
from sparsight.training.sparse_step import decode_slots

# Which axis of a tensor goes through the latents.
AXES = {"atoms": 0, "W_enc": 1, "b_enc": 0, "silent": 0}


class _ToShards(torch.autograd.Function):
    """The same on all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class _FromShards(torch.autograd.Function):
    """The sum over the processes; each gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sharded_top_k(
    dictionary: TopKDictionary,
    centred: Float[Tensor, "b d"],
    k: int,
    processes: Processes,
    *,
    among: Bool[Tensor, " m_shard"] | None = None,
) -> tuple[Float[Tensor, "b d"], Slots]:
    """Decode, without offset, the `k` largest pre-activations of each token, rectified, over the latents of all.

    Args:
        dictionary: This process's shard.
        centred: Activations less the offset, equal on all processes; differentiable.
        k: Latents in a token.
        among: Latents to choose among; the gradient then passes through the rectifier, to negative ones as well. All
            when not given.
    Returns:
        What the chosen latents of all processes add up to, and the slots of this process.
    """
    inputs: Tensor = _ToShards.apply(centred)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        values, latents = _candidates(dictionary, centred, k, among)
        everywhere = processes.cat(values.T.contiguous().unsqueeze(0)).flatten(0, 1).T  # rank by rank: [b, size * k]
        chosen = torch.zeros_like(everywhere, dtype=torch.bool)
        chosen.scatter_(1, top_k(everywhere, k)[1], True)
        mine = chosen[:, processes.rank * k : (processes.rank + 1) * k] & torch.isfinite(values)
        if among is None:
            mine &= values > 0
        tokens = mine.nonzero()[:, 0]
        slots = Slots(tokens, latents[mine], values[mine].relu(), len(centred))
    no_offset = torch.zeros_like(dictionary.b_dec)
    part = decode_slots(
        inputs, dictionary.W_enc, dictionary.b_enc, dictionary.atoms, no_offset, slots, tokens, len(centred), False
    )
    return _FromShards.apply(part), slots  # type: ignore[no-untyped-call]


def _candidates(dictionary: TopKDictionary, centred: Tensor, k: int, among: Tensor | None) -> tuple[Tensor, Tensor]:
    """The `k` best of this process's latents in each token; minus infinity where it has fewer."""
    values, latents = [], []
    for rows in torch.split(centred, block_rows(dictionary.n_latents, centred.device)):
        pre = torch.addmm(dictionary.b_enc, rows, dictionary.W_enc)
        if among is not None:
            pre = pre.masked_fill(~among, -torch.inf)
        found, columns = top_k(pre, min(k, dictionary.n_latents))
        missing = k - found.shape[1]
        values.append(torch.nn.functional.pad(found, (0, missing), value=-torch.inf))
        latents.append(torch.nn.functional.pad(columns, (0, missing)))
    return torch.cat(values), torch.cat(latents)


def sharded_topk_objective(
    dictionary: TopKDictionary,
    x: Float[Tensor, "b d_in"],
    dead: Bool[Tensor, " m_shard"],
    processes: Processes,
) -> Objective:
    """`FVU + aux * revival`, equal on all processes; `fired` is of this process's latents."""
    config = dictionary.config
    decoded, slots = sharded_top_k(dictionary, x - dictionary.b_dec, config.k, processes)
    residual = x - decoded - dictionary.b_dec
    terms = {"reconstruction": squared_error(x, x - residual)}
    counts = processes.sum_(torch.stack([dead.sum(), torch.tensor(len(slots.latents), device=x.device)]))
    n_dead, n_active = int(counts[0]), int(counts[1])
    if config.aux > 0 and n_dead > 0:
        k = revived_at_once(config.k_aux, n_dead, dictionary.d_in)
        centred = x - dictionary.b_dec.detach()
        explained, _ = sharded_top_k(dictionary, centred, k, processes, among=dead)
        target = residual.detach()
        variance = (target - target.mean(dim=0)).square().sum()
        left = (target - explained).square().sum() / variance.clamp_min(torch.finfo(x.dtype).tiny)
        terms["auxiliary"] = config.aux * left
    fired = torch.zeros_like(dead)
    fired[slots.latents] = True
    return objective_of(terms, x.new_tensor(n_active / len(x)), fired)


def clip_sharded_(dictionary: AbstractDictionary, limit: float, processes: Processes) -> Tensor:
    """Shorten the gradient of all shards together to `limit`; returns its norm, equal on all processes."""
    gradients = {name: p.grad for name, p in dictionary.named_parameters() if p.grad is not None}
    squares = {name: gradient.square().sum() for name, gradient in gradients.items()}
    local = torch.stack([square for name, square in squares.items() if name in AXES]).sum()
    shared = sum(square for name, square in squares.items() if name not in AXES)
    norm = (processes.sum_(local) + shared).sqrt()
    for gradient in gradients.values():
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def shard_of(name: str, whole: Tensor, processes: Processes) -> Tensor:
    """This process's part of a tensor with a name like `W_enc` or `rule/W_enc/exp_avg`."""
    axis = _axis(name, whole)
    return whole if axis is None else whole.chunk(processes.size, dim=axis)[processes.rank].contiguous()


def whole_of(name: str, shard: Tensor, processes: Processes) -> Tensor:
    """The tensor of which every process has a part. All processes must ask."""
    axis = _axis(name, shard)
    if axis is None:
        return shard
    return processes.cat(shard.transpose(0, axis).contiguous()).transpose(0, axis).contiguous()


def _axis(name: str, tensor: Tensor) -> int | None:
    axes = [AXES[part] for part in name.split("/") if part in AXES]
    return axes[0] if axes and tensor.dim() > axes[0] else None


def sharded(dictionary: AbstractDictionary, processes: Processes) -> TopKDictionary:
    """This process's shard of a dictionary, itself a TopK dictionary of fewer latents.

    Raises:
        ValueError: the architecture cannot be cut, or not into equal shards.
    """
    if not isinstance(dictionary, TopKDictionary):
        raise ValueError(f'parallel="latents" is for TopK, got {dictionary.config.architecture}; use parallel="data"')
    if dictionary.n_latents % processes.size:
        raise ValueError(
            f"n_latents={dictionary.n_latents} cannot be cut into {processes.size} equal shards; make it a multiple of "
            f"{processes.size}"
        )
    return _with_parameters(dictionary, {n: shard_of(n, p.data, processes) for n, p in dictionary.named_parameters()})


def gathered(dictionary: TopKDictionary, processes: Processes) -> TopKDictionary:
    """The ordinary dictionary of which every process has a shard, in the memory of the host."""
    whole = {name: whole_of(name, p.data, processes).cpu() for name, p in dictionary.named_parameters()}
    return _with_parameters(dictionary, whole)


def _with_parameters(dictionary: TopKDictionary, tensors: dict[str, Tensor]) -> TopKDictionary:
    made = TopKDictionary(dictionary.config, tensors["atoms"].clone())
    for name, parameter in made.named_parameters():
        parameter.data = tensors[name].clone()
    return made
