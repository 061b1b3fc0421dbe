"""JumpReLU and what codes exactly like one: BatchTopK and Matryoshka out of files that say so, and the way back."""

from typing import Any

import torch

from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopK,
    BatchTopKDictionary,
    GatedDictionary,
    JumpReLUDictionary,
    Matryoshka,
    MatryoshkaDictionary,
)
from sparsight.dictionaries.export import batchtopk_to_jumprelu, gated_to_jumprelu
from sparsight.errors import FormatError
from sparsight.formats.weights import EQUAL_NORMS


def restored(dictionary: AbstractDictionary, metadata: dict[str, Any]) -> AbstractDictionary:
    """The dictionary as what it was trained as, if its file says so; else the dictionary itself. Codes are the same.

    That needs one threshold for all latents and a whole number of them, which such files need not have.

    Args:
        metadata: Of SAELens: `training_architecture` and `training_architecture_details`.
    """
    details = metadata.get("training_architecture_details")
    if not isinstance(dictionary, JumpReLUDictionary) or not isinstance(details, dict):
        return dictionary
    widths = None
    if metadata.get("training_architecture") == "matryoshka_batchtopk":
        widths = details.get("matryoshka_widths")
        if not _ascends(widths, dictionary.n_latents):
            return dictionary
    elif metadata.get("training_architecture") != "batchtopk":
        return dictionary
    k = details.get("k")
    if isinstance(k, bool) or not isinstance(k, int | float) or int(k) != k:
        return dictionary
    return as_batch_topk(dictionary, int(k), widths)


def as_batch_topk(dictionary: JumpReLUDictionary, k: int, widths: list[int] | None) -> AbstractDictionary:
    """BatchTopK, with prefixes Matryoshka, where `k` is possible and all thresholds are equal; else the same again.

    Thresholds may differ by the rounding of the norms that they were multiplied by.
    """
    log_thresholds = dictionary.log_threshold
    spread = float(log_thresholds.max() - log_thresholds.min())
    if not 1 <= k <= dictionary.n_latents or spread > EQUAL_NORMS:
        return dictionary
    made: BatchTopKDictionary | MatryoshkaDictionary
    if widths is None:
        made = BatchTopKDictionary(BatchTopK(dictionary.n_latents, k), dictionary.atoms.detach().clone())
    else:
        config = Matryoshka(dictionary.n_latents, k, tuple(widths))
        made = MatryoshkaDictionary(config, dictionary.atoms.detach().clone())
    with torch.no_grad():
        made.W_enc.copy_(dictionary.W_enc)
        made.b_enc.copy_(dictionary.b_enc)
        made.b_dec.copy_(dictionary.b_dec)
        made.log_theta.copy_(log_thresholds.median())
    return made.requires_grad_(False)


def as_jumprelu(dictionary: AbstractDictionary) -> AbstractDictionary:
    """BatchTopK, Matryoshka and Gated as the JumpReLU that codes alike, for formats that have no name for them.

    Others come back as they are.

    Raises:
        FormatError: a gated dictionary whose magnitudes have weights of their own.
    """
    if isinstance(dictionary, BatchTopKDictionary | MatryoshkaDictionary):
        return batchtopk_to_jumprelu(dictionary)
    if isinstance(dictionary, GatedDictionary):
        if dictionary.config.untied:
            raise FormatError("gated with untied magnitudes (untied=True): no threshold tells its gate")
        return gated_to_jumprelu(dictionary)
    return dictionary


def _ascends(widths: Any, n_latents: int) -> bool:
    """Whether these are prefixes that Matryoshka accepts."""
    if not isinstance(widths, list) or not widths or not all(type(w) is int for w in widths):
        return False
    return all(1 <= w <= n_latents for w in widths) and widths == sorted(set(widths))
