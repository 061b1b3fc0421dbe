"""One sparse step: selection, gradients of active latents only, and Adam in one pass over each weight."""

from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, MatryoshkaDictionary
from sparsight.dictionaries.selection import Slots
from sparsight.training.averages import Adam
from sparsight.training.compiled.activation import Batch, activation_of
from sparsight.training.compiled.outcome import More, Outcome, Slopes
from sparsight.training.compiled.recorded import Recorded
from sparsight.training.compiled.revival import revival_by_slots
from sparsight.training.compiled.room import Room
from sparsight.training.compiled.terms import KEPT_FROM, Terms
from sparsight.training.compiled.threads import one_for_torch
from sparsight.training.objectives import Objective
from sparsight.training.objectives.terms import objective_of

if TYPE_CHECKING:
    from sparsight.training.compiled.cpu import CpuLoops
    from sparsight.training.compiled.cuda import CudaLoops


class CompiledStep:
    """Gradients of the objective, and the step that follows, without anything of size `[b, n_latents]`.

    Nor are gradients of the matrices kept where latents are active rarely: they are added up twice, for their norm and
    where they move a row. The encoder's parameter keeps its shape `[d_in, n_latents]`, but lies in memory latent by
    latent.

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
        self.prefixes: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None
        self.recorded: Recorded[Outcome] | None = None
        self.recorded_move: Recorded[None] | None = None
        if self.loops.record is not None:
            # By the first recorded gradients the move has been done as often.
            self.recorded, self.recorded_move = Recorded(self.loops.record), Recorded(self.loops.record, warm=0)
        self.slopes: Slopes
        self.norm: Tensor
        self.key: Hashable = None  # of the recording that the gradients come from

    def written(self) -> None:
        """Something else than a step wrote into parameters or averages, or exchanged them."""
        self.loops.written()
        for recorded in (self.recorded, self.recorded_move):
            if recorded is not None:
                recorded.forget()

    @one_for_torch()
    @torch.no_grad()
    def gradients(self, x: Float[Tensor, "b d"], dead: Bool[Tensor, " m"], sparsity: float) -> Objective | None:
        """The objective of a batch. Its gradients are kept for the step; see `dense_gradients`.

        Args:
            sparsity: Share of its full weight that a penalty has now.
        Returns:
            None where so many latents are active that a dense step is faster.
        """
        centred = torch.sub(x, self.dictionary.b_dec, out=self.room.take("centred", *x.shape))
        near = self.activation.slots(centred)
        if near is None:
            return None
        prefixes = self._prefixes()
        if self.dictionary.config.aux > 0 and bool(dead.any()):
            return self._leave(self._of_batch(x, centred, near, prefixes, sparsity, dead))
        if self.recorded is None or not self.activation.same_every_step:
            return self._leave(self._of_batch(x, centred, near, prefixes, sparsity))
        given = {"x": x, "widths": prefixes[0], "weights": prefixes[1]}
        given |= {"tokens": near.tokens, "latents": near.latents, "values": near.values}
        held = {name: self.room.copy(name, tensor) for name, tensor in given.items()}
        x, prefixes = held["x"], (held["widths"], held["weights"])
        near = Slots(held["tokens"], held["latents"], held["values"], near.n_tokens)
        key = tuple((tensor.data_ptr(), *tensor.shape) for tensor in (centred, *held.values()))
        found, again = self.recorded(key, lambda: self._of_batch(x, centred, near, prefixes, sparsity))
        return self._leave(found, key if again else None)

    def _leave(self, found: Outcome, key: Hashable = None) -> Objective:
        """Put gradients where the step and everybody else look for them."""
        for parameter, gradient in found.vectors:
            parameter.grad = gradient
        self.slopes, self.norm, self.key = found.slopes, found.norm, key
        numbers, fired = found.numbers, found.fired
        if key is not None:
            numbers, fired = numbers.clone(), fired.clone()
        return objective_of(dict(zip(found.names, numbers[:-1], strict=True)), numbers[-1], fired)

    def _of_batch(
        self,
        x: Tensor,
        centred: Tensor,
        near: Slots,
        prefixes: tuple[Tensor, Tensor],
        sparsity: float,
        dead: Tensor | None = None,
    ) -> Outcome:
        """All that follows from the slots; without dead latents nothing here waits for the device.

        Args:
            dead: What to revive.
        """
        b, (widths, weights) = len(x), prefixes
        values, active = self.activation.values(near)
        slots = replace(near, values=values)
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
        if not one:
            terms["prefixes"] = (weights[:-1] * errors[:-1]).sum()
        whole, more = g.view(b, len(widths), -1), self._more()
        if dead is not None:
            terms["auxiliary"], more = self._revive(centred, whole[:, -1] * (-b / 2), dead)
        order = self.loops.sort_by_latent(slots.latents, self.starts)
        of_atoms = Terms(self.starts, order, rows, slots.values, g, more.rows, more.to_atoms)
        of_encoder = Terms(self.starts, order, slots.tokens, pull, centred, more.rows, more.to_encoder)
        slopes = self._measure(of_atoms, of_encoder)
        dictionary: Any = self.dictionary
        dictionary.b_dec.grad = whole[:, 0].sum(dim=0) - torch.mv(dictionary.W_enc.detach(), slopes.to_offset)
        self.activation.leave_offset(slopes.to_offset)
        offset: Any = self.activation.offset
        offset.grad.index_add_(0, more.latents, more.to_offset)
        # How many active slots there are before each one, in the order of latents.
        before = torch.cat([self.starts[:1], active[order].cumsum(dim=0)])
        fired = before[self.starts[1:]] > before[self.starts[:-1]]
        vectors = [(parameter, parameter.grad) for parameter in self._vectors()]
        numbers = torch.stack([*terms.values(), batch.l0])
        return Outcome(tuple(terms), numbers, fired, slopes, vectors, self._norm(slopes))

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over the gradients that autograd left in the parameters."""
        dictionary = self.dictionary
        to_atoms, to_encoder = dictionary.atoms.grad, dictionary.W_enc.grad.T.contiguous()
        self.slopes, self.key = self._measure(self._kept(to_atoms), self._kept(to_encoder)), None
        self.norm = self._norm(self.slopes)

    def dense_gradients(self) -> dict[str, Tensor]:
        """The gradients of all parameters, in their shapes."""
        found = {name: p.grad.clone() for name, p in self.dictionary.named_parameters() if p.grad is not None}
        found["atoms"] = self.loops.slopes(self.slopes.of_atoms, torch.empty_like(self.encoder))
        found["W_enc"] = self.loops.slopes(self.slopes.of_encoder, torch.empty_like(self.encoder)).T
        return found

    def _prefixes(self) -> tuple[Tensor, Tensor]:
        """Latents in each reconstruction, and its weight; the last is that of all."""
        dictionary = self.dictionary
        one = not isinstance(dictionary, MatryoshkaDictionary)
        widths = (dictionary.n_latents,) if one else tuple(dictionary.widths_now)
        if self.prefixes is None or self.prefixes[0] != widths:
            weights = self.encoder.new_ones(len(widths))
            if not one and dictionary.config.weights is not None:
                weights[:-1] = weights.new_tensor(dictionary.config.weights)
            self.prefixes = widths, (self.starts.new_tensor(widths), weights)
        return self.prefixes[1]

    def _decode(
        self, x: Tensor, slots: Slots, rows: Tensor, scales: Tensor, name: str = "g"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient in each row (of a token and a prefix), pull of each slot, and mean squared error of each prefix."""
        b, n_prefixes = len(x), len(scales)
        bounds = torch.searchsorted(rows, torch.arange(b * n_prefixes + 1, device=rows.device))
        g, pull = self.room.take(name, b * n_prefixes, x.shape[1]), torch.empty_like(slots.values)
        squares = x.new_empty(b, n_prefixes)
        atoms, b_dec = self.dictionary.atoms.detach(), self.dictionary.b_dec.detach()
        self.loops.decode_and_pull(x, bounds, slots.latents, slots.values, atoms, b_dec, scales, g, pull, squares)
        return g, pull, squares.double().mean(dim=0).to(x.dtype)

    def _more(self, latents: Tensor | None = None, *gradients: Tensor) -> More:
        """Gradients from elsewhere of these latents: of their atoms, encoder rows and offsets; of none by default."""
        if latents is None:
            latents, gradients = self.starts[:0], (self.encoder[:0], self.encoder[:0], self.encoder.new_empty(0))
        rows = self.room.take("rows", self.dictionary.n_latents, dtype=torch.int32).fill_(-1)
        rows[latents] = torch.arange(len(latents), dtype=torch.int32, device=latents.device)
        return More(latents, rows, *gradients)

    def _measure(self, of_atoms: Terms, of_encoder: Terms) -> Slopes:
        """Find what has to be known of all gradients before any row moves; keep the rows if that is faster."""
        atoms, m = self.dictionary.atoms.detach(), self.dictionary.n_latents
        along, squares, to_offset = atoms.new_empty(m), atoms.new_empty(m, dtype=torch.float64), atoms.new_empty(m)
        slots = (of_encoder.starts, of_encoder.order, of_encoder.weights)
        if len(of_atoms.order) > KEPT_FROM * m:
            of_atoms = self._kept(self.loops.slopes(of_atoms, self.room.take("to_atoms", *atoms.shape)))
            of_encoder = self._kept(self.loops.slopes(of_encoder, self.room.take("to_encoder", *atoms.shape)))
        self.loops.measure(atoms, of_atoms, of_encoder, *slots, along, squares, to_offset)
        return Slopes(of_atoms, of_encoder, along, squares, to_offset)

    def _kept(self, rows: Float[Tensor, "m d"]) -> Terms:
        """Gradients that are known: one row for every latent."""
        latents = torch.arange(len(rows), device=rows.device)
        no_slots = (torch.zeros_like(self.starts), latents[:0], latents[:0], rows.new_empty(0), rows[:0])
        return Terms(*no_slots, latents.int(), rows)

    def _revive(self, centred: Tensor, residual: Tensor, dead: Tensor) -> tuple[Tensor, More]:
        """The auxiliary loss and its gradients."""
        latents, config = dead.nonzero()[:, 0], self.dictionary.config
        encoder, offset = self.encoder[latents], self.activation.offset.detach()[latents]
        given = (encoder, offset, self.dictionary.atoms.detach()[latents], residual)
        loss, *found = revival_by_slots(self.loops, centred, *given, float(config.aux), config.k_aux)
        return loss, self._more(latents, *found)

    def gradient_norm(self) -> Float[Tensor, ""]:
        """Norm of all gradients together, the atoms' without their components along the atoms."""
        return self.norm

    def _norm(self, slopes: Slopes) -> Tensor:
        rest = sum(vector.grad.double().square().sum() for vector in self._vectors())
        norm: Tensor = (slopes.squares.sum() + rest).sqrt()
        return norm.float()

    @one_for_torch()
    @torch.no_grad()
    def move(self, adam: Adam, lr: float, shrink: float) -> None:
        """One step of Adam; atoms stay of norm 1.

        Args:
            adam: Keeps the averages; steps the offsets itself.
            lr: Learning rate.
            shrink: Factor of the gradients that their clipping asks for.
        """
        self.dictionary.atoms.grad = self.dictionary.W_enc.grad = None
        slopes, given = self.slopes, self.loops.held(lr, shrink)
        if self.key is None:
            self._move(adam, slopes, *given)
        else:
            assert self.recorded_move is not None
            self.recorded_move(self.key, lambda: self._move(adam, slopes, *given))
        del self.slopes

    def _move(self, adam: Adam, slopes: Slopes, lr: float | Tensor, shrink: float | Tensor) -> None:
        dictionary = self.dictionary
        for vector in self._vectors():
            vector.grad *= shrink
        adam.step(lr)
        of_atoms, of_encoder = adam.averages(dictionary.atoms), adam.averages(dictionary.W_enc)
        for averages in (of_atoms, of_encoder):
            averages["step"] += 1
        loops: Any = self.loops  # each kind has numbers of its own for Adam
        scalars = loops.scalars(of_atoms["step"], lr, shrink, adam.betas, adam.eps)
        mean, square = of_atoms["exp_avg"], of_atoms["exp_avg_sq"]
        loops.move_atoms(dictionary.atoms.detach(), slopes.of_atoms, slopes.along, (mean, square), scalars)
        mean, square = of_encoder["exp_avg"], of_encoder["exp_avg_sq"]
        loops.move_encoder(self.encoder, slopes.of_encoder, (mean.T, square.T), scalars)

    def _vectors(self) -> list[Any]:
        """Parameters beside the two matrices that learn: torch steps them."""
        matrices = (self.dictionary.atoms, self.dictionary.W_enc)
        parameters = self.dictionary.parameters()
        return [p for p in parameters if p.grad is not None and all(p is not matrix for matrix in matrices)]
