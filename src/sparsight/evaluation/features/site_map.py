"""The layer-by-site map: one linear probe and its control for each feature at each site."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.labelled import Examples
from sparsight.evaluation.features.probes import control_labels, discriminant
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, difference, hits, score
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import StoredActivations, reported
from sparsight.evaluation.record import Estimate
from sparsight.models import Site

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post")
"""Kinds of site through which all that the model knows passes."""

WITHIN = 0.01
"""A site is as good as another if its accuracy is at most so much below."""


class SiteScore(Record):
    """A linear probe at one site.

    Attributes:
        site: Where.
        accuracy: Balanced accuracy of Fisher's discriminant on held-out documents; one over the classes is chance.
        control: The same for labels drawn at random for each token type; null where there are too few types.
        selectivity: Accuracy minus control, the same documents drawn for both.
        choosing: Accuracy on the documents that choices are made on.
    """

    site: str
    accuracy: Estimate
    control: float | None
    selectivity: Estimate | None
    choosing: float


@dataclass(frozen=True, eq=False)
class Control:
    """Labels of the control task for the examples fitted and judged on."""

    fit: Int64[Tensor, " n"]
    judge: Int64[Tensor, " m"]


def control_of(examples: Examples, seed: int) -> Control:
    """One draw of a class for each token type.

    Raises:
        UndefinedMetric: too few token types, or a class falls on no token that is fitted on.
    """
    fit, judge = examples.fit, examples.judge
    drawn = control_labels(
        torch.cat([fit.token_ids, judge.token_ids]),
        torch.cat([fit.y, judge.y]),
        examples.n_classes,
        seed=seed,
    )
    fitted = drawn[: len(fit)]
    if len(torch.unique(fitted)) < examples.n_classes:
        raise UndefinedMetric("the control task gives a class to no token that is fitted on")
    return Control(fitted, drawn[len(fit) :])


def control_or_none(examples: Examples, seed: int) -> Control | None:
    """The control task, trying a few draws; None where it cannot be set."""
    for attempt in range(5):
        try:
            return control_of(examples, seed + attempt)
        except UndefinedMetric:
            continue
    return None


@dataclass(frozen=True, eq=False)
class Read:
    """Activations of all examples at one site."""

    x: Float[Tensor, "n d"]
    needed: Int64[Tensor, " n"]

    def of(self, rows: Int64[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Those of some rows."""
        return self.x[torch.searchsorted(self.needed, rows)]


def read(store: StoredActivations, site: Site, examples: Sequence[Examples]) -> Read:
    """Read every row that some feature needs, once."""
    needed = torch.unique(torch.cat([part.rows for e in examples for part in (e.fit, e.choose, e.judge)]))
    return Read(store.rows(site, needed), needed)


def site_maps(
    store: StoredActivations,
    sites: Sequence[Site],
    examples: Sequence[Examples],
    controls: Sequence[Control | None],
    resampling: Resampling,
    *,
    progress: bool = False,
) -> list[list[SiteScore]]:
    """For each feature the score at each site. Sites that hold the same activations are measured once."""
    maps: list[list[SiteScore]] = [[] for _ in examples]
    seen: list[tuple[Tensor, int]] = []  # first activations of the residual stream's sites, and their place in the maps
    with reported("probing", len(sites), shown=progress) as advance:
        for place, site in enumerate(sites):
            here = read(store, site, examples)
            head = here.x[:32]
            twin = next((p for x, p in seen if x.shape == head.shape and torch.equal(x, head)), None)
            for scores, e, control in zip(maps, examples, controls, strict=True):
                if twin is not None:
                    scores.append(scores[twin].model_copy(update={"site": str(site)}))
                else:
                    scores.append(_score(site, here, e, control, resampling))
            seen.append((head, place))
            advance(1)
    return maps


def _score(site: Site, here: Read, e: Examples, control: Control | None, resampling: Resampling) -> SiteScore:
    n = e.n_classes
    fit, judge = here.of(e.fit.rows), here.of(e.judge.rows)
    probe = discriminant(fit, e.fit.y, n)
    found = score(probe, judge, e.judge, n)
    chance, selectivity = None, None
    if control is not None:
        fooled = discriminant(fit, control.fit, n).scores(judge).argmax(dim=1)
        control_hits = hits(fooled, control.judge, e.judge.document_ids, n)
        chance = float(balanced_accuracy(control_hits.sum(dim=0)))
        selectivity = difference(found, control_hits, resampling)
    choosing = balanced_accuracy(score(probe, here.of(e.choose.rows), e.choose, n).sum(dim=0))
    return SiteScore(
        site=str(site),
        accuracy=resampling.of(found, balanced_accuracy),
        control=chance,
        selectivity=selectivity,
        choosing=float(choosing),
    )


def home_of(scores: Sequence[SiteScore]) -> str:
    """The earliest site of the residual stream (of all, where none was read) as good as the best for choosing."""
    of_stream = set(stream_of([s.site for s in scores]))
    stream = [s for s in scores if s.site in of_stream]
    best = max(s.choosing for s in stream)
    return next(s.site for s in stream if s.choosing >= best - WITHIN)


def stream_of(sites: Sequence[str]) -> list[str]:
    """Those of the residual stream; all, where there are none."""
    return [s for s in sites if Site.parse(s).kind in STREAM] or list(sites)
