"""The loss a reconstruction adds to the model, as a record."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from sparsight.evaluation.core_records import IdentityRecord
from sparsight.evaluation.reading import Predicts, StoredActivations
from sparsight.evaluation.record import LossRecord
from sparsight.evaluation.record_values import Estimate, Resampling
from sparsight.evaluation.splice import FromSite, KnownLosses, Replacement, ablations, measure_losses, replaced_losses
from sparsight.evaluation.tails import Tail
from sparsight.models import Site

_FLOAT32 = 1e-4  # nats: what rounding in a model of single precision may do to a loss


def measure_loss(
    model: Predicts,
    part: StoredActivations,
    site: Site,
    reconstruct: Replacement | FromSite,
    mean: Float[Tensor, " d"],
    resampling: Resampling,
    loss_tokens: int | None,
    progress: bool,
    known: KnownLosses | None = None,
) -> LossRecord:
    """Losses with the reconstruction spliced in and with the site ablated, over the contexts of a store.

    Raises:
        ValueError: `known` is of something else.
        UndefinedMetric: no stored token is predicted from another.
    """
    if known is not None:
        known.claim(model.name, str(site), len(part), loss_tokens, tuple(mean.tolist()))
    replacements: dict[str, Replacement | FromSite] = {"spliced": reconstruct, **ablations(mean)}
    tail = Tail()

    def watch(found: dict[str, Tensor]) -> None:
        tail.add(found["spliced"][:, 1])

    documents, columns = measure_losses(
        model, part, site, replacements, limit=loss_tokens, known=known, progress=progress, watch=watch
    )
    drawn = resampling.over(documents)
    totals = drawn.total
    n, clean = totals[0].item(), columns["clean"]

    def added(name: str) -> Callable[[Tensor], Tensor]:
        return lambda s: (s[..., columns[name]] - s[..., clean]) / s[..., 0]

    def divergence(name: str) -> Callable[[Tensor], Tensor]:
        return lambda s: s[..., columns[name] + 1] / s[..., 0]

    def fraction(name: str) -> Estimate | None:
        if added(name)(totals).item() <= 0:
            return None
        return drawn.estimate(lambda s: added("spliced")(s) / added(name)(s))

    return LossRecord(
        n_tokens=int(n),
        n_documents=documents.n_documents,
        clean=totals[clean].item() / n,
        added=drawn.estimate(added("spliced")),
        added_by_zero=drawn.estimate(added("zero")),
        added_by_mean=drawn.estimate(added("mean")),
        fraction_of_zero=fraction("zero"),
        fraction_of_mean=fraction("mean"),
        kl=drawn.estimate(divergence("spliced")),
        kl_median=tail.percentile(50),
        kl_p99=tail.percentile(99),
        kl_by_zero=drawn.estimate(divergence("zero")),
        kl_by_mean=drawn.estimate(divergence("mean")),
    )


def splice_identity(model: Predicts, part: StoredActivations, site: Site) -> IdentityRecord:
    """Splicing an activation in its own place must change nothing: checked on the first contexts."""
    batch = next(iter(part.context_batches(8)))
    found = replaced_losses(model, batch.tokens, site, {"itself": lambda x: x})
    worst = (found["itself"][:, 0] - found["clean"][:, 0]).abs().max().item() if len(found["clean"]) else 0.0
    return IdentityRecord(
        identity="loss with each activation spliced in its own place = clean loss (largest difference, nats)",
        residual=worst,
        tolerance=_FLOAT32,
    )
