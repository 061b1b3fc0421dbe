"""One step on a CPU: screened selection, gradients of active latents only, and Adam in one pass over each weight."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopKDictionary,
    JumpReLUDictionary,
    MatryoshkaDictionary,
    TopKDictionary,
)
from sparsight.dictionaries.selection import Slots
from sparsight.training.compiled import kernels
from sparsight.training.compiled.screen import Screen
from sparsight.training.compiled.selection import screened_above, screened_batch_top_k, screened_top_k
from sparsight.training.compiled.threads import Room, spread
from sparsight.training.objectives import Objective
from sparsight.training.objectives.jumprelu import sparsity_penalty
from sparsight.training.objectives.terms import objective_of, revival

COMPILED = (TopKDictionary, BatchTopKDictionary, MatryoshkaDictionary, JumpReLUDictionary)
# A dense step is faster where some token has more active latents than one in so many.
DENSE_FROM = 16


class CompiledStep:
    """Gradients of the objective, and the step that follows, without anything of size `[b, n_latents]`.

    Buffers outlive a step: touching fresh memory costs more than filling it. The encoder's parameter keeps its shape
    `[d_in, n_latents]`, but lies in memory latent by latent.

    Args:
        dictionary: In training, on the CPU, in float32.
    """

    def __init__(self, dictionary: AbstractDictionary) -> None:
        self.dictionary: Any = dictionary
        m, d = dictionary.atoms.shape
        encoder: Any = dictionary.W_enc
        encoder.data = encoder.data.T.contiguous().T
        self.screen = Screen(encoder.detach().T)
        self.to_atoms, self.to_encoder = torch.zeros(m, d), torch.zeros(m, d)
        # The offset's gradient by reconstruction, which moves the encoder's input too, and by revival, which does not.
        self.to_offset, self.by_revival = torch.zeros(m), torch.zeros(m)
        self.to_b_dec, self.to_log_threshold = torch.zeros(d), torch.zeros(m)
        self.room, self.dense_now = Room(), False
        self.starts = torch.zeros(m + 1, dtype=torch.int64)
        self.along, self.squares = torch.zeros(m), torch.zeros(m, dtype=torch.float64)

    @torch.no_grad()
    def gradients(
        self, x: Float[Tensor, "b d"], dead: Bool[Tensor, " m"], sparsity: float, share: float, *, add: bool
    ) -> Objective | None:
        """The objective of some rows; leaves `share` times its gradients in the parameters.

        Args:
            sparsity: Share of its full weight that a penalty has now.
            share: Weight of these rows in the whole batch.
            add: Whether the parameters hold gradients of other rows already, to be added to.
        Returns:
            None where so many latents are active that a dense step is faster; nothing has changed then.
        """
        config, b = self.dictionary.config, len(x)
        centred = torch.sub(x, self.dictionary.b_dec, out=self.room.take("centred", *x.shape))
        self.dense_now = self.dense_now and add
        near = None if self.dense_now else self.select(centred)
        if near is None:
            self.dense_now = True  # for the rest of the batch: parts' gradients are then added up by autograd
            return None
        slots, active = self._jumped(near)
        widths, weights = self._prefixes()
        one = len(widths) == 1
        groups = torch.zeros_like(slots.latents) if one else torch.searchsorted(widths, slots.latents, right=True)
        g, pull, errors = self._decode(x, slots, groups, weights * (2 * share / b))
        terms = {"reconstruction": errors[-1]}
        if not add:
            for total in (self.to_b_dec, self.by_revival, self.to_log_threshold):
                total.zero_()
        l0 = active.sum() / b
        if isinstance(self.dictionary, JumpReLUDictionary):
            terms["sparsity"] = self._move_thresholds(near, pull, l0, sparsity, share / b)
        rows = slots.tokens if one else groups + slots.tokens * len(widths)
        self._sum_by_latent(centred, g, slots, rows, pull.mul_(active), add)
        self.to_b_dec += g.view(b, len(widths), -1)[:, 0].sum(dim=0)
        if not one:
            terms["prefixes"] = (weights[:-1] * errors[:-1]).sum()
        if config.aux > 0 and bool(dead.any()):
            residual = g.view(b, len(widths), -1)[:, -1] * (-b / (2 * share))
            terms["auxiliary"] = self._revive(x, residual, dead, share)
        self._leave()
        fired = torch.zeros_like(dead)
        fired[slots.latents[active]] = True
        return objective_of(terms, l0, fired)

    @torch.no_grad()
    def select(self, centred: Float[Tensor, "b d"]) -> Slots | None:
        """The code of the architecture, by token, then (but for TopK) by latent.

        JumpReLU's has what lies within the window of its threshold too; None where that is too much.
        """
        dictionary, offset = self.dictionary, self.dictionary.b_enc.detach()
        if isinstance(dictionary, TopKDictionary):
            return screened_top_k(self.screen, centred, offset, dictionary.k_now)
        if isinstance(dictionary, JumpReLUDictionary):
            lower = dictionary.threshold - dictionary.bandwidth / 2
            most = max(1, dictionary.n_latents // DENSE_FROM)
            return screened_above(self.screen, centred, offset, lower, most)
        return screened_batch_top_k(self.screen, centred, offset, dictionary.k_now * len(centred))

    def _jumped(self, near: Slots) -> tuple[Slots, Tensor]:
        """Slots with the values that are decoded, and which of them are active."""
        if not isinstance(self.dictionary, JumpReLUDictionary):
            return near, near.values > 0
        active = near.values > self.dictionary.threshold[near.latents]
        return replace(near, values=near.values * active), active

    def _move_thresholds(self, near: Slots, pull: Tensor, l0: Tensor, sparsity: float, share: float) -> Tensor:
        """The penalty; adds what it and the reconstruction say about the thresholds.

        With the rectangle kernel a slot within the window adds `-(theta pull + penalty'(L0) / b) / bandwidth` to its
        threshold's gradient, and `theta` times that to its logarithm's.
        """
        dictionary = self.dictionary
        threshold, bandwidth = dictionary.threshold, dictionary.bandwidth
        with torch.enable_grad():
            count = l0.clone().requires_grad_()
            penalty = sparsity * sparsity_penalty(dictionary.config, count)
            (slope,) = torch.autograd.grad(penalty, count)
        own = threshold[near.latents]
        within = (near.values - own).abs() < bandwidth / 2
        moved = (own * pull + slope * share) * within * (-own / bandwidth)
        self.to_log_threshold.index_add_(0, near.latents, moved)
        return penalty.detach()

    def adopt(self) -> None:
        """Take the gradients that autograd left in the parameters."""
        dictionary = self.dictionary
        self.to_atoms.copy_(dictionary.atoms.grad)
        self.to_encoder.copy_(dictionary.W_enc.grad.T)

    def _prefixes(self) -> tuple[Tensor, Tensor]:
        """Latents in each reconstruction, and its weight; the last is that of all."""
        dictionary = self.dictionary
        if not isinstance(dictionary, MatryoshkaDictionary):
            return torch.tensor([dictionary.n_latents]), torch.ones(1)
        widths = torch.tensor(dictionary.widths_now)
        weights = torch.ones(len(widths))
        if dictionary.config.weights is not None:
            weights[:-1] = torch.tensor(dictionary.config.weights)
        return widths, weights

    def _decode(self, x: Tensor, slots: Slots, groups: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of each token's groups, pull of each slot, and mean squared error of each prefix."""
        b, n_prefixes = len(x), len(scales)
        starts = torch.zeros(b + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(slots.tokens, minlength=b).cumsum(dim=0)
        g, pull = self.room.take("g", b * n_prefixes, x.shape[1]), torch.empty_like(slots.values)
        squares = x.new_empty(b, n_prefixes)
        atoms, b_dec = self.dictionary.atoms.detach(), self.dictionary.b_dec.detach()
        given = (starts, groups, slots.latents, slots.values, x, atoms, b_dec, scales)
        spread(b, kernels.decode_and_pull, *given, g, pull, squares)
        return g, pull, squares.double().mean(dim=0).to(x.dtype)

    def _sum_by_latent(self, centred: Tensor, g: Tensor, slots: Slots, rows: Tensor, pull: Tensor, add: bool) -> None:
        order = torch.empty_like(slots.latents)
        kernels.sort_by_latent(slots.latents.numpy(), self.starts.numpy(), order.numpy())
        given = (self.starts, order, slots.tokens, rows, slots.values, pull, g, centred)
        sums = (self.to_atoms, self.to_encoder, self.to_offset)
        spread(len(self.along), kernels.gradients_by_latent, *given, *sums, add)

    def _revive(self, x: Tensor, residual: Tensor, dead: Tensor, share: float) -> Tensor:
        """The auxiliary loss on a copy of the dead part of the dictionary; adds its gradients."""
        dictionary, config = self.dictionary, self.dictionary.config
        latents = dead.nonzero()[:, 0]
        part: Any = SimpleNamespace(d_in=dictionary.d_in, b_dec=dictionary.b_dec.detach())
        part.atoms = dictionary.atoms.detach()[latents].requires_grad_()
        part.W_enc = self.screen.encoder[latents].T.requires_grad_()
        part.b_enc = dictionary.b_enc.detach()[latents].requires_grad_()
        with torch.enable_grad():
            all_dead = torch.ones_like(latents, dtype=torch.bool)
            loss: Tensor = config.aux * revival(part, x, residual, all_dead, config.k_aux)
            (loss * share).backward()  # type: ignore[no-untyped-call]
        self.to_atoms.index_add_(0, latents, part.atoms.grad)
        self.to_encoder.index_add_(0, latents, part.W_enc.grad.T)
        self.by_revival.index_add_(0, latents, part.b_enc.grad)
        return loss.detach()

    def _leave(self) -> None:
        """Hand the sums to the parameters."""
        dictionary = self.dictionary
        dictionary.atoms.grad = self.to_atoms
        dictionary.W_enc.grad = self.to_encoder.T
        dictionary.b_enc.grad = self.to_offset + self.by_revival
        dictionary.b_dec.grad = self.to_b_dec - torch.mv(dictionary.W_enc.detach(), self.to_offset)
        if isinstance(dictionary, JumpReLUDictionary):
            dictionary.log_threshold.grad = self.to_log_threshold.clone()

    @torch.no_grad()
    def gradient_norm(self) -> Float[Tensor, ""]:
        """Norm of all gradients together, the atoms' without their components along the atoms."""
        dictionary = self.dictionary
        given = (dictionary.atoms.detach(), self.to_atoms, self.to_encoder)
        spread(len(self.along), kernels.tangent_and_norms, *given, self.along, self.squares)
        rest = sum(vector.grad.double().square().sum() for vector in self._vectors())
        norm: Tensor = (self.squares.sum() + rest).sqrt()
        return norm.float()

    @torch.no_grad()
    def move(self, optimizer: torch.optim.Adam, shrink: float) -> None:
        """One step of Adam with the learning rate of the optimiser's group; atoms stay of norm 1.

        Args:
            optimizer: Keeps the averages; steps the offsets itself.
            shrink: Factor of the gradients that their clipping asks for.
        """
        dictionary = self.dictionary
        for vector in self._vectors():
            vector.grad *= shrink
        dictionary.atoms.grad = dictionary.W_enc.grad = None
        optimizer.step()
        group = optimizer.param_groups[0]
        (beta1, beta2), rate = group["betas"], group["lr"]
        averages = [_averages(optimizer, weight) for weight in (dictionary.atoms, dictionary.W_enc)]
        step = float(optimizer.state[dictionary.atoms]["step"])
        scalars = (shrink, rate / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** -0.5, group["eps"])
        m, screen = dictionary.n_latents, self.screen
        atoms = (dictionary.atoms.detach(), self.to_atoms, self.along)
        spread(m, kernels.adam_on_the_sphere, *atoms, *averages[0], *scalars)
        encoder = (screen.encoder, self.to_encoder, *(average.T for average in averages[1]))
        copies = (screen.rounded.view(torch.int16), screen.errors, screen.norms)
        spread(m, kernels.adam_and_round, *encoder, *scalars, *copies)

    def _vectors(self) -> list[Any]:
        """Parameters beside the two matrices that learn: torch steps them."""
        matrices = (self.dictionary.atoms, self.dictionary.W_enc)
        parameters = self.dictionary.parameters()
        return [p for p in parameters if p.grad is not None and all(p is not matrix for matrix in matrices)]


def _averages(optimizer: torch.optim.Adam, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's averages of a weight, its count of steps one higher; zeros at first, laid out as the weight is."""
    state = optimizer.state[weight]
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    state["step"] += 1
    return state["exp_avg"], state["exp_avg_sq"]
