"""What an atom is as a direction: the tokens it points to, and the atoms that point where it does."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class DirectEffect:
    """Tokens by their entry in `atom @ unembedding`: (token id, logits per unit), largest effect first."""

    promoted: list[tuple[int, float]]
    suppressed: list[tuple[int, float]]


@torch.no_grad()
def direct_effects(
    atoms: Float[Tensor, "n_latents d"],
    unembedding: Float[Tensor, "vocab d_model"],
    latents: Sequence[int],
    *,
    gain: Float[Tensor, " d_model"] | None = None,
    n: int = 8,
    block: int = 64,
) -> dict[int, DirectEffect]:
    """The tokens whose logits one unit of a latent raises and lowers most, by the direct path alone (the "logit lens").

    `(gain * atom) @ unembedding.T`, centred over the vocabulary, since a constant added to all logits changes
    nothing. What later layers make of the atom is left out, and so is the nonlinearity of the final norm: only its gain
    is applied, so that amounts are comparable between the tokens of a latent and not between sites.

    Args:
        atoms: Directions of the residual stream.
        unembedding: Rows that turn the residual stream into logits.
        latents: Rows of `atoms` to look at.
        gain: Weight of the final norm; ones if not given.
        n: Tokens in each of the two lists.
        block: Latents handled at once; memory is `block * vocab`.
    Raises:
        ValueError: the atoms do not live in the space that the unembedding reads.
    Source:
        nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    if atoms.shape[1] != unembedding.shape[1]:
        raise ValueError(
            f"atoms have {atoms.shape[1]} dimensions and the unembedding reads {unembedding.shape[1]}; "
            "direct effects are defined at sites of the residual stream only"
        )
    n = min(n, len(unembedding))
    found: dict[int, DirectEffect] = {}
    for start in range(0, len(latents), block):
        chosen = list(latents[start : start + block])
        directions = atoms[chosen] if gain is None else atoms[chosen] * gain
        effects = directions.float() @ unembedding.float().T
        effects = effects - effects.mean(dim=1, keepdim=True)
        top, bottom = effects.topk(n, dim=1), effects.topk(n, dim=1, largest=False)
        for i, latent in enumerate(chosen):
            found[latent] = DirectEffect(
                list(zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True)),
                list(zip(bottom.indices[i].tolist(), bottom.values[i].tolist(), strict=True)),
            )
    return found


@torch.no_grad()
def nearest_latents(
    atoms: Float[Tensor, "n_latents d"], latents: Sequence[int], *, n: int = 6, block: int = 256
) -> dict[int, list[tuple[int, float]]]:
    """For each chosen latent, the others whose atoms have the largest cosine with its own, and that cosine.

    Args:
        atoms: Directions of unit norm.
        latents: Rows to look at.
        n: Neighbours of each; all others when there are fewer.
        block: Latents handled at once; memory is `block * n_latents`.
    """
    n = min(n, len(atoms) - 1)
    found: dict[int, list[tuple[int, float]]] = {}
    for start in range(0, len(latents), block):
        chosen = torch.tensor(list(latents[start : start + block]), device=atoms.device)
        cosines = atoms[chosen] @ atoms.T
        cosines[torch.arange(len(chosen)), chosen] = -torch.inf
        top = cosines.topk(n, dim=1)
        for i, latent in enumerate(chosen.tolist()):
            found[latent] = list(zip(top.indices[i].tolist(), top.values[i].tolist(), strict=True))
    return found
