"""Early warnings: settings that cannot work at the scale of the data, said while a run is still cheap to stop."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import JumpReLUDictionary
from sparsight.training.member import Member
from sparsight.training.objectives import Objective
from sparsight.training.settings import Training

# Steps whose batches are examined, where they are logged; an L0 out of reach is said at any time.
EARLY = 1000


def early_warnings(
    member: Member, x: Float[Tensor, "b d_in"], objective: Objective, training: Training, step: int
) -> list[str]:
    """What is wrong with a run, one sentence each: what was seen, and what to change.

    Args:
        member: After the step.
        x: The step's batch, normalised.
        objective: Of the batch, before the step.
        training: Settings of the run.
        step: Number of the step, from 1.
    """
    found = _unreachable(member)
    if step <= EARLY:
        found += _firing(member, objective) + _window(member, x) + _revival(member, training)
        found += _concentration(x) + _drift(x, max(1, len(member.dictionary.places)))
    return found


def _firing(member: Member, objective: Objective) -> list[str]:
    l0, n = float(objective.l0), member.dictionary.n_latents
    if l0 == 0:
        return ["no latent fired in a whole batch: thresholds or the sparsity penalty are too high; lower them"]
    if l0 > 0.9 * n and getattr(member.config, "k", None) is None:
        return [
            f"{l0:.0f} of {n} latents fire in every token: thresholds are below nearly all pre-activations; raise them"
        ]
    return []


@torch.no_grad()
def _window(member: Member, x: Tensor) -> list[str]:
    """Thresholds learn only from pre-activations within half a bandwidth of them."""
    dictionary = member.dictionary
    if not isinstance(dictionary, JumpReLUDictionary):
        return []
    rows = x[:256]
    pre = torch.addmm(dictionary.b_enc, rows - dictionary.b_dec, dictionary.W_enc)
    bandwidth = dictionary.bandwidth
    near = int(((pre - dictionary.threshold).abs() < bandwidth / 2).sum()) / len(rows) * len(x)
    if near >= 0.05 * dictionary.n_latents:
        return []
    return [
        f"about {near:.0f} pre-activations of a batch lie within bandwidth={bandwidth:g} of the thresholds of "
        f"{dictionary.n_latents} latents, so thresholds cannot learn; pre-activations have a standard deviation of "
        f"{float(pre.std()):.2g}, the mean threshold is {float(dictionary.threshold.mean()):.2g}: widen bandwidth or "
        "lower threshold"
    ]


def _revival(member: Member, training: Training) -> list[str]:
    """A clock that never rings, or that rings for everything; an auxiliary loss that is off or cannot be as asked."""
    config, found = member.config, []
    resampled = training.revive == "resample"
    if getattr(config, "aux", 0) <= 0 and not resampled:
        dead = float(member.dead.float().mean())
        if hasattr(config, "aux") and dead > 0.5:
            found.append(f"{dead:.0%} of the latents are dead and aux=0 revives none; set aux, e.g. to 1/32")
        return found
    if config.dead_after >= training.n_tokens:
        never = "none is resampled" if resampled else "the auxiliary loss never acts"
        remedy = 'or choose revive="aux" with aux=0' if resampled else "or set aux=0"
        found.append(
            f"dead_after={config.dead_after} tokens is not shorter than the run of {training.n_tokens}, so no latent "
            f"is ever counted dead and {never}; lower dead_after {remedy}"
        )
    if config.dead_after <= training.batch_size:
        found.append(
            f"dead_after={config.dead_after} tokens is no more than a batch of {training.batch_size}: every latent "
            "that is silent in one batch counts as dead; raise dead_after"
        )
    k_aux = getattr(config, "k_aux", None)
    if k_aux is not None and k_aux > member.dictionary.n_latents and not resampled:
        found.append(
            f"k_aux={k_aux} exceeds the {member.dictionary.n_latents} latents there are; all dead ones are used"
        )
    return found


def _concentration(x: Tensor) -> list[str]:
    """Whether a few dimensions or a few tokens hold most of the variance: the FVU then speaks of them alone."""
    found, energy = [], x.double().square()
    total, (n, d) = float(energy.sum()), x.shape
    few = max(1, d // 100)
    held = float(energy.sum(dim=0).topk(few).values.sum()) / total if total > 0 else 0.0
    if d >= 8 and held > 0.5:
        found.append(
            f"{few} of {d} dimensions hold {held:.0%} of the variance, so the FVU is about them alone; leave those "
            "dimensions out or choose another site"
        )
    few = max(1, n // 100)
    held = float(energy.sum(dim=1).topk(few).values.sum()) / total if total > 0 else 0.0
    if n >= 100 and held > 0.5:
        found.append(
            f"{few} of {n} tokens hold {held:.0%} of the variance: outliers, often the first token of a context; leave "
            "them out of the harvest"
        )
    return found


def _drift(x: Tensor, n_sites: int) -> list[str]:
    """Whether batches still have the variance that the normalisation was fitted to, 1 for each site."""
    variance = float(x.double().square().sum(dim=1).mean()) / n_sites
    if 0.4 < variance < 2.5:
        return []
    return [
        f"a batch has {variance:.3g} times the variance that the normalization was fitted to: the data change in the "
        "course of the stream; shuffle them, or raise normalization_tokens"
    ]


def _unreachable(member: Member) -> list[str]:
    controller = member.controller
    if controller is None or not controller.at_bound or abs(controller.error) < 0.1:
        return []
    return [
        f"target_l0={controller.target:g} is out of reach: L0 is {float(controller.mean_l0):.1f} with the penalty at "
        f"{controller.gain:.1g} times its coefficient; ask for another L0 or another width"
    ]


class Warnings:
    """Tells which warnings are new; of two that differ in their numbers only, the second is not.

    Args:
        said: Those of earlier lines, in a resumed run.
    """

    def __init__(self, said: Iterable[str]) -> None:
        self._kinds = {_kind(text) for text in said}

    def new(self, found: Sequence[str]) -> list[str]:
        """Those not said before."""
        fresh = [text for text in found if _kind(text) not in self._kinds]
        self._kinds |= {_kind(text) for text in fresh}
        return fresh


def _kind(text: str) -> str:
    return "".join(character for character in text if character.isalpha() or character == " ")


def show_warning(text: str) -> None:
    """One line on stderr."""
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {escape(text)}")
