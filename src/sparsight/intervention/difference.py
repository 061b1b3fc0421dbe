"""The difference of two classes' means, and other directions that tell the classes apart."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, UndefinedMetric
from sparsight.intervention.direction import Direction
from sparsight.models import LanguageModel, Site, Tokens


def difference_in_means(
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "m d"],
    *,
    site: Site | None = None,
    model: str | None = None,
) -> Direction:
    """`mean(positive) - mean(negative)`, its sums in float64.

    Along it lies the whole covariance of activations with the label, whatever the share of the classes; it is the best
    linear classifier only where both classes scatter alike in every direction.

    Args:
        positive: Activations of the class the direction leads to.
        negative: Those of the other.
        site: Where they were read, for the record.
        model: In which model.
    Raises:
        DataError: a class is empty, widths differ, or the means are equal.
    """
    if len(positive) == 0 or len(negative) == 0 or positive.shape[1] != negative.shape[1]:
        raise DataError(
            f"both classes need activations of one width, got {list(positive.shape)} and {list(negative.shape)}"
        )
    difference = positive.double().mean(dim=0) - negative.double().mean(dim=0)
    if float(difference.norm()) == 0:
        raise DataError("the means of the two classes are equal, so their difference has no direction")
    return Direction(difference.to(positive.dtype), site, model, "difference in means")


def logistic_direction(
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "m d"],
    *,
    penalty: float = 1e-2,
    site: Site | None = None,
    model: str | None = None,
) -> Direction:
    """Weights of an L2-regularised logistic regression on activations scaled to unit total variance, in float64.

    Minimises `mean log(1 + exp(-s (w.x + b))) + penalty/2 |w|^2` by Newton's method with step halving, until the
    gradient is below 1e-8; the direction has unit length.

    Args:
        positive, negative: Activations of the two classes.
        penalty: Weight of the penalty; without one, separable classes have no finite optimum.
        site, model: For the record.
    Raises:
        DataError: as `difference_in_means`.
        ValueError: the penalty is not positive.
    """
    difference_in_means(positive, negative)
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, got {penalty}; separable classes have no optimum without one")
    x = torch.cat([positive, negative]).double()
    scale = (x - x.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    x = torch.cat([(x - x.mean(dim=0)) / scale, x.new_ones(len(x), 1)], dim=1)
    y = torch.cat([x.new_ones(len(positive)), x.new_zeros(len(negative))])
    ridge = torch.full((x.shape[1],), penalty, dtype=torch.float64, device=x.device)
    ridge[-1] = 1e-12  # the offset is free, but for what keeps the system regular
    w = torch.zeros_like(ridge)

    def loss(w: Tensor) -> Tensor:
        z = x @ w
        return (torch.nn.functional.softplus(z) - y * z).mean() + 0.5 * (ridge * w.square()).sum()

    for _ in range(100):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) / len(x) + ridge * w
        if float(gradient.norm()) < 1e-8:
            break
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + torch.diag(ridge)
        step, size = torch.linalg.solve(hessian, gradient), 1.0
        while size > 1e-6 and float(loss(w - size * step)) > float(loss(w)):
            size /= 2
        w = w - size * step
    weights = w[:-1] / w[:-1].norm()
    return Direction(weights.to(positive.dtype), site, model, "logistic regression")


def leace_direction(
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "m d"],
    *,
    shrinkage: float = 1e-3,
    site: Site | None = None,
    model: str | None = None,
) -> Direction:
    """The direction that least-squares concept erasure reads the class from: `Sigma^-1 (mu_1 - mu_0)`, of unit length.

    For one binary class the eraser takes `x` to `x - s (s^T Sigma^-1 (x - mean)) / (s^T Sigma^-1 s)`, where `s` is the
    difference in means: it removes along `s` what it reads along this direction. With normal classes of one covariance
    this is the best linear classifier.

    Args:
        positive, negative: Activations of the two classes.
        shrinkage: Share of the mean variance mixed into the covariance, so that few tokens suffice.
        site, model: For the record.
    Raises:
        DataError: as `difference_in_means`.
    Source:
        Belrose et al., "LEACE: Perfect linear concept erasure in closed form", 2023.
    """
    difference = difference_in_means(positive, negative).vector.double()
    x = torch.cat([positive, negative]).double()
    x = x - x.mean(dim=0)
    covariance = x.T @ x / len(x)
    identity = torch.eye(len(covariance), dtype=torch.float64, device=x.device)
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / len(covariance) * identity
    solved = torch.linalg.solve(covariance, difference)
    return Direction((solved / solved.norm()).to(positive.dtype), site, model, "LEACE")


def top_latents(
    dictionary: AbstractDictionary, positive: Float[Tensor, "n d"], negative: Float[Tensor, "m d"], n: int = 5
) -> list[tuple[int, float]]:
    """Latents whose mean value differs most between two classes, in units of their own spread, best first.

    Args:
        dictionary: Codes the activations.
        positive, negative: Activations of the two classes.
        n: How many.
    Returns:
        Pairs of a latent and its `(mean_1 - mean_0) / standard deviation`, from high to low: the latents that are
        larger in the positive class.
    Raises:
        ValueError: `n` is not between 1 and the number of latents.
        UndefinedMetric: no latent is ever active.
    """
    if not 1 <= n <= dictionary.n_latents:
        raise ValueError(f"n must be between 1 and n_latents={dictionary.n_latents}, got {n}")
    with torch.no_grad():
        ours, theirs = (dictionary.encode_dense(x.to(dictionary.atoms)).double() for x in (positive, negative))
    spread = torch.cat([ours, theirs]).std(dim=0)
    if not bool((spread > 0).any()):
        raise UndefinedMetric("no latent varies on these activations; the dictionary is not of this site")
    score = (ours.mean(dim=0) - theirs.mean(dim=0)) / spread.clamp_min(1e-300)
    score = score.masked_fill(spread == 0, -torch.inf)
    best = score.sort(descending=True, stable=True)
    return [(int(i), float(v)) for i, v in zip(best.indices[:n], best.values[:n], strict=True) if v > -torch.inf]


@torch.no_grad()
def activations_at(
    lm: LanguageModel, tokens: Tokens, sites: list[Site], chosen: Bool[Tensor, "b t"], *, batch_size: int = 64
) -> dict[Site, Float[Tensor, "n d"]]:
    """Activations of some tokens at several sites, one row for each token.

    Args:
        lm: The model.
        tokens: Prompts.
        sites: Where to read.
        chosen: Which tokens, by column of `tokens`.
        batch_size: Prompts in a pass.
    """
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        read = lm.activations(tokens[rows], sites)
        for site in sites:
            found[site].append(read[site][chosen[rows].to(read[site].device)])
    return {site: torch.cat(parts) for site, parts in found.items()}
