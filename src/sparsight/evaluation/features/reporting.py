"""The feature report: is it represented, where, in how many dimensions, in what shape; and which latents recover it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.features.labelled import Documents, Examples, Labelled, examples_of, labelled_features
from sparsight.evaluation.features.one_feature import Found, Measure
from sparsight.evaluation.features.report_record import (
    FeatureRecord,
    FeatureReport,
)
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, hits, token_identity_answers
from sparsight.evaluation.features.site_map import control_or_none, site_maps
from sparsight.evaluation.reading import Predicts, StoredActivations, check_model, reported, site_for
from sparsight.models import Site
from sparsight.models.site_choice import sites_meant

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
        sites: Where to look, as in `choose_sites` ("all.resid_post" ...); all sites of the store when None.
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
    chosen = list(store.sites) if sites is None else list(dict.fromkeys(sites_meant(sites, store.sites)))
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
    measure = Measure(lm, store, features, documents, resampling, seed)
    found: list[Found] = []
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
