"""Latents taken out of activations, and which of them a linear probe leans on."""

from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.evaluation.features.probes import LinearProbe


def without(
    x: Float[Tensor, "n d"],
    z: Float[Tensor, "n m"],
    atoms: Float[Tensor, "m d"],
    latents: Int64[Tensor, " k"],
    level: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "n d"]:
    """Activations with some latents held at a level: the error of the dictionary stays.

    Right for means of tokens as well, with means of codes: everything is linear.

    Args:
        x: Activations.
        z: Their codes.
        atoms: What each latent writes.
        latents: Which to hold.
        level: Where, for every latent; 0 when None. Held at 0, a latent that is often in use takes its mean away too,
            and a probe's threshold with it: every example then falls on one side, whatever it is.
    """
    held = z[:, latents] if level is None else z[:, latents] - level[latents]
    return x - held @ atoms[latents].to(z)


def direction_of(probe: LinearProbe) -> Float64[Tensor, " d"]:
    """What a two-class probe reads: from class 0 to class 1."""
    return probe.weights[1] - probe.weights[0]


def effects(
    z: Float[Tensor, "n m"],
    y: Int64[Tensor, " n"],
    atoms: Float[Tensor, "m d"],
    probe: LinearProbe,
) -> Float64[Tensor, " m"]:
    """How far each latent moves a probe from class 0 to class 1: `(mean z | 1 - mean z | 0) <w, d_j>`.

    Above 0 for a latent that argues for the class it goes with.
    """
    apart = z[y == 1].double().mean(dim=0) - z[y == 0].double().mean(dim=0)
    return apart * (atoms.double() @ direction_of(probe))


def accuracy(probe: LinearProbe, x: Float[Tensor, "n d"], y: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """1 for each example that a two-class probe tells right, 0 for the others."""
    scores = probe.scores(x)
    right: Float64[Tensor, " n"] = ((scores[:, 1] > scores[:, 0]).long() == y).double()
    return right
