"""Ways of coding with the atoms of one dictionary, by name: what `compare_coders` compares and `evaluate` can use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit, refit
from sparsight.dictionaries import AbstractDictionary
from sparsight.dictionaries.selection import top_k_latents

Coder = Callable[[Tensor, Tensor], SparseCode]
"""From raw activations `[n, d_in]` and the largest L0 of each row `[n]` to codes."""


@dataclass(frozen=True)
class Setting:
    """What an arm may look at before it codes: never the rows it is judged on.

    Attributes:
        dictionary: Its atoms, its offset, its encoder.
        as_trained: Use the dictionary's own rule where an arm starts from the encoder; else the `k` largest
            pre-activations, whatever the rule it was trained with.
        k: Target L0; None when every row keeps the L0 of its own code.
        train_rows: Reads activations of training documents, for what must be fitted; called only by arms that fit.
    """

    dictionary: AbstractDictionary
    as_trained: bool
    k: int | None
    train_rows: Callable[[], Tensor]


def encoder(setting: Setting) -> Coder:
    """The dictionary's own code where it has the target L0; else the `k` largest pre-activations, as `topk`."""
    if setting.as_trained:
        return lambda x, budget: setting.dictionary.encode(x)
    return topk(setting)


def topk(setting: Setting) -> Coder:
    """The largest positive pre-activations of each row, as many as its budget, with their own values."""
    dictionary = setting.dictionary
    W_enc, b_enc = _encoder_weights(dictionary)

    def code(x: Tensor, budget: Tensor) -> SparseCode:
        if int(budget.max()) == 0:
            return _silent(x, dictionary)
        values, indices = top_k_latents(x - dictionary.b_dec, W_enc, b_enc, int(budget.max()))
        # Largest first: a row's budget is its first slots.
        within = torch.arange(values.shape[1], device=values.device) < budget[:, None]
        return SparseCode(indices, values.relu() * within, dictionary.n_latents)

    return code


def refitted(setting: Setting) -> Coder:
    """The latents of `encoder`, their values solved anew by non-negative least squares: re-weighted, not chosen."""
    dictionary, chosen = setting.dictionary, encoder(setting)
    return lambda x, budget: refit(x - dictionary.b_dec, dictionary.atoms, chosen(x, budget).support())


def pursuit(setting: Setting) -> Coder:
    """Gradient pursuit: chooses latents and values by itself."""
    dictionary = setting.dictionary
    return by_budget(lambda x, k: gradient_pursuit(x - dictionary.b_dec, dictionary.atoms, k))


ARMS: dict[str, Callable[[Setting], Coder]] = {
    "encoder": encoder,
    "topk": topk,
    "refit": refitted,
    "pursuit": pursuit,
}

DEFAULT_ARMS = ("encoder", "topk", "refit", "pursuit")

ALIASES = {"gradient_pursuit": "pursuit"}


def canonical(name: str) -> str:
    """The name under which an arm is in the table.

    Raises:
        ValueError: there is no such arm.
    """
    name = ALIASES.get(name, name)
    if name not in ARMS:
        raise ValueError(f"unknown coder {name!r}; choose from {', '.join([*ARMS, *ALIASES])}")
    return name


def make_arm(name: str, setting: Setting) -> Coder:
    """The coder of an arm, ready to be judged; runs without recording gradients.

    Raises:
        ValueError: there is no such arm, or it needs an encoder and the dictionary has none.
    """
    made = ARMS[canonical(name)](setting)

    def code(x: Float[Tensor, "n d_in"], budget: Int64[Tensor, " n"]) -> SparseCode:
        with torch.no_grad():
            return made(x, budget)

    return code


def by_budget(coder: Callable[[Tensor, int], SparseCode]) -> Coder:
    """A coder of one `k` for all rows, run once for each budget that occurs."""

    def code(x: Tensor, budget: Tensor) -> SparseCode:
        levels = torch.unique(budget).tolist()
        if len(levels) == 1:
            return coder(x, levels[0])
        order, parts = [], []
        for k in levels:
            rows = (budget == k).nonzero()[:, 0]
            order.append(rows)
            parts.append(coder(x[rows], k))
        return SparseCode.cat(parts)[torch.cat(order).argsort()]

    return code


def has_encoder(dictionary: AbstractDictionary) -> bool:
    """Whether the dictionary codes with linear pre-activations `(x - b_dec) W_enc + b_enc`."""
    return hasattr(dictionary, "W_enc") and hasattr(dictionary, "b_enc")


def _encoder_weights(dictionary: AbstractDictionary) -> tuple[Any, Any]:
    if not has_encoder(dictionary):
        raise ValueError(f"{type(dictionary).__name__} has no linear encoder; compare arms that choose by themselves")
    return dictionary.W_enc, dictionary.b_enc


def _silent(x: Tensor, dictionary: AbstractDictionary) -> SparseCode:
    empty = torch.zeros(len(x), 0, device=x.device)
    return SparseCode(empty.long(), empty.to(x.dtype), dictionary.n_latents)
