"""Ways of coding with the atoms of one dictionary, by name: what `compare_coders` compares and `evaluate` can use."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import (
    SearchMethod,
    fit_scale,
    gradient_pursuit,
    matching_pursuit,
    nonnegative_lasso,
    orthogonal_matching_pursuit,
    refit,
    threshold_code,
    threshold_for_l0,
)
from sparsight.dictionaries import AbstractDictionary
from sparsight.dictionaries.selection import top_k_latents

Coder = Callable[[Tensor, Tensor], SparseCode]
"""From raw activations `[n, d_in]` and the largest L0 of each row `[n]` to codes."""


@dataclass(frozen=True)
class Setting:
    """What an arm may look at before it codes: never the rows it is judged on.

    Attributes:
        dictionary: Its atoms, its offset, its encoder.
        as_trained: Use the dictionary's own rule where an arm starts from the encoder; else the largest
            pre-activations, whatever the rule it was trained with.
        l0: Target mean L0, for arms that are matched in the mean and not token by token.
        train_rows: Reads activations of training documents, for what must be fitted; called only by arms that fit.
        search: Gives pursuits their way to find the best atom: a table made once and shared by all arms and batches.
    """

    dictionary: AbstractDictionary
    as_trained: bool
    l0: float | int
    train_rows: Callable[[], Tensor]
    search: Callable[[], SearchMethod] = lambda: "auto"


def encoder(setting: Setting) -> Coder:
    """The dictionary's own code where it has the target L0; else the `k` largest pre-activations, as `topk`."""
    if setting.as_trained:
        return lambda x, budget: setting.dictionary.encode(x)
    return topk(setting)


def topk(setting: Setting) -> Coder:
    """The largest positive pre-activations of each row, as many as its budget, with their own values."""
    dictionary = setting.dictionary
    W_enc, b_enc = encoder_weights(dictionary)

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
    dictionary, search = setting.dictionary, setting.search()
    return by_budget(lambda x, k: gradient_pursuit(x - dictionary.b_dec, dictionary.atoms, k, search=search))


def polished(setting: Setting) -> Coder:
    """Gradient pursuit, the values on its final support solved anew by non-negative least squares."""
    dictionary, search = setting.dictionary, setting.search()
    return by_budget(
        lambda x, k: gradient_pursuit(x - dictionary.b_dec, dictionary.atoms, k, polish=True, search=search)
    )


def steepest(setting: Setting) -> Coder:
    """Matching pursuit: chooses as gradient pursuit does, and sets one value at a time."""
    dictionary, search = setting.dictionary, setting.search()
    return by_budget(lambda x, k: matching_pursuit(x - dictionary.b_dec, dictionary.atoms, k, search=search))


def orthogonal(setting: Setting) -> Coder:
    """Orthogonal matching pursuit: all values solved anew after each choice."""
    dictionary, search = setting.dictionary, setting.search()
    return by_budget(lambda x, k: orthogonal_matching_pursuit(x - dictionary.b_dec, dictionary.atoms, k, search=search))


def scaled(setting: Setting, *, per_latent: bool = False) -> Coder:
    """The encoder's code times one factor, fitted on training documents."""
    dictionary, own = setting.dictionary, encoder(setting)
    x = setting.train_rows()
    with torch.no_grad():
        code = own(x, torch.full((len(x),), round(setting.l0), device=x.device))
        factors = fit_scale(x - dictionary.b_dec, code, dictionary.atoms, per_latent=per_latent)
    return lambda x, budget: _times(own(x, budget), factors)


def jointly_scaled(setting: Setting) -> Coder:
    """The encoder's code times one factor for each latent, fitted jointly on training documents."""
    return scaled(setting, per_latent=True)


def thresholded(setting: Setting) -> Coder:
    """Positive pre-activations above one threshold, chosen on training documents for the target mean L0.

    A token that would use more than eight times the target keeps that many.
    """
    wide, dictionary = topk(setting), setting.dictionary
    most = min(dictionary.n_latents, math.ceil(8 * setting.l0))

    def widest(x: Tensor) -> SparseCode:
        return wide(x, torch.full((len(x),), most, device=x.device))

    with torch.no_grad():
        tau = threshold_for_l0(widest(setting.train_rows()), setting.l0)
    return lambda x, budget: threshold_code(widest(x), tau)


class Lasso:
    """The support of the lasso, values by non-negative least squares; one penalty for the target mean L0.

    The penalty is found on at most 512 training tokens, so that the L0 realised differs a little: down from the one
    that silences all of them until their codes use too much, each code starting from the one before, then by bisection.

    Attributes:
        penalty: Price of one unit of latent value, in the units of the activations.
    """

    def __init__(self, setting: Setting) -> None:
        self._dictionary = setting.dictionary
        x = setting.train_rows()
        x = x[:: max(1, len(x) // 512)][:512]
        with torch.no_grad():
            largest = float(((x - self._dictionary.b_dec) @ self._dictionary.atoms.T).max())
        self.penalty = largest if largest > 0 else 1.0
        lowest, too_low, code = self.penalty / 1e4, 0.0, None
        for _ in range(40):
            tried = math.sqrt(too_low * self.penalty) if too_low else max(lowest, 0.7 * self.penalty)
            found = self.shrunk(x, start=code, penalty=tried)
            if int(found.l0().sum()) > setting.l0 * len(x):
                too_low = tried
            else:
                self.penalty, code = tried, found
            if self.penalty <= (1.002 * too_low or lowest):
                break

    @torch.no_grad()
    def shrunk(
        self, x: Float[Tensor, "n d_in"], *, start: SparseCode | None = None, penalty: float | None = None
    ) -> SparseCode:
        """The lasso's own code, its values short by what the penalty takes."""
        y = x - self._dictionary.b_dec
        return nonnegative_lasso(y, self._dictionary.atoms, penalty or self.penalty, start=start)

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "n d_in"], budget: Int64[Tensor, " n"]) -> SparseCode:
        return refit(x - self._dictionary.b_dec, self._dictionary.atoms, self.shrunk(x).support())


ARMS: dict[str, Callable[[Setting], Coder]] = {
    "encoder": encoder,
    "topk": topk,
    "thresholded": thresholded,
    "scaled": scaled,
    "joint_scaled": jointly_scaled,
    "refit": refitted,
    "matching_pursuit": steepest,
    "pursuit": pursuit,
    "polished": polished,
    "orthogonal_matching_pursuit": orthogonal,
    "lasso": Lasso,
}

# Arms that search for the best atom again and again.
SEARCHING = ("pursuit", "polished", "matching_pursuit", "orthogonal_matching_pursuit")

DEFAULT_ARMS = ("encoder", "topk", "refit", "pursuit")

ALIASES = {
    "gradient_pursuit": "pursuit",
    "mp": "matching_pursuit",
    "omp": "orthogonal_matching_pursuit",
}


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
    if isinstance(made, Lasso):
        return made

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


def encoder_weights(dictionary: AbstractDictionary) -> tuple[Any, Any]:
    """`W_enc` and `b_enc` of a dictionary with linear pre-activations.

    Raises:
        ValueError: it has none.
    """
    if not has_encoder(dictionary):
        raise ValueError(f"{type(dictionary).__name__} has no linear encoder; compare arms that choose by themselves")
    return dictionary.W_enc, dictionary.b_enc


def _times(code: SparseCode, factors: Tensor) -> SparseCode:
    scale = factors if factors.dim() == 0 else factors[code.indices]
    return SparseCode(code.indices, code.values * scale, code.n_latents)


def _silent(x: Tensor, dictionary: AbstractDictionary) -> SparseCode:
    empty = torch.zeros(len(x), 0, device=x.device)
    return SparseCode(empty.long(), empty.to(x.dtype), dictionary.n_latents)
