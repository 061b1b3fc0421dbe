"""Is a representation linear: along one direction for each class, the same in all kinds of text, or not?

The rule. At the home site a linear probe stands beside an MLP (`nonlinearity`). Where that is not "linear" beyond
doubt, both are fitted again on up to 6,000 tokens, and that decides. Where it still is not, two more questions are
asked: is it linear within each class of another feature (`within`), and, if it is "not linear" beyond doubt, is it at
other sites of the residual stream? The verdict is one of

    linear          the MLP adds no more than 0.02,
    linear within   it adds more, and no more than 0.02 to linear probes within the classes of another feature,
    not linear      it adds more, and to those as well, or there is no such feature,
    undecided       the interval of what it adds holds 0.02,

and is of the home site; what holds at others is said beside it. An interval must lie on its side of the bound as a
whole, save that a kind of text by itself need only not be beyond doubt on the wrong one.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.labelled import Documents, Examples, Labelled, examples_of
from sparsight.evaluation.features.nonlinearity import BOUND, SiteLinearity, compare, low
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.features.site_map import stream_of
from sparsight.evaluation.features.within import WithinRecord, linear_within
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import StoredActivations
from sparsight.models import Site

SIZES = (6000, 1500, 2400)
"""Tokens to fit on, to choose on, to judge on: more than elsewhere, since each kind of text has its own probe."""


class LinearityRecord(Record):
    """Whether a feature is linear at its home site, with the numbers that say so.

    Attributes:
        verdict: "linear", "linear within" the classes of `within.given`, "not linear" or "undecided".
        because: That, in words, with what holds at other sites.
        bound: What an MLP may add where a feature is linear.
        home: Both probes at the home site, on the tokens that decide.
        elsewhere: Both at the other sites of the residual stream, where it is not linear at home; sites that hold the
            same activations are named once.
        within: Where it is not linear at home, or that is undecided.
        no_within: Why there is nothing to look within.
    """

    verdict: Literal["linear", "linear within", "not linear", "undecided"]
    because: str
    bound: float = BOUND
    home: SiteLinearity
    elsewhere: list[SiteLinearity] = Field(default_factory=list)
    within: WithinRecord | None = None
    no_within: str | None = None


def linearity_of(
    store: StoredActivations,
    sites: Sequence[str],
    few: Examples,
    others: Sequence[Labelled],
    documents: Documents,
    screen: SiteLinearity,
    resampling: Resampling,
    *,
    sizes: tuple[int, int, int] = SIZES,
    seed: int = 0,
) -> LinearityRecord:
    """Decide, beginning with what few tokens say at the home site.

    Args:
        store: Whole.
        sites: That may be looked at; those of the residual stream are, or all where there are none.
        few: Examples that the screen is of.
        others: Features to look within.
        documents: Which rows are on which side.
        screen: Both probes at the home site, on few examples.
        resampling: Of the intervals.
        sizes: Most tokens to fit on, to choose on, to judge on where the screen does not say "linear".
        seed: Of the draw and of the MLPs.
    Raises:
        UndefinedMetric: neither probe is better than chance.
    """
    if screen.verdict == "linear":
        _check_told(screen, few.n_classes)
        return LinearityRecord(verdict="linear", because=_said(screen), home=screen)
    e = examples_of(few.feature, documents, sizes=sizes, seed=seed)
    xs = _read(store, screen.site, e)
    home = compare(screen.site, xs, e, resampling, seed=seed)
    _check_told(home.record, e.n_classes)
    if home.record.verdict == "linear":
        return LinearityRecord(verdict="linear", because=_said(home.record), home=home.record)
    decided = home.record.verdict == "not linear"
    elsewhere = _map(store, sites, screen.site, xs, e, resampling, seed) if decided else []
    within, why = None, None
    try:
        within = linear_within(xs, e, others, home, resampling)
    except UndefinedMetric as error:
        why = str(error)
    is_linear_within = decided and within is not None and within.linear
    return LinearityRecord(
        verdict="linear within" if is_linear_within else home.record.verdict,
        because="; ".join([_said(home.record), *_said_within(within), *_said_elsewhere(elsewhere)]),
        home=home.record,
        elsewhere=elsewhere,
        within=within,
        no_within=why,
    )


def _check_told(at: SiteLinearity, n_classes: int) -> None:
    """Refuse to judge how something is represented that is not.

    Raises:
        UndefinedMetric: neither probe is better than chance beyond its interval.
    """
    if max(low(at.linear), low(at.mlp)) <= 1 / n_classes:
        raise UndefinedMetric(
            f"neither a linear probe ({at.linear}) nor an MLP ({at.mlp}) is better than chance, {1 / n_classes:.3f}"
        )


def _read(store: StoredActivations, site: str, e: Examples) -> tuple[Tensor, Tensor, Tensor]:
    here = Site.parse(site)
    return store.rows(here, e.fit.rows), store.rows(here, e.choose.rows), store.rows(here, e.judge.rows)


def _map(
    store: StoredActivations,
    sites: Sequence[str],
    home: str,
    at_home: tuple[Tensor, Tensor, Tensor],
    e: Examples,
    resampling: Resampling,
    seed: int,
) -> list[SiteLinearity]:
    """Both probes at every other site of the stream that holds activations of its own."""
    found: list[SiteLinearity] = []
    seen = [at_home[2]]
    for site in stream_of(sites):
        if site == home:
            continue
        xs = _read(store, site, e)
        if any(x.shape == xs[2].shape and torch.equal(x, xs[2]) for x in seen):
            continue
        seen.append(xs[2])
        found.append(compare(site, xs, e, resampling, seed=seed).record)
    return found


def _said(at: SiteLinearity) -> str:
    return f"at {at.site} an MLP adds {at.gain} to a linear probe's {at.linear.value:.3f}"


def _said_within(within: WithinRecord | None) -> list[str]:
    if within is None:
        return []
    return [f"to one for each {within.given} ({within.within.value:.3f}) it adds {within.nonlinearity}"]


def _said_elsewhere(elsewhere: Sequence[SiteLinearity]) -> list[str]:
    said = []
    for verdict in ("linear", "undecided", "not linear"):
        those = [f"{s.site} ({s.linear.value:.3f})" for s in elsewhere if s.verdict == verdict]
        if those:
            said.append(f"{verdict} at {', '.join(those)}")
    return said
