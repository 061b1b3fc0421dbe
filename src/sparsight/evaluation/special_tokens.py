"""What the tokens without a row, BOS and its like, would do to the headline: read from the model on some contexts."""

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation.coders import Code
from sparsight.evaluation.core_records import TokenSide
from sparsight.evaluation.reading import StoredActivations
from sparsight.evaluation.token_policy import SPECIAL, CellSums, TokenPolicy
from sparsight.models import Site, Tokens


@torch.no_grad()
def special_side(
    model: Any,
    part: StoredActivations,
    site: Site,
    dictionary: AbstractDictionary,
    code: Code,
    mean: Float64[Tensor, " d"],
    policy: TokenPolicy,
    longest: float,
    limit: int = 4096,
) -> TokenSide | None:
    """FVU and L0 with and without special tokens, over whole contexts of about `limit` tokens.

    Args:
        model: Reads activations.
        part: Contexts.
        site: Where.
        dictionary: Reconstructs.
        code: As for the headline.
        mean: Mean of the headline's tokens.
        policy: Which stored tokens the headline counts.
        longest: Norm above which a token is outlying.
        limit: Tokens to look at.
    Returns:
        None where contexts have no special token.
    """
    cells = CellSums(mean.cpu())
    seen, special = 0, 0
    for batch in part.context_batches(8):
        tokens: Tokens = batch.tokens.to(model.device)
        x = _read(model, tokens, site)
        kinds = torch.zeros_like(tokens.ids)
        for row in range(len(kinds)):
            kinds[row] = policy.kinds(x[row], torch.arange(x.shape[1], device=x.device), longest)
        # A special token is that and nothing else: it is out of every headline, whatever its norm.
        kinds = torch.where(tokens.special, SPECIAL, kinds)[tokens.mask]
        y = x[tokens.mask].to(dictionary.atoms)
        z = code(y)
        exact, y_hat = y.double(), dictionary.reconstruct(y, z).double()
        shifted = exact - mean.to(exact)
        cells.add(shifted, kinds, z.l0().double(), (exact - y_hat).square().sum(dim=1), shifted.square().sum(dim=1))
        seen, special = seen + len(y), special + int((kinds == SPECIAL).sum())
        if seen >= limit:
            break
    return cells.side(SPECIAL, policy.left_out | SPECIAL) if special else None


def _read(model: Any, tokens: Tokens, site: Site) -> Float[Tensor, "b t d"]:
    x: Tensor = model.activations(tokens, [site])[site]
    return x
