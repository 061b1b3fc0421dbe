"""One feature, measured: its representation at its home site, and the latents of each dictionary that recover it."""

from collections.abc import Mapping
from typing import Any

import torch

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features import home as at_home
from sparsight.evaluation.features.labelled import Documents, Examples, Labelled
from sparsight.evaluation.features.latents import Coded, Yardstick, best_of_each_class, overlap, smallest_set
from sparsight.evaluation.features.linearity import LinearityRecord, linearity_of
from sparsight.evaluation.features.mediation import Exchange, Pairs, StoredTexts, class_subspaces, pairs_of
from sparsight.evaluation.features.nonlinearity import Sides, SiteLinearity, low
from sparsight.evaluation.features.report_record import (
    LatentRecord,
    LatentSetRecord,
    Link,
    RepresentationRecord,
)
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.features.site_map import Control, SiteScore, home_of
from sparsight.evaluation.reading import Predicts, StoredActivations
from sparsight.evaluation.record import Estimate
from sparsight.models import Site


class Found:
    """Everything found of one feature."""

    def __init__(self, representation: RepresentationRecord) -> None:
        self.representation = representation
        self.latents: list[LatentRecord] = []
        self.sets: list[LatentSetRecord] = []
        self.links: list[Link] = []
        self.points: list[tuple[str, float, float]] = []


class Measure:
    """A store, a model and how to resample: what measuring one feature needs besides its examples."""

    def __init__(
        self,
        lm: Predicts | None,
        store: StoredActivations,
        features: list[Labelled],
        documents: Documents,
        resampling: Resampling,
        seed: int,
    ) -> None:
        self.lm, self.store, self.features, self.documents = lm, store, features, documents
        self.resampling, self.seed = resampling, seed
        self.no_effects = ""
        if lm is None:
            self.no_effects = "no model was given"
        elif not lm.has_causal_loss:
            self.no_effects = f"{lm.name} ({lm.family}) predicts no next token"
        self.texts = StoredTexts(store) if not self.no_effects else None

    def feature(
        self,
        e: Examples,
        control: Control | None,
        scores: list[SiteScore],
        given: str | None,
        dictionaries: Mapping[str, tuple[AbstractDictionary, Site]],
    ) -> Found:
        """The representation at its home site, then the latents of each dictionary."""
        name, home = e.feature.name, home_of(scores)
        xs = self._read(Site.parse(home), e)
        missing: dict[str, str] = {}
        probes, screen = at_home.probes_at(home, xs, e, control, self.resampling, seed=self.seed)
        types = _or_reason(missing, "heldout_types", at_home.heldout_types, xs, e, self.resampling, seed=self.seed)
        arrangement = _or_reason(missing, "geometry", at_home.Arrangement.of, xs, e)
        shape = None
        if arrangement is not None:
            within = given if e.n_strata > 1 else None
            shape = at_home.geometry_of(arrangement, e, xs[2], within, self.resampling)
        pairs = self._pairs(e, missing)
        effects: dict[str, Any] = dict.fromkeys(("mediation", "rotation", "moves"))
        if pairs is not None and arrangement is not None:
            effects = self._effects(missing, Site.parse(home), xs, e, arrangement, shape, pairs)
        more = at_home.beyond_token(xs, e, self.resampling)
        linearity = self._linearity(missing, scores, screen, e)
        represented, because = _verdict(e, next(s for s in scores if s.site == home), more, types)
        found = Found(
            RepresentationRecord(
                feature=name,
                represented=represented,
                because=because,
                home=home,
                beyond_token=more,
                sites=scores,
                probes=probes,
                heldout_types=types,
                linearity=linearity,
                dimension=at_home.dimension_of(arrangement, xs, e, effects["mediation"], self.resampling),
                geometry=shape,
                moves_within=self._moves_within(missing, Site.parse(home), e, linearity),
                not_measured=missing,
                **effects,
            )
        )
        found.links += _links_of(found.representation)
        if shape is not None and arrangement is not None and e.feature.kind == "cyclic" and shape.families:
            circle = next(f for f in shape.families if f.family == "circle")
            found.points = at_home.circle_points(arrangement, e, circle.periods[0])
        yardsticks: dict[Site, Yardstick] = {}
        for label, (dictionary, site) in dictionaries.items():
            if site not in yardsticks:
                yardsticks[site] = self._yardstick(site, e, pairs)
            at = arrangement if str(site) == home else None
            self._latents(found, label, dictionary, site, e, yardsticks[site], at)
        return found

    def _read(self, site: Site, e: Examples) -> Sides:
        rows = self.store.rows
        return rows(site, e.fit.rows), rows(site, e.choose.rows), rows(site, e.judge.rows)

    def _pairs(self, e: Examples, missing: dict[str, str]) -> Pairs | None:
        if self.texts is None:
            missing["mediation"] = missing["rotation"] = missing["moves"] = self.no_effects
            return None
        others = [f.labels[e.judge.rows] for f in self.features if f.name != e.feature.name]
        alike = torch.stack(others, dim=1) if others else None
        found = _or_reason(missing, "mediation", pairs_of, e.judge, self.texts, alike=alike, seed=self.seed)
        if not isinstance(found, Pairs):
            missing["rotation"] = missing["moves"] = missing["mediation"]
            return None
        return found

    def _effects(
        self,
        missing: dict[str, str],
        site: Site,
        xs: Sides,
        e: Examples,
        arrangement: at_home.Arrangement,
        shape: Any,
        pairs: Pairs,
    ) -> dict[str, Any]:
        """What exchanging the representation does; and turning it where it is cyclic, moving it where it is not."""
        assert self.lm is not None
        assert self.texts is not None
        at, settings = (self.lm, self.texts, site, arrangement), {"seed": self.seed}
        exchange = Exchange(self.lm, self.store, self.texts, site, pairs)
        whole = (exchange, arrangement, xs, e, self.resampling)
        found = {"mediation": _or_reason(missing, "mediation", at_home.mediation_of, *whole, **settings)}
        if e.feature.kind == "cyclic":
            missing["moves"] = "a cyclic feature is turned"
            turned = (*at, xs, e, self.resampling)
            return found | {
                "rotation": _or_reason(missing, "rotation", at_home.rotation_of, *turned, **settings),
                "moves": None,
            }
        missing["rotation"] = "only a cyclic feature is turned"
        moved = (*at, shape.family, e, self.resampling)
        return found | {"rotation": None, "moves": _or_reason(missing, "moves", at_home.moves_of, *moved, **settings)}

    def _linearity(
        self, missing: dict[str, str], scores: list[SiteScore], screen: SiteLinearity, e: Examples
    ) -> LinearityRecord | None:
        where = (self.store, [s.site for s in scores], e, self.features, self.documents, screen)
        found = _or_reason(missing, "linearity", linearity_of, *where, self.resampling, seed=self.seed)
        return found if isinstance(found, LinearityRecord) else None

    def _moves_within(self, missing: dict[str, str], site: Site, e: Examples, linearity: LinearityRecord | None) -> Any:
        within = None if linearity is None else linearity.within
        if within is None or self.texts is None or e.feature.kind == "cyclic":
            return None
        given = next(f for f in self.features if f.name == within.given)
        where = (self.lm, self.texts, self.store, site, e.feature, given, self.documents, self.resampling)
        return _or_reason(missing, "moves_within", at_home.moves_within, *where, seed=self.seed)

    def _yardstick(self, site: Site, e: Examples, pairs: Pairs | None) -> Yardstick:
        exchange = None
        if pairs is not None and self.lm is not None and self.texts is not None:
            exchange = Exchange(self.lm, self.store, self.texts, site, pairs)
        return Yardstick.of(self._read(site, e), e, exchange)

    def _latents(
        self,
        found: Found,
        label: str,
        dictionary: AbstractDictionary,
        site: Site,
        e: Examples,
        yardstick: Yardstick,
        arrangement: at_home.Arrangement | None,
    ) -> None:
        xs = self._read(site, e)
        try:
            coded = Coded.of(dictionary, label, site, xs)
        except UndefinedMetric as error:
            found.representation.not_measured[f"latents of {label}"] = str(error)
            return
        best = best_of_each_class(coded, e)
        chosen = smallest_set(coded, e, yardstick, self.resampling, self.no_effects or "no pairs", seed=self.seed)
        found.latents += best
        found.sets.append(chosen)
        feature, latents = f"feature {e.feature.name}", f"{label} latents {', '.join(map(str, chosen.latents))}"
        for b in best:
            found.links.append(
                Link(
                    source=f"{feature} = {b.label}", target=f"{label} latent {b.latent}", measure="AUROC", value=b.auroc
                )
            )
        found.links.append(Link(source=feature, target=latents, measure="AUROC", value=chosen.auroc))
        where = f"representation {e.feature.name} at {site}"
        if chosen.mediated is not None:
            found.links.append(
                Link(source=where, target=latents, measure="mediated fraction", value=chosen.mediated.value)
            )
        if arrangement is not None and e.n_strata == 1:
            value = overlap(coded, torch.tensor(chosen.latents), class_subspaces(arrangement.means)[0])
            found.links.append(Link(source=where, target=latents, measure="subspace in the atoms' span", value=value))


def _or_reason(missing: dict[str, str], name: str, function: Any, *args: Any, **settings: Any) -> Any:
    """What a function returns, or None and the reason why it is undefined."""
    try:
        return function(*args, **settings)
    except UndefinedMetric as error:
        missing[name] = str(error)
        return None


def _verdict(e: Examples, score: SiteScore, beyond_token: Estimate, types: Any) -> tuple[bool, str]:
    """Represented or not, and why."""
    chance = 1 / e.n_classes
    if low(score.accuracy) <= chance:
        return False, f"a linear probe is no better than chance ({score.accuracy} against {chance:.3f})"
    if score.selectivity is not None and low(score.selectivity) > 0:
        return True, f"a linear probe beats control labels by {score.selectivity}"
    if low(beyond_token) > 0:
        return True, f"a linear probe beats what the token itself tells by {beyond_token}"
    if types is not None and low(types.accuracy) > chance:
        return True, f"a linear probe is right on {types.accuracy} of token types never seen, chance is {chance:.3f}"
    return False, f"a linear probe tells no more than the token itself does ({beyond_token})"


def _links_of(r: RepresentationRecord) -> list[Link]:
    """What ties the feature to its representation."""
    here = next(s for s in r.sites if s.site == r.home)
    ends = {"source": f"feature {r.feature}", "target": f"representation {r.feature} at {r.home}"}
    links = [Link(**ends, measure="balanced accuracy", value=here.accuracy.value)]
    if here.selectivity is not None:
        links.append(Link(**ends, measure="selectivity", value=here.selectivity.value))
    if r.mediation is not None:
        links.append(Link(**ends, measure="mediated fraction", value=r.mediation.ranks[-1].fraction.value))
    return links
