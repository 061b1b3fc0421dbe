"""One sparse step: selection, gradients of active latents only, and Adam in one pass over each weight."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, MatryoshkaDictionary
from sparsight.dictionaries.selection import Slots
from sparsight.training.compiled.activation import Batch, activation_of
from sparsight.training.compiled.room import Room
from sparsight.training.compiled.scalars import AdamScalars
from sparsight.training.compiled.threads import all_for_torch, one_for_torch
from sparsight.training.objectives import Objective
from sparsight.training.objectives.terms import objective_of, revival

if TYPE_CHECKING:
    from sparsight.training.compiled.cpu import CpuLoops
    from sparsight.training.compiled.cuda import CudaLoops


class CompiledStep:
    """Gradients of the objective, and the step that follows, without anything of size `[b, n_latents]`.

    Nor is there a gradient for each latent: only of those that are active in the batch, or dead and to be revived. The
    encoder's parameter keeps its shape `[d_in, n_latents]`, but lies in memory latent by latent.

    Args:
        dictionary: In training, in float32.
        loops: Of its device: `CpuLoops` or `CudaLoops`.
    """

    def __init__(self, dictionary: AbstractDictionary, loops: "type[CpuLoops] | type[CudaLoops]") -> None:
        self.dictionary: Any = dictionary
        parameter: Any = dictionary.W_enc
        parameter.data = parameter.data.T.contiguous().T
        self.encoder: Tensor = parameter.detach().T
        self.loops = loops(self.encoder)
        self.activation = activation_of(dictionary, self.loops)
        self.room = Room(self.encoder.device)
        self.starts = torch.zeros(dictionary.n_latents + 1, dtype=torch.int64, device=self.encoder.device)
        self.sums = _Sums.of(self.starts[:0], self.room, dictionary)

    @one_for_torch()
    @torch.no_grad()
    def gradients(self, x: Float[Tensor, "b d"], dead: Bool[Tensor, " m"], sparsity: float) -> Objective | None:
        """The objective of a batch. Its gradients are kept for the step; see `dense_gradients`.

        Args:
            sparsity: Share of its full weight that a penalty has now.
        Returns:
            None where so many latents are active that a dense step is faster.
        """
        config, b = self.dictionary.config, len(x)
        centred = torch.sub(x, self.dictionary.b_dec, out=self.room.take("centred", *x.shape))
        near = self.activation.slots(centred)
        if near is None:
            return None
        values, active = self.activation.values(near)
        slots = replace(near, values=values)
        widths, weights = self._prefixes()
        one = len(widths) == 1
        rows = slots.tokens
        if not one:
            rows = rows * len(widths) + torch.searchsorted(widths, slots.latents, right=True)
        g, pull, errors = self._decode(x, slots, rows, weights * (2 / b))

        def aside(others: Tensor, weight: float) -> tuple[Tensor, Tensor]:
            _, drawn, squares = self._decode(x, replace(near, values=others), rows, weights * (2 * weight / b), "aside")
            return drawn, weight * squares[-1]

        batch = Batch(near, active, pull, b, sparsity, aside)
        pull, terms = self.activation.back(batch)
        terms["reconstruction"] = errors[-1]
        revived = dead if config.aux > 0 and bool(dead.any()) else None
        self._sum_by_latent(centred, g, slots, rows, pull, revived)
        if not one:
            terms["prefixes"] = (weights[:-1] * errors[:-1]).sum()
        whole = g.view(b, len(widths), -1)
        to_b_dec, dictionary = whole[:, 0].sum(dim=0), self.dictionary
        dictionary.b_dec.grad = to_b_dec - torch.mv(dictionary.W_enc.detach(), self.sums.to_offset)
        self.activation.leave_offset(self.sums.to_offset)
        if revived is not None:
            terms["auxiliary"] = self._revive(x, whole[:, -1] * (-b / 2), revived)
        fired = torch.zeros_like(dead)
        fired[slots.latents[active]] = True
        return objective_of(terms, batch.l0, fired)

    def adopt(self) -> None:
        """Take over the gradients that autograd left in the parameters."""
        dictionary = self.dictionary
        self.sums = _Sums.of(torch.arange(dictionary.n_latents), self.room, dictionary)
        self.sums.to_atoms.copy_(dictionary.atoms.grad)
        self.sums.to_encoder.copy_(dictionary.W_enc.grad.T)

    def dense_gradients(self) -> dict[str, Tensor]:
        """The gradients of all parameters, in their shapes."""
        sums, dictionary = self.sums, self.dictionary
        found = {name: p.grad.clone() for name, p in dictionary.named_parameters() if p.grad is not None}
        found["atoms"] = torch.zeros_like(dictionary.atoms).index_copy_(0, sums.latents, sums.to_atoms)
        found["W_enc"] = torch.zeros_like(dictionary.W_enc).index_copy_(1, sums.latents, sums.to_encoder.T)
        return found

    def _prefixes(self) -> tuple[Tensor, Tensor]:
        """Latents in each reconstruction, and its weight; the last is that of all."""
        dictionary = self.dictionary
        if not isinstance(dictionary, MatryoshkaDictionary):
            return self.starts.new_tensor([dictionary.n_latents]), self.encoder.new_ones(1)
        widths = self.starts.new_tensor(dictionary.widths_now)
        weights = self.encoder.new_ones(len(widths))
        if dictionary.config.weights is not None:
            weights[:-1] = weights.new_tensor(dictionary.config.weights)
        return widths, weights

    def _decode(
        self, x: Tensor, slots: Slots, rows: Tensor, scales: Tensor, name: str = "g"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient in each row (of a token and a prefix), pull of each slot, and mean squared error of each prefix."""
        b, n_prefixes = len(x), len(scales)
        bounds = self.starts.new_zeros(b * n_prefixes + 1)
        bounds[1:] = torch.bincount(rows, minlength=b * n_prefixes).cumsum(dim=0)
        g, pull = self.room.take(name, b * n_prefixes, x.shape[1]), torch.empty_like(slots.values)
        squares = x.new_empty(b, n_prefixes)
        atoms, b_dec = self.dictionary.atoms.detach(), self.dictionary.b_dec.detach()
        self.loops.decode_and_pull(x, bounds, slots.latents, slots.values, atoms, b_dec, scales, g, pull, squares)
        return g, pull, squares.double().mean(dim=0).to(x.dtype)

    def _sum_by_latent(
        self, centred: Tensor, g: Tensor, slots: Slots, rows: Tensor, pull: Tensor, revived: Tensor | None
    ) -> None:
        order = self.loops.sort_by_latent(slots.latents, self.starts)
        held = self.starts.diff() > 0
        if revived is not None:
            held |= revived
        self.sums = sums = _Sums.of(held.nonzero()[:, 0], self.room, self.dictionary)
        given = (sums.latents, self.starts, order, slots.tokens, rows, slots.values, pull, g, centred)
        self.loops.gradients_by_latent(*given, sums.to_atoms, sums.to_encoder, sums.to_offset)

    def _revive(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """The auxiliary loss on a copy of the dead part of the dictionary; adds its gradients."""
        dictionary, config, sums = self.dictionary, self.dictionary.config, self.sums
        latents = dead.nonzero()[:, 0]
        part: Any = SimpleNamespace(d_in=dictionary.d_in, b_dec=dictionary.b_dec.detach())
        part.atoms = dictionary.atoms.detach()[latents].requires_grad_()
        part.W_enc = self.encoder[latents].T.requires_grad_()
        offset = self.activation.offset
        part.b_enc = offset.detach()[latents].requires_grad_()
        with all_for_torch(), torch.enable_grad():
            all_dead = torch.ones_like(latents, dtype=torch.bool)
            loss: Tensor = config.aux * revival(part, x, residual, all_dead, config.k_aux)
            loss.backward()  # type: ignore[no-untyped-call]
        rows = sums.position[latents].long()
        sums.to_atoms.index_add_(0, rows, part.atoms.grad)
        sums.to_encoder.index_add_(0, rows, part.W_enc.grad.T)
        assert offset.grad is not None
        offset.grad.index_add_(0, latents, part.b_enc.grad)
        return loss.detach()

    @one_for_torch()
    @torch.no_grad()
    def gradient_norm(self) -> Float[Tensor, ""]:
        """Norm of all gradients together, the atoms' without their components along the atoms."""
        sums, atoms = self.sums, self.dictionary.atoms.detach()
        squares = torch.zeros_like(sums.along, dtype=torch.float64)
        self.loops.tangent_and_norms(sums.latents, atoms, sums.to_atoms, sums.to_encoder, sums.along, squares)
        rest = sum(vector.grad.double().square().sum() for vector in self._vectors())
        norm: Tensor = (squares.sum() + rest).sqrt()
        return norm.float()

    @one_for_torch()
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
        of_atoms, of_encoder = (_averages(optimizer, weight) for weight in (dictionary.atoms, dictionary.W_enc))
        step = float(optimizer.state[dictionary.atoms]["step"])
        shares = (rate / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** -0.5, group["eps"])
        scalars, sums = AdamScalars(shrink, *shares), self.sums
        self.loops.move_atoms(dictionary.atoms.detach(), sums.position, sums.to_atoms, sums.along, of_atoms, scalars)
        mean, square = of_encoder
        self.loops.move_encoder(self.encoder, sums.position, sums.to_encoder, (mean.T, square.T), scalars)

    def _vectors(self) -> list[Any]:
        """Parameters beside the two matrices that learn: torch steps them."""
        matrices = (self.dictionary.atoms, self.dictionary.W_enc)
        parameters = self.dictionary.parameters()
        return [p for p in parameters if p.grad is not None and all(p is not matrix for matrix in matrices)]


@dataclass(frozen=True)
class _Sums:
    """Gradients of the latents that have any.

    Attributes:
        latents: Which, ascending.
        position: Row of each latent in the next three, -1 for others.
        to_atoms, to_encoder: One row for each of `latents`.
        along: The component of its atom's gradient along the atom.
        to_offset: For all latents.
    """

    latents: Int64[Tensor, " r"]
    position: Int32[Tensor, " m"]
    to_atoms: Float[Tensor, "r d"]
    to_encoder: Float[Tensor, "r d"]
    along: Float[Tensor, " r"]
    to_offset: Float[Tensor, " m"]

    @classmethod
    def of(cls, latents: Tensor, room: Room, dictionary: AbstractDictionary) -> "_Sums":
        """Room for the sums of these latents; what it holds is left over, but for `to_offset`: 0."""
        n, (m, d) = len(latents), dictionary.atoms.shape
        position = room.take("position", m, dtype=torch.int32).fill_(-1)
        position[latents] = torch.arange(n, dtype=torch.int32, device=latents.device)
        to_atoms, to_encoder = room.take("to_atoms", n, d), room.take("to_encoder", n, d)
        return cls(latents, position, to_atoms, to_encoder, room.take("along", n), to_atoms.new_zeros(m))


def _averages(optimizer: torch.optim.Adam, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's averages of a weight, its count of steps one higher; zeros at first, laid out as the weight is."""
    state = optimizer.state[weight]
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    state["step"] += 1
    return state["exp_avg"], state["exp_avg_sq"]
