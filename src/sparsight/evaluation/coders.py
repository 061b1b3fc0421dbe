"""How activations are coded for an evaluation: the dictionary's own rule, or another over its atoms."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import kept_search
from sparsight.dictionaries import AbstractDictionary, TranscoderDictionary
from sparsight.evaluation.approximate import Approximate, ApproximateCode, ApproximateCoder
from sparsight.evaluation.arms import Setting, make_arm
from sparsight.evaluation.record import DictionaryRecord

Code = Callable[[Tensor], SparseCode]


def coder_of(
    dictionary: AbstractDictionary,
    coder: str | None,
    k: int | None,
    n_rows: int = 0,
    search: Approximate | None = None,
) -> Code:
    """The dictionary's own rule, or an arm at `k` latents per token, from activations to codes.

    A pursuit over many rows (`n_rows` in all) keeps one table of inner products for all batches. With an approximate
    search the result is an `ApproximateCode`.

    Raises:
        ValueError: one of `coder` and `k` came without the other, one is out of range, or nothing is searched.
    """
    if coder is None:
        if k is not None:
            raise ValueError(f"k={k} needs a coder to use it; pass coder='gradient_pursuit', or leave k out")
        if search is not None:
            raise ValueError("the dictionary's own rule searches no atoms; pass coder='gradient_pursuit' and k")
        return torch.no_grad()(dictionary.encode)
    if isinstance(dictionary, TranscoderDictionary):
        raise ValueError(f"coder={coder!r} codes what atoms write, but a transcoder codes what it reads; leave it out")
    if k is None:
        raise ValueError(f"coder={coder!r} needs k, the latents per token; 16 to 64 are usual")
    if not 1 <= k <= dictionary.n_latents:
        raise ValueError(f"k must be between 1 and n_latents={dictionary.n_latents}, got k={k}")

    def refuse() -> Tensor:
        raise ValueError(f"coder={coder!r} must be fitted on training rows; use compare_coders")

    setting = Setting(dictionary, False, k, refuse, partial(kept_search, dictionary.atoms.detach(), n_rows, k))
    if search is not None:
        return ApproximateCode(ApproximateCoder(coder, setting, search), k)
    arm = make_arm(coder, setting)
    return lambda x: arm(x, torch.full((len(x),), k, device=x.device))


def reconstruction(dictionary: AbstractDictionary, code: Code) -> Callable[[Tensor], Tensor]:
    """From activations on any device to reconstructions on the same."""

    def reconstruct(x: Tensor) -> Tensor:
        with torch.no_grad():
            taken = x.to(dictionary.atoms)
            return dictionary.reconstruct(taken, code(taken)).to(x)

    return reconstruct


def describe(dictionary: AbstractDictionary) -> DictionaryRecord:
    """Which dictionary this is, for a record."""
    return DictionaryRecord(
        architecture=getattr(dictionary.config, "architecture", type(dictionary).__name__),
        n_latents=dictionary.n_latents,
        d_in=dictionary.d_in,
        site=None if dictionary.site is None else str(dictionary.site),
        model=dictionary.model,
    )
