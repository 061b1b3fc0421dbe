"""The rule of dictionaries that have a differentiable objective: Adam along the sphere."""

from contextlib import ExitStack
from dataclasses import replace
from math import isfinite

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.dictionaries import AbstractDictionary, TopKDictionary
from sparsight.errors import TrainingError
from sparsight.training.averages import Adam, Group
from sparsight.training.compiled.choice import compiled_step
from sparsight.training.objectives import OBJECTIVES, Objective
from sparsight.training.parallel.latents import clip_sharded_, sharded_topk_objective
from sparsight.training.parallel.processes import Processes, current_processes, shared_batch
from sparsight.training.resampling import forget_, resample_
from sparsight.training.settings import Training
from sparsight.training.sparse_step import dense_codes
from sparsight.training.whole_batch import agree_on, whole_batch

# Which axis of a parameter counts latents.
_LATENT_AXIS = {
    "W_enc": 1,
    "W_mag": 1,
    **dict.fromkeys(("atoms", "b_enc", "b_gate", "b_mag", "r_mag", "log_norm", "log_threshold"), 0),
}


class AdamRule:
    """Steps of Adam down the architecture's objective; atoms keep their norm."""

    def __init__(
        self, name: str, dictionary: AbstractDictionary, training: Training, shards: Processes | None = None
    ) -> None:
        self.name = name
        self.dictionary = dictionary
        self.training = training
        self.shards = shards  # processes that hold the other latents
        self.processes = current_processes() if shards is None else Processes()  # those that share the batch
        # Adam's floor must stay below the root mean square gradient of rare latents, about 1e-7 at unit variance.
        self.optimizer = Adam(_groups(dictionary), training.betas, eps=1e-10)
        self.compiled = compiled_step(dictionary, training, current_processes().size)

    def step(
        self, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], lr: float, sparsity: float
    ) -> Objective:
        """One step down the objective of the batch, however it is cut into parts and among processes.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        self.optimizer.clear_gradients()
        resampled = self.training.revive == "resample"
        by_loss = torch.zeros_like(dead) if resampled else dead
        objective = self._gradients(self.processes.share(x), by_loss, sparsity)
        if self.processes.size > 1:
            self.processes.mean_([p.grad for p in self.dictionary.parameters() if p.grad is not None])
            # What an architecture keeps about batches (the running penalties of p-annealing) is a mean over rows too.
            self.processes.mean_([p.data for p in self.dictionary.parameters() if not p.requires_grad])
            objective = agree_on(objective, self.processes)
        self._move(objective.loss, lr)
        # Late in the decay of the rate there is no time left to learn from where they start.
        if resampled and lr >= self.training.lr / 2:
            silent = dead & ~objective.fired
            if bool(silent.any()):
                objective = replace(objective, fired=objective.fired | self._resample(x, silent))
        return objective

    def _resample(self, x: Tensor, silent: Tensor) -> Tensor:
        """Start silent latents anew, Adam's averages of them too; says which."""
        state = self.optimizer.state
        steps = int(state[self.dictionary.atoms]["step"])  # in the checkpoint: a resumed run draws the same
        generator = torch.Generator().manual_seed(mix_seed(self.training.seed, steps))
        latents, flags = resample_(self.dictionary, x, silent, generator)
        for name, parameter in self.dictionary.named_parameters():
            averages = state.get(parameter)
            if averages and name in _LATENT_AXIS:
                axis = _LATENT_AXIS[name]
                averages["exp_avg"].index_fill_(axis, latents, 0.0)
                forget_(averages["exp_avg_sq"], latents, ~silent, axis)
        self._written()
        return flags

    def _written(self) -> None:
        """Something else than a step wrote into the parameters."""
        if self.compiled is not None:
            self.compiled.written()

    def _gradients(self, x: Tensor, dead: Tensor, sparsity: float) -> Objective:
        """Add up the gradients of the parts of a batch; returns the objective of the whole."""
        parts: list[Objective] = []
        shares: list[float] = []
        for rows in torch.tensor_split(x, self.training.accumulate):
            share = len(rows) / len(x)
            with ExitStack() as stack:
                if self.processes.size > 1:
                    stack.enter_context(shared_batch())
                stack.enter_context(dense_codes(self.training.step == "dense"))
                if self.training.precision == "bf16":
                    stack.enter_context(torch.autocast(x.device.type, torch.bfloat16))
                objective = self._part(rows, dead, sparsity, share)
            parts.append(objective)
            shares.append(share)
        return whole_batch(parts, shares)

    def _part(self, x: Tensor, dead: Tensor, sparsity: float, share: float) -> Objective:
        """The objective of a part, `share` times its gradients added to those of the parts before."""
        found: Objective | None = None if self.compiled is None else self.compiled.gradients(x, dead, sparsity)
        if found is not None:
            return found
        objective = self._objective(x, dead, sparsity)
        (objective.loss * share).backward()  # type: ignore[no-untyped-call]
        if self.compiled is not None:
            self.compiled.adopt()
        return objective

    def _objective(self, x: Tensor, dead: Tensor, sparsity: float) -> Objective:
        if self.shards is None:
            return OBJECTIVES[type(self.dictionary)](self.dictionary, x, dead, sparsity)
        assert isinstance(self.dictionary, TopKDictionary)
        return sharded_topk_objective(self.dictionary, x, dead, self.shards)

    def descend(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step down any loss of the dictionary's parameters, the same on all processes.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        self.optimizer.clear_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        self._move(loss, lr)

    def _move(self, reached: Tensor, lr: float) -> None:
        """Step along the gradients that the parameters hold.

        The component of an atom's gradient along the atom can only change its norm, which is then put back to 1; left
        in, it would still fill Adam's averages.
        """
        length = self._project_and_clip() if self.compiled is None else self.compiled.gradient_norm()
        loss, norm = torch.stack([reached.detach().to(length.dtype), length]).tolist()  # a GPU is waited for once
        if not isfinite(loss + norm):
            raise TrainingError(
                f"{self.name}: the loss is {loss:g} with a gradient of norm {norm:g}; "
                f"lower lr={lr:g}, lengthen the warmup or set clip, and resume from the last checkpoint"
            )
        if self.compiled is not None:
            clip = self.training.clip
            self.compiled.move(self.optimizer, lr, 1.0 if clip is None else min(1.0, clip / (norm + 1e-6)))
            return
        self.optimizer.step(lr)
        self.dictionary.normalize_atoms_()

    @torch.no_grad()
    def _project_and_clip(self) -> Tensor:
        """Make the atoms' gradient tangent to the sphere, shorten the whole gradient to `clip`; returns its norm."""
        atoms = self.dictionary.atoms
        assert atoms.grad is not None
        atoms.grad.addcmul_(atoms, (atoms.grad * atoms).sum(dim=1, keepdim=True), value=-1)
        limit = float("inf") if self.training.clip is None else self.training.clip
        if self.shards is not None:
            return clip_sharded_(self.dictionary, limit, self.shards)
        return torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), limit)

    def tensors(self) -> dict[str, Tensor]:
        """Adam's averages, as `<parameter>/<average>`."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.dictionary.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""
        for name, parameter in self.dictionary.named_parameters():
            prefix = f"{name}/"
            held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if held:
                self.optimizer.state[parameter] = {key: _like(value, parameter) for key, value in held.items()}
        self._written()


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device, and laid out in memory as it is."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)


def _groups(dictionary: AbstractDictionary) -> list[Group]:
    """Thresholds move at their own rate, all else at the common one; what is not trained is left out."""
    named = {name: p for name, p in dictionary.named_parameters() if p.requires_grad}
    groups = [Group([p for name, p in named.items() if name != "log_threshold"])]
    if "log_threshold" in named:
        groups.append(Group([named["log_threshold"]], dictionary.config.threshold_rate))
    return groups
