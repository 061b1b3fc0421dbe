"""The feature report: is it represented, where, in how many dimensions, in what shape; and which latents recover it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.features import home as at_home
from sparsight.evaluation.features.labelled import Documents, Examples, Labelled, examples_of, labelled_features
from sparsight.evaluation.features.latents import Coded, best_of_each_class, overlap, smallest_set
from sparsight.evaluation.features.mediation import Exchange, Pairs, StoredTexts, class_subspaces, pairs_of
from sparsight.evaluation.features.report_record import (
    FeatureRecord,
    FeatureReport,
    LatentRecord,
    LatentSetRecord,
    Link,
    RepresentationRecord,
    SiteScore,
)
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, hits, token_identity_answers
from sparsight.evaluation.features.site_map import Control, control_or_none, home_of, site_maps
from sparsight.evaluation.features.within import linear_within
from sparsight.evaluation.reading import Predicts, StoredActivations, check_model, reported, site_for
from sparsight.evaluation.record import Estimate
from sparsight.models import Site

Dictionaries = Mapping[str, AbstractDictionary] | Sequence[AbstractDictionary]


def report(
    lm: Predicts | None,
    store: StoredActivations,
    labels: Sequence[str] | Mapping[str, Tensor] | None = None,
    sites: Sequence[Site | str] | None = None,
    dictionaries: Dictionaries = (),
    *,
    meanings: Mapping[str, Any] | None = None,
    given: str | None = None,
    sizes: tuple[int, int, int] = (1500, 600, 1200),
    n_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> FeatureReport:
    """Report on labelled features of a store's tokens: features, their representations, and latents, each by itself.

    Documents are split three ways. Probes, means and shapes are fitted on one part of the training documents; sites and
    sizes of latent sets are chosen on the rest of them; every number reported is of held-out documents, with intervals
    over these.

    Args:
        lm: The model the activations came from, for interventions; None leaves them out.
        store: Whole, with documents on both sides.
        labels: None for all features of the store, names of some, or labels by name, one for each stored token.
        sites: Where to look; all sites of the store when None.
        dictionaries: To be searched for latents, each at its own site; by name, or named after their architecture.
        meanings: Kind and classes of features; the organism's own are known.
        given: A feature to hold fixed where shapes of ordered features are measured and interventions made, such as the
            language: three languages may each have a circle of weekdays of their own.
        sizes: Most tokens for each feature to fit on, to choose on, to judge on.
        n_resamples, level: Of the bootstrap over documents.
        seed: Of every draw.
        force: Go on though a model or dictionary is of another provenance.
        progress: Show a bar on stderr.
    Raises:
        DataError: labels do not fit the tokens, documents are too few, a site is missing, or provenance forbids it.
        ValueError: an argument is out of range.
    """
    began = time.perf_counter()
    held = ", ".join(map(str, store.sites))
    chosen = list(store.sites) if sites is None else [Site.parse(site) for site in sites]
    for site in chosen:
        if site not in store.sites:
            raise DataError(f"the store holds {held}, expected {site}; harvest that site")
    if lm is not None:
        check_model(lm, store, force=force)
    named = _named(dictionaries)
    places = {name: site_for(dictionary, store, None, force=force) for name, dictionary in named.items()}
    features = labelled_features(store, labels, meanings)
    fixed = _fixed(store, given, meanings)
    documents = Documents.of(store, seed=seed)
    resampling = Resampling(n_resamples, level, seed)
    examples, left_out = _examples(features, fixed, documents, sizes, seed)
    controls = [control_or_none(e, seed) for e in examples]
    maps = site_maps(store, chosen, examples, controls, resampling, progress=progress)
    measure = _Measure(lm, store, features, documents, resampling, seed)
    found: list[_Found] = []
    with reported("features", len(examples), shown=progress) as advance:
        for e, control, scores in zip(examples, controls, maps, strict=True):
            found.append(measure.feature(e, control, scores, given, {n: (named[n], places[n]) for n in named}))
            advance(1)
    return FeatureReport(
        sparsight_version=_version(),
        model=store.model,
        sites=[str(site) for site in chosen],
        given=given,
        n_tokens=len(store),
        n_documents=len(torch.unique(documents.document_ids)),
        seed=seed,
        level=level,
        seconds=time.perf_counter() - began,
        features=[_described(e) for e in examples],
        representations=[f.representation for f in found],
        latents=[latent for f in found for latent in f.latents],
        latent_sets=[chosen_set for f in found for chosen_set in f.sets],
        links=[link for f in found for link in f.links],
        points={f.representation.feature: f.points for f in found if f.points},
        left_out=left_out,
        notes=_notes(documents, lm, examples),
    )


class _Found:
    """Everything found of one feature."""

    def __init__(self, representation: RepresentationRecord) -> None:
        self.representation = representation
        self.latents: list[LatentRecord] = []
        self.sets: list[LatentSetRecord] = []
        self.links: list[Link] = []
        self.points: list[tuple[str, float, float]] = []


class _Measure:
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
    ) -> _Found:
        """The representation at its home site, then the latents of each dictionary."""
        name, home = e.feature.name, home_of(scores)
        xs = self._read(Site.parse(home), e)
        missing: dict[str, str] = {}
        probes, beyond = at_home.probes_at(xs, e, control, self.resampling, seed=self.seed)
        types = _or_reason(missing, "heldout_types", at_home.heldout_types, xs, e, self.resampling, seed=self.seed)
        arrangement = _or_reason(missing, "geometry", at_home.Arrangement.of, xs, e)
        shape = None
        if arrangement is not None:
            within = given if e.n_strata > 1 else None
            shape = at_home.geometry_of(arrangement, e, xs[2], within, self.resampling)
        pairs = self._pairs(e, missing)
        mediated = turned = moved = None
        if pairs is not None and arrangement is not None and self.lm is not None and self.texts is not None:
            exchange = Exchange(self.lm, self.store, self.texts, Site.parse(home), pairs)
            mediated = _or_reason(
                missing,
                "mediation",
                at_home.mediation_of,
                exchange,
                arrangement,
                xs,
                e,
                self.resampling,
                seed=self.seed,
            )
            turned = self._rotation(missing, Site.parse(home), xs, e, arrangement)
            moved = self._moves(missing, Site.parse(home), e, arrangement, shape)
        more = at_home.beyond_token(xs, e, self.resampling)
        linear = (beyond.low if beyond.low is not None else beyond.value) <= at_home.BEYOND_DOUBT
        within = None if linear else self._within(missing, Site.parse(home), e)
        represented, because = _verdict(e, next(s for s in scores if s.site == home), more, types)
        found = _Found(
            RepresentationRecord(
                feature=name,
                represented=represented,
                because=because,
                home=home,
                beyond_token=more,
                sites=scores,
                probes=probes,
                heldout_types=types,
                nonlinearity=beyond,
                linear=linear,
                within=within,
                dimension=at_home.dimension_of(arrangement, xs, e, mediated, self.resampling),
                geometry=shape,
                mediation=mediated,
                rotation=turned,
                moves=moved,
                moves_within=self._moves_within(missing, Site.parse(home), e, within),
                not_measured=missing,
            )
        )
        found.links += _links_of(found.representation)
        if shape is not None and arrangement is not None and e.feature.kind == "cyclic" and shape.families:
            circle = next(f for f in shape.families if f.family == "circle")
            found.points = at_home.circle_points(arrangement, e, circle.periods[0])
        for label, (dictionary, site) in dictionaries.items():
            self._latents(found, label, dictionary, site, e, pairs, arrangement if str(site) == home else None)
        return found

    def _read(self, site: Site, e: Examples) -> at_home.Sides:
        rows = self.store.rows
        return rows(site, e.fit.rows), rows(site, e.choose.rows), rows(site, e.judge.rows)

    def _pairs(self, e: Examples, missing: dict[str, str]) -> Pairs | None:
        if self.texts is None:
            missing["mediation"] = missing["rotation"] = missing["moves"] = self.no_effects
            return None
        others = [f.labels[e.judge.rows] for f in self.features if f.name != e.feature.name]
        alike = torch.stack(others, dim=1) if others else None
        found = _or_reason(missing, "mediation", pairs_of, e.judge, self.texts, alike=alike, seed=self.seed)
        return found if isinstance(found, Pairs) else None

    def _rotation(
        self, missing: dict[str, str], site: Site, xs: at_home.Sides, e: Examples, arrangement: at_home.Arrangement
    ) -> Any:
        if e.feature.kind != "cyclic":
            missing["rotation"] = "only a cyclic feature is turned"
            return None
        where = (self.lm, self.texts, site, arrangement, xs, e, self.resampling)
        return _or_reason(missing, "rotation", at_home.rotation_of, *where, seed=self.seed)

    def _within(self, missing: dict[str, str], site: Site, e: Examples) -> Any:
        where = (self.store, site, e.feature, self.features, self.documents, self.resampling)
        return _or_reason(missing, "within", linear_within, *where, seed=self.seed)

    def _moves(
        self, missing: dict[str, str], site: Site, e: Examples, arrangement: at_home.Arrangement, shape: Any
    ) -> Any:
        if e.feature.kind == "cyclic":
            missing["moves"] = "a cyclic feature is turned"
            return None
        where = (self.lm, self.texts, site, arrangement, shape.family, e, self.resampling)
        return _or_reason(missing, "moves", at_home.moves_of, *where, seed=self.seed)

    def _moves_within(self, missing: dict[str, str], site: Site, e: Examples, within: Any) -> Any:
        if within is None or self.texts is None or e.feature.kind == "cyclic":
            return None
        given = next(f for f in self.features if f.name == within.given)
        where = (self.lm, self.texts, self.store, site, e.feature, given, self.documents, self.resampling)
        return _or_reason(missing, "moves_within", at_home.moves_within, *where, seed=self.seed)

    def _latents(
        self,
        found: _Found,
        label: str,
        dictionary: AbstractDictionary,
        site: Site,
        e: Examples,
        pairs: Pairs | None,
        arrangement: at_home.Arrangement | None,
    ) -> None:
        xs = self._read(site, e)
        try:
            coded = Coded.of(dictionary, label, site, xs)
        except UndefinedMetric as error:
            found.representation.not_measured[f"latents of {label}"] = str(error)
            return
        best = best_of_each_class(coded, e)
        exchange = None
        if pairs is not None and self.lm is not None and self.texts is not None:
            exchange = Exchange(self.lm, self.store, self.texts, site, pairs)
        chosen = smallest_set(coded, e, xs, self.resampling, exchange, self.no_effects or "no pairs", seed=self.seed)
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


def _low(estimate: Estimate) -> float:
    """Lower end, or the value where there is no interval."""
    return estimate.low if estimate.low is not None else estimate.value


def _verdict(e: Examples, score: SiteScore, beyond_token: Estimate, types: Any) -> tuple[bool, str]:
    """Represented or not, and why."""
    chance = 1 / e.n_classes
    if _low(score.accuracy) <= chance:
        return False, f"a linear probe is no better than chance ({score.accuracy} against {chance:.3f})"
    if score.selectivity is not None and _low(score.selectivity) > 0:
        return True, f"a linear probe beats control labels by {score.selectivity}"
    if _low(beyond_token) > 0:
        return True, f"a linear probe beats what the token itself tells by {beyond_token}"
    if types is not None and _low(types.accuracy) > chance:
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


def _named(dictionaries: Dictionaries) -> dict[str, AbstractDictionary]:
    if isinstance(dictionaries, Mapping):
        return dict(dictionaries)
    named: dict[str, AbstractDictionary] = {}
    for dictionary in dictionaries:
        name = type(dictionary.config).__name__.lower()
        taken = sum(other.split(" ")[0] == name for other in named)
        named[f"{name} {taken + 1}" if taken else name] = dictionary
    return named


def _fixed(store: StoredActivations, given: str | None, meanings: Mapping[str, Any] | None) -> Labelled | None:
    return None if given is None else labelled_features(store, [given], meanings)[0]


def _examples(
    features: list[Labelled], fixed: Labelled | None, documents: Documents, sizes: tuple[int, int, int], seed: int
) -> tuple[list[Examples], dict[str, str]]:
    """Examples of every feature that has some, and why the others are left out."""
    examples, left_out = [], {}
    for feature in features:
        ordered = feature.kind in ("cyclic", "ordinal")
        given = fixed if ordered and fixed is not None and fixed.name != feature.name else None
        try:
            examples.append(examples_of(feature, documents, given=given, sizes=sizes, seed=seed))
        except UndefinedMetric as error:
            left_out[feature.name] = str(error)
    if not examples:
        raise DataError(f"no feature has examples on every side: {'; '.join(left_out.values())}")
    return examples, left_out


def _described(e: Examples) -> FeatureRecord:
    guessed = hits(token_identity_answers(e.fit, e.judge, e.n_classes), e.judge.y, e.judge.document_ids, e.n_classes)
    return FeatureRecord(
        name=e.feature.name,
        kind=e.feature.kind,
        classes=[e.feature.classes[c] for c in e.kept],
        description=e.feature.description,
        n_fit=len(e.fit),
        n_judge=len(e.judge),
        n_documents=len(torch.unique(e.judge.document_ids)),
        n_token_types=len(torch.unique(e.judge.token_ids)),
        token_identity=float(balanced_accuracy(guessed.sum(dim=0))),
        left_out=e.left_out,
    )


def _notes(documents: Documents, lm: Predicts | None, examples: list[Examples]) -> list[str]:
    notes = []
    judged = len(torch.unique(documents.document_ids[documents.side == 2]))
    if judged == 1:
        notes.append("one held-out document only: no interval is possible, and none is given")
    for e in examples:
        alone = len(torch.unique(e.judge.document_ids))
        if judged > 1 and alone == 1:
            notes.append(f"{e.feature.name} is judged on one document: no interval is possible for it")
    if lm is None:
        notes.append("no model was given: nothing is checked by intervention")
    return notes


def _version() -> str:
    from importlib.metadata import version

    return version("sparsight")
