"""The rule of dictionaries without an encoder: code the batch, move the atoms, revive the silent ones."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import refit
from sparsight.dictionaries import PursuitDictionary
from sparsight.training.adam import AdamRule
from sparsight.training.objectives import Objective
from sparsight.training.pursuit_updates import (
    co_activations,
    cross_moments,
    ksvd_update,
    mod_update,
    online_update,
    stop_gradient_loss,
    unit_norm,
    worst_reconstructed,
)
from sparsight.training.settings import Training

# Times at which atoms are renewed, evenly spaced over the part of training in which they are.
RENEWALS, RENEWING = 20, 0.85
# Of the mean co-activation of a latent with itself. Holds atoms that the codes leave undetermined near where they were.
RIDGE = 1e-3


@runtime_checkable
class Update(Protocol):
    """One way of moving the atoms, with what it remembers of past batches."""

    def move(self, code: SparseCode, x: Float[Tensor, "b d"], keep: float, lr: float) -> SparseCode:
        """Move the atoms and return the code over the new ones.

        Args:
            code: Code of `x` over the present atoms.
            x: Activations less the offset.
            keep: How much of its former weight the past keeps.
            lr: Learning rate, for those that have one.
        """

    def forget(self, latents: Bool[Tensor, " m"]) -> None:
        """Drop what is remembered of latents that start anew."""

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""


class NormalEquations:
    """`mod` and `online`: running `F^T F` and `F^T X`, float64. Memory `8 m (m + d)` bytes."""

    def __init__(self, name: str, dictionary: PursuitDictionary, training: Training) -> None:
        self.atoms = dictionary.atoms
        self.solve = dictionary.config.update == "mod"
        m, d = self.atoms.shape
        self.gram = self.atoms.new_zeros(m, m, dtype=torch.float64, requires_grad=False)
        self.cross = self.atoms.new_zeros(m, d, dtype=torch.float64, requires_grad=False)

    def move(self, code: SparseCode, x: Float[Tensor, "b d"], keep: float, lr: float) -> SparseCode:
        self.gram.mul_(keep).add_(co_activations(code))
        self.cross.mul_(keep).add_(cross_moments(code, x))
        if self.solve:
            moved = mod_update(self.gram, self.cross, self.atoms, ridge=RIDGE)
        else:
            moved = online_update(self.gram, self.cross, self.atoms)
        unit, norms = unit_norm(moved, self.atoms.double())
        # Had the past been coded with the new atoms of norm 1, its values would have been these.
        self.gram.mul_(norms).mul_(norms.unsqueeze(1))
        self.cross.mul_(norms.unsqueeze(1))
        self.atoms.copy_(unit)
        return SparseCode(code.indices, code.values * norms.to(x.dtype)[code.indices], code.n_latents)

    def forget(self, latents: Bool[Tensor, " m"]) -> None:
        self.gram[latents] = 0
        self.gram[:, latents] = 0
        self.cross[latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        return {"gram": self.gram, "cross": self.cross}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.gram.copy_(tensors["gram"])
        self.cross.copy_(tensors["cross"])


class KSVD:
    """`ksvd`: one latent at a time; the past holds each atom by its running sum of squared values."""

    def __init__(self, name: str, dictionary: PursuitDictionary, training: Training) -> None:
        self.atoms = dictionary.atoms
        self.inertia = torch.zeros(len(self.atoms), dtype=torch.float64, device=self.atoms.device)

    def move(self, code: SparseCode, x: Float[Tensor, "b d"], keep: float, lr: float) -> SparseCode:
        self.inertia.mul_(keep)
        moved, atoms = ksvd_update(code, x, self.atoms, inertia=self.inertia.to(x.dtype))
        self.inertia.index_add_(0, moved.indices.flatten(), moved.values.double().square().flatten())
        self.atoms.copy_(atoms)
        return moved

    def forget(self, latents: Bool[Tensor, " m"]) -> None:
        self.inertia[latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        return {"inertia": self.inertia}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.inertia.copy_(tensors["inertia"])


class GradientStep:
    """`gradient`: a step of Adam down the squared error at constant codes."""

    def __init__(self, name: str, dictionary: PursuitDictionary, training: Training) -> None:
        self.atoms = dictionary.atoms
        self.adam = AdamRule(name, dictionary, training)

    def move(self, code: SparseCode, x: Float[Tensor, "b d"], keep: float, lr: float) -> SparseCode:
        with torch.enable_grad():
            self.adam.descend(stop_gradient_loss(code, x, self.atoms), lr)
        return code

    def forget(self, latents: Bool[Tensor, " m"]) -> None:
        for key, average in self.adam.optimizer.state.get(self.atoms, {}).items():
            if key != "step":
                average[latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        return self.adam.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.adam.restore(tensors)


_UPDATES: dict[str, Callable[[str, PursuitDictionary, Training], Update]] = {
    "mod": NormalEquations,
    "online": NormalEquations,
    "ksvd": KSVD,
    "gradient": GradientStep,
}


class PursuitRule:
    """Codes by pursuit, constant while the atoms move.

    Codes that do not solve least squares are refitted on their support first: only then is the derivative at constant
    codes that of the loss (envelope theorem). When `t` batches have come, the past keeps `(1 - 1/t)^forgetting` of its
    weight, a window of about `t / (forgetting + 1)` batches; the offset follows the mean residual over the same window.

    Alternating codes and atoms settles where one atom stands for two directions while two share a third. So from time
    to time the atoms that reconstruct least (their values squared, summed since the last time) start anew from what the
    batch's worst reconstructions lack: `renewal` of all atoms at first, falling linearly to none.
    """

    def __init__(self, name: str, dictionary: PursuitDictionary, training: Training) -> None:
        self.dictionary = dictionary
        self.update = _UPDATES[dictionary.config.update](name, dictionary, training)
        self.steps = torch.zeros((), dtype=torch.int64)
        self.energy = torch.zeros(dictionary.n_latents, dtype=torch.float64, device=dictionary.atoms.device)
        self.renewing = RENEWING * training.n_steps

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], lr: float, sparsity: float
    ) -> Objective:
        """One update. `sparsity` is not used: `k` is no penalty. Latents that start anew count as fired."""
        dictionary = self.dictionary
        code = dictionary.encode(x)
        residual = x - dictionary.decode(code)
        error = residual.square().sum(dim=1).mean()
        fired = torch.zeros_like(dead)
        fired[code.indices[code.values > 0]] = True
        l0 = code.l0().to(x.dtype).mean()
        centred = x - dictionary.b_dec
        if not dictionary.fits_least_squares:
            code = refit(centred, dictionary.atoms, code.support())
        self.steps += 1
        t, forgetting = int(self.steps), float(dictionary.config.forgetting)
        code = self.update.move(code, centred, (1 - 1 / t) ** forgetting, lr)
        left = (centred - code.decode(dictionary.atoms)).mean(dim=0)
        dictionary.b_dec.add_(left, alpha=(forgetting + 1) / (forgetting + t))
        self.energy.index_add_(0, code.indices.flatten(), code.values.double().square().flatten())
        fired |= self._start_anew(residual, (dead & ~fired) | self._least_used(t))
        return Objective(error, {"reconstruction": error}, l0, fired)

    def _least_used(self, t: int) -> Bool[Tensor, " m"]:
        """The atoms to renew after batch `t`: none but at twenty times, and fewer at each."""
        chosen = torch.zeros_like(self.energy, dtype=torch.bool)
        past = [int(batches * RENEWALS / self.renewing) for batches in (t - 1, t)]
        if past[0] == past[1] or t >= self.renewing:
            return chosen
        count = int(self.dictionary.config.renewal * len(chosen) * (1 - t / self.renewing))
        chosen[self.energy.argsort(stable=True)[:count]] = True
        self.energy.zero_()
        return chosen

    def _start_anew(self, residual: Float[Tensor, "b d_in"], latents: Bool[Tensor, " m"]) -> Bool[Tensor, " m"]:
        """Give latents the directions that the batch's worst reconstructions lack; say which got one."""
        renewed = torch.zeros_like(latents)
        if bool(latents.any()):
            directions = worst_reconstructed(residual, int(latents.sum()))
            numbers = latents.nonzero()[: len(directions), 0]
            self.dictionary.atoms[numbers] = directions
            renewed[numbers] = True
            self.update.forget(renewed)
        return renewed

    def tensors(self) -> dict[str, Tensor]:
        return {"steps": self.steps, "energy": self.energy, **self.update.tensors()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.steps.copy_(tensors["steps"])
        self.energy.copy_(tensors["energy"])
        self.update.restore(tensors)
