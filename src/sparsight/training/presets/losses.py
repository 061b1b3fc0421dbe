"""The losses of other projects, each written from its definition.

All take a dictionary of ours in the units of `x`; `scale` is what turns `x` into the units of the definition. In those
units errors are `scale` times as large, and so are values: squared errors carry `scale^2`, sums of values `scale`, and
counts of latents nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, MatryoshkaDictionary
from sparsight.training.presets.codes import largest, pre_activations, revived, training_code

Number = float | int


@dataclass(frozen=True)
class Batch:
    """What a loss is evaluated on.

    Attributes:
        dictionary: In the units of `x`.
        x: Activations.
        code: Of the training step.
        residual: `x` less its reconstruction.
        dead: Latents that the definition calls dead.
        scale: Units of the definition per unit of `x`.
        coefficient: Of the definition's penalty, in its own units.
    """

    dictionary: AbstractDictionary
    x: Float[Tensor, "b d"]
    code: Float[Tensor, "b m"]
    residual: Float[Tensor, "b d"]
    dead: Bool[Tensor, " m"]
    scale: Number
    coefficient: Number

    @staticmethod
    def of(
        dictionary: AbstractDictionary, x: Tensor, dead: Tensor | None, scale: Number, coefficient: Number
    ) -> "Batch":
        code = training_code(dictionary, x)
        residual = x - code @ dictionary.atoms - dictionary.b_dec
        none = torch.zeros(dictionary.n_latents, dtype=torch.bool, device=x.device)
        return Batch(dictionary, x, code, residual, none if dead is None else dead, scale, coefficient)


def error(batch: Batch) -> Float[Tensor, ""]:
    """Squared error, summed over dimensions, mean over tokens."""
    return batch.residual.square().sum(dim=1).mean() * float(batch.scale) ** 2


def with_l1(batch: Batch) -> Float[Tensor, ""]:
    """`mean |e|^2 + c mean sum_j f_j |row_j|`."""
    return error(batch) + batch.coefficient * batch.scale * batch.code.sum(dim=1).mean()


def with_l0(batch: Batch) -> Float[Tensor, ""]:
    """`mean |e|^2 + c mean L0`."""
    return error(batch) + batch.coefficient * _l0(batch)


def with_target_l0(batch: Batch) -> Float[Tensor, ""]:
    """`mean |e|^2 + c (mean L0 / L0* - 1)^2`, with the target of the dictionary's configuration."""
    target: Number | None = batch.dictionary.config.target_l0
    if target is None:
        raise ValueError("this loss has a target, and the dictionary's configuration has none; give it target_l0")
    return error(batch) + batch.coefficient * (_l0(batch) / target - 1).square()


def gated(batch: Batch) -> Float[Tensor, ""]:
    """`mean |e|^2 + c mean sum_j q_j + mean |x - q W_dec - b_dec|^2` with `q` the rectified gate."""
    gate = pre_activations(batch.dictionary, batch.x).relu()
    through = batch.x - gate @ batch.dictionary.atoms - batch.dictionary.b_dec
    return (
        error(batch)
        + batch.coefficient * batch.scale * gate.sum(dim=1).mean()
        + batch.scale**2 * through.square().sum(dim=1).mean()
    )


def relative_revival(batch: Batch, k_aux: int) -> Float[Tensor, ""]:
    """`|e - e_hat|^2 / |e - mean e|^2`, sums over the batch; `e_hat` by rectified dead latents; 0 if none is dead."""
    residual = batch.residual.detach()
    if not bool(batch.dead.any()):
        return residual.new_zeros(())
    found = revived(batch.dictionary, batch.x, batch.dead, k_aux, rectify=True)
    variance = (residual - residual.mean(dim=0)).square().sum()
    # An exact reconstruction leaves nothing to explain: 0 / tiny = 0.
    return (residual - found).square().sum() / variance.clamp_min(torch.finfo(variance.dtype).tiny)


def absolute_revival(batch: Batch, *, rectify: bool) -> Float[Tensor, ""]:
    """`min(|D| / k_aux, 1) mean |e - e_hat|^2` with `k_aux` half the width of `x`, `D` the dead latents; 0 if none."""
    k_aux, n_dead = batch.x.shape[1] // 2, int(batch.dead.sum())
    residual = batch.residual.detach()
    if n_dead == 0:
        return residual.new_zeros(())
    found = revived(batch.dictionary, batch.x, batch.dead, k_aux, rectify=rectify)
    share = min(n_dead / k_aux, 1.0)
    return batch.scale**2 * share * (residual - found).square().sum(dim=1).mean()


def prefix_errors(batch: Batch) -> Float[Tensor, " n"]:
    """Squared error of each prefix of a Matryoshka dictionary, by ascending width, the whole last.

    Raises:
        ValueError: the dictionary's prefixes are drawn anew in each step; the definitions have fixed ones.
    """
    dictionary = batch.dictionary
    if not isinstance(dictionary, MatryoshkaDictionary) or dictionary.config.widths is None:
        raise ValueError("this loss is defined for fixed prefixes; configure Matryoshka with widths=")
    errors = []
    for width in (*dictionary.config.inner_widths, dictionary.n_latents):
        x_hat = batch.code[:, :width] @ dictionary.atoms[:width] + dictionary.b_dec
        errors.append(batch.scale**2 * (batch.x - x_hat).square().sum(dim=1).mean())
    return torch.stack(errors)


def openai_topk(batch: Batch) -> Float[Tensor, ""]:
    """`FVU + c * relative revival` with 256 latents: the mean squared error over the variance of a sample, here `x`."""
    return fvu(batch.x, batch.residual) + batch.coefficient * relative_revival(batch, 256)


def dictionary_learning_topk(batch: Batch) -> Float[Tensor, ""]:
    """`mean |e|^2 + c * relative revival` with half as many latents as `x` is wide: the second term has no units."""
    return error(batch) + batch.coefficient * relative_revival(batch, batch.x.shape[1] // 2)


def dictionary_learning_matryoshka(batch: Batch) -> Float[Tensor, ""]:
    """`(1 / n^2) sum_j mean |e_j|^2 + c * relative revival`: weights `1 / n`, and a mean over the `n` prefixes."""
    errors = prefix_errors(batch)
    return errors.sum() / len(errors) ** 2 + batch.coefficient * relative_revival(batch, batch.x.shape[1] // 2)


def saelens_topk(batch: Batch) -> Float[Tensor, ""]:
    """`mean |e|^2 + c min(|D| / k_aux, 1) mean |e - e_hat|^2`, dead pre-activations not rectified."""
    return error(batch) + batch.coefficient * absolute_revival(batch, rectify=False)


def saelens_matryoshka(batch: Batch) -> Float[Tensor, ""]:
    """The sum of all prefixes' errors, and the revival of TopK."""
    return prefix_errors(batch).sum() + batch.coefficient * absolute_revival(batch, rectify=False)


def sparsify_topk(batch: Batch) -> Float[Tensor, ""]:
    """`FVU + c min(|D| / k_aux, 1) |e - e_hat|^2 / |x - mean x|^2`, sums over the batch, rectified dead latents."""
    variance = (batch.x - batch.x.mean(dim=0)).square().sum(dim=1).mean() * batch.scale**2
    return fvu(batch.x, batch.residual) + batch.coefficient * absolute_revival(batch, rectify=True) / variance


def sparsify_multi_topk(batch: Batch) -> Float[Tensor, ""]:
    """`sparsify_topk`, and an eighth of the FVU that `4 k` latents leave."""
    code = largest(pre_activations(batch.dictionary, batch.x).relu(), 4 * batch.dictionary.config.k)
    wider = batch.x - code @ batch.dictionary.atoms - batch.dictionary.b_dec
    return sparsify_topk(batch) + fvu(batch.x, wider) / 8


def fvu(x: Float[Tensor, "b d"], residual: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """`sum |e|^2 / sum |x - mean x|^2` over the batch."""
    return residual.square().sum() / (x - x.mean(dim=0)).square().sum()


def _l0(batch: Batch) -> Float[Tensor, ""]:
    return (batch.code > 0).sum(dim=1).to(batch.x).mean()
