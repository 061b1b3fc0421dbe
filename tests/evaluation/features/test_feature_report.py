"""The report: planted features come out as planted, interventions move what they must, and bad input is refused."""

import json
import math

import pytest
import torch
from planted_features import PlantedStore, Reader, directions, documents

from sparsight.dictionaries import TopK
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.features import FeatureReport, Meaning, read_labels, report
from sparsight.evaluation.features.labelled import Documents, examples_of, labelled_features
from sparsight.evaluation.features.mediation import Exchange, StoredTexts, along, pairs_of, whole
from sparsight.evaluation.features.nonlinearity import compare
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.features.within import linear_within
from sparsight.models import Site

D, N, HOME = 16, 1500, Site.parse("0.resid_post")
DAYS = Meaning("cyclic", ("mon", "tue", "wed", "thu", "fri", "sat", "sun"), "day named by the token")
MEANINGS = {"day": DAYS}


def planted(seed: int = 61):
    """A day at every other token, of three words each, on a circle that the next token is read from; bits by row.

    `either` is the exclusive or of two bits, `noise` is drawn for each token, and `one` is a bit itself.
    """
    g = torch.Generator().manual_seed(seed)
    axes = directions(D, D, g)
    ring = 2 * math.pi * torch.arange(7, dtype=torch.float64) / 7
    places = 3 * torch.stack([ring.cos(), ring.sin()], dim=1) @ axes[:2]
    table = torch.zeros(40, D, dtype=torch.float64)
    word = torch.arange(1, 22)
    table[1:22] += places[(word - 1) % 7]
    unembed = torch.zeros(D, 40, dtype=torch.float64)
    unembed[:, 30:37] = places.T
    day = torch.randint(1, 22, (N // 2,), generator=g)
    token_ids = torch.stack([day, 30 + (day - 1) % 7], dim=1).reshape(-1)
    bits = torch.randint(2, (N, 2), generator=g)
    x = (
        table[token_ids]
        + (2 * bits.double() - 1) @ axes[2:4]
        + 0.1 * torch.randn(N, D, generator=g, dtype=torch.float64)
    )
    labels = {
        "day": torch.where(token_ids < 22, (token_ids - 1) % 7, -1),
        "one": bits[:, 0],
        "either": bits[:, 0] ^ bits[:, 1],
        "noise": torch.randint(2, (N,), generator=g),
    }
    other = torch.randn(N, D, generator=g, dtype=torch.float64)
    store = PlantedStore({"embed": other, "0.resid_post": x, "0.mlp_out": other}, documents(N), token_ids, labels)
    lm = Reader(table.float(), unembed)
    return store, lm, axes


def dictionary_of(axes: torch.Tensor, **where: object):
    """Atoms along the planted axes, both ways: bit one is latent 2 (and 2 + D when it is off)."""
    dictionary = TopK(2 * D, 8).build(D, torch.Generator().manual_seed(0))
    both = torch.cat([axes, -axes]).float()
    with torch.no_grad():
        dictionary.atoms.copy_(both)
        dictionary.W_enc.copy_(both.T)
        dictionary.b_enc.zero_()
        dictionary.b_dec.zero_()
    for name, value in where.items():
        setattr(dictionary, name, value)
    return dictionary


@pytest.fixture(scope="module")
def found() -> FeatureReport:
    store, lm, axes = planted()
    dictionary = dictionary_of(axes, site=HOME, model="tiny")
    return report(lm, store, dictionaries={"axes": dictionary}, meanings=MEANINGS, n_resamples=40, seed=3)


def of(found: FeatureReport, name: str):
    return next(r for r in found.representations if r.feature == name)


def test_what_is_there_is_found_at_its_site_and_what_is_not_is_not(found):
    for name in ("day", "one"):
        r = of(found, name)
        assert r.represented
        assert r.home == "0.resid_post"
        at = {s.site: s.accuracy.value for s in r.sites}
        assert at["0.resid_post"] > 0.98
        assert at["embed"] < 0.65
    noise = of(found, "noise")
    assert not noise.represented
    # Shuffled labels: no better than control labels, within the interval.
    selectivity = next(s.selectivity for s in noise.sites if s.site == noise.home)
    assert selectivity.low < 0 or abs(selectivity.value) < 0.1


def test_a_feature_of_the_token_is_said_to_be_one_and_still_holds_on_words_never_seen(found):
    described = {f.name: f for f in found.features}
    assert described["day"].token_identity == 1
    assert described["one"].token_identity < 0.65
    types = of(found, "day").heldout_types
    assert types.accuracy.value > 0.95
    assert types.control is None or types.control.value < 0.5


def test_exclusive_or_is_told_by_the_mlp_and_by_no_linear_probe(found):
    r = of(found, "either")
    assert r.linearity.home.gain.value > 0.3
    by = {p.probe: p.accuracy.value for p in r.probes if p.k is None}
    assert by["mlp"] > 0.9
    assert max(by["logistic"], by["discriminant"], by["difference in means"]) < 0.65
    assert of(found, "one").linearity.verdict == of(found, "day").linearity.verdict == "linear"


def test_what_is_not_told_has_no_verdict_on_how(found):
    assert of(found, "noise").linearity is None
    assert "is better than chance" in of(found, "noise").not_measured["linearity"]


def test_exclusive_or_is_linear_within_each_class_of_one_of_its_bits(found):
    """The store labels one bit; within either of its classes the exclusive or is the other bit, up to its sign."""
    assert of(found, "either").linearity.verdict == "linear within"
    assert "in each one" in found.to_table()
    w = of(found, "either").linearity.within
    assert w.given == "one"
    assert w.pooled.value < 0.65
    assert w.within.value > 0.98
    assert w.gain.low > 0.3
    assert abs(w.nonlinearity.value) < 0.02
    assert w.shared == pytest.approx(-1, abs=0.05)


def within(store, labels, sizes=(1500, 600, 1200)):
    """The exclusive or within the classes of other features."""
    features = labelled_features(store, labels, MEANINGS)
    e = examples_of(features[0], Documents.of(store), sizes=sizes, seed=1)
    xs = tuple(store.rows(HOME, part.rows) for part in (e.fit, e.choose, e.judge))
    pooled = compare(str(HOME), xs, e, Resampling(20), seed=1)
    return linear_within(xs, e, features[1:], pooled, Resampling(20))


def test_a_feature_that_tells_the_class_itself_is_no_way_to_be_linear():
    """Within the classes of a copy of the labels there is one class only: nothing is fitted, and nothing is won."""
    store, _, _ = planted()
    either = store.labels(slice(0, N))["either"]
    found = within(store, {"either": either, "copy": either})
    assert found.given == "copy"
    assert found.within == found.pooled
    assert not found.linear
    with pytest.raises(UndefinedMetric, match="none to look within"):
        within(store, {"either": either})


def test_what_to_look_within_is_chosen_without_a_look_at_the_documents_that_judge():
    """One of two features is the bit on the choosing documents and noise on the judging ones, the other the reverse."""
    store, _, _ = planted()
    side, labels = Documents.of(store).side, store.labels(slice(0, N))
    bit, noise = labels["one"], labels["noise"]
    named = {"choosing": torch.where(side == 2, noise, bit), "judging": torch.where(side == 1, noise, bit)}
    found = within(store, {"either": labels["either"], **named})
    assert found.given == "choosing"
    assert found.within.value < 0.65
    assert not found.linear


def test_what_is_not_defined_at_the_tokens_is_no_way_to_look_within():
    store, _, _ = planted()
    labels = store.labels(slice(0, N))
    holes = labels["one"].clone()
    holes[::5] = -1
    many = torch.arange(N) % 17
    for other in (holes, many):
        with pytest.raises(UndefinedMetric, match="none to look within"):
            within(store, {"either": labels["either"], "other": other})


def test_days_are_a_circle_of_two_dimensions(found):
    r = of(found, "day")
    assert (r.geometry.family, r.geometry.periods) == ("circle", [7.0])
    assert r.dimension.participation == pytest.approx(2, abs=0.15)
    assert r.dimension.leace_rank == 2
    assert of(found, "one").dimension.leace_rank == 1
    names = [name for name, _, _ in found.points["day"]]
    assert names == list(DAYS.classes)
    radii = [math.hypot(x, y) for _, x, y in found.points["day"]]
    assert radii == pytest.approx([1] * 7, abs=0.1)


def test_the_plane_of_the_circle_mediates_and_turning_it_turns_the_answer(found):
    r = of(found, "day")
    assert r.mediation.full.low > 0
    assert r.dimension.mediated_rank == 2
    assert r.mediation.random < 0.6
    assert abs(r.mediation.complement.value) < 0.1
    assert 0.98 < r.rotation.moved.value <= 1
    assert r.rotation.moved.value == pytest.approx(sum(r.rotation.by_steps) / 6)
    assert r.rotation.unmoved == 1
    assert r.rotation.random < 0.4
    # Seven days in another order are on no circle: turning one fitted to it moves no answer in that order.
    assert r.rotation.shuffled < 0.5
    assert r.rotation.by_circles[0] > 0.98
    # The bit is decodable and the model does not read it: no effect to divide up.
    assert of(found, "one").mediation is None
    assert "no effect of the feature" in of(found, "one").not_measured["mediation"]


def test_the_planted_latents_are_found_apart_from_the_representation(found):
    best = next(x for x in found.latents if x.feature == "one")
    assert best.latent in (2, 2 + D)
    assert best.auroc > 0.99
    chosen = next(s for s in found.latent_sets if s.feature == "day")
    assert set(chosen.latents) >= {0, 1, D, D + 1}
    assert chosen.enough
    assert chosen.mediated.value == pytest.approx(1, abs=0.1)
    measures = {(link.source, link.measure) for link in found.links}
    assert ("feature day", "AUROC") in measures
    assert ("representation day at 0.resid_post", "mediated fraction") in measures
    assert ("representation day at 0.resid_post", "subspace in the atoms' span") in measures


def test_the_record_survives_json_and_shows_itself(found):
    assert FeatureReport.model_validate_json(found.to_json()) == found
    table, page = found.to_table(), found.to_html()
    for name in ("day", "one", "either", "noise"):
        assert name in table
        assert f'id="{name}"' in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_one_seed_gives_one_report(found):
    store, lm, _ = planted()
    again = report(lm, store, ["one"], meanings=MEANINGS, n_resamples=40, seed=3)
    assert of(again, "one").probes == of(found, "one").probes


def test_exchanging_all_or_nothing():
    """Along every direction is the whole exchange; along none costs nothing."""
    store, lm, _ = planted()
    texts = StoredTexts(store)
    day = labelled_features(store, ["day"], MEANINGS)[0]
    pairs = pairs_of(examples_of(day, Documents.of(store)).judge, texts, n_pairs=20)
    assert (store.labels(pairs.base)["day"] != store.labels(pairs.other)["day"]).all()
    assert (store.labels(pairs.base)["day"] == store.labels(pairs.same)["day"]).all()
    assert (store.document_ids[pairs.base] % 3 == 0).all()
    exchange = Exchange(lm, store, texts, HOME, pairs)
    everything = torch.eye(D, dtype=torch.float64)[None]
    torch.testing.assert_close(exchange.costs(along(everything)), exchange.costs(whole), rtol=1e-4, atol=1e-4)
    nothing = exchange.costs(along(everything, complement=True))
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-4)
    torch.testing.assert_close(exchange.clean, exchange._likelihood(lambda x, rows: x))


def test_a_model_that_predicts_nothing_leaves_interventions_out_and_says_so():
    store, lm, _ = planted()
    lm.has_causal_loss = False
    found = report(lm, store, ["day"], ["0.resid_post"], meanings=MEANINGS, n_resamples=10)
    assert of(found, "day").mediation is None
    assert "predicts no next token" in of(found, "day").not_measured["mediation"]


def test_labels_that_are_not_aligned_with_tokens_are_refused():
    store, _, _ = planted()
    with pytest.raises(
        DataError, match="labels of day are misaligned: expected one for each of the 1500 stored tokens"
    ):
        report(None, store, {"day": torch.zeros(1499, dtype=torch.int64)})
    with pytest.raises(DataError, match="has no feature 'colour'"):
        report(None, store, ["colour"])
    with pytest.raises(DataError, match=r"expected 1\.resid_post; harvest"):
        report(None, store, ["day"], ["1.resid_post"])
    with pytest.raises(DataError, match=r"expected 1\.resid_post; harvest"):
        report(None, store, ["day"], ["all.resid_post", "0-1.resid_post"])
    with pytest.raises(DataError, match="has 2 classes, got label 6"):
        report(None, store, ["day"], meanings={"day": Meaning("binary", ("no", "yes"))})


def test_a_class_without_examples_is_left_out_and_a_feature_without_two_is_refused():
    store, _, _ = planted()
    rare = torch.full((N,), -1)
    rare[:600] = torch.arange(600) % 2
    rare[3] = 2  # one example, in a held-out document
    found = report(None, store, {"rare": rare}, ["embed"], n_resamples=10)
    assert found.features[0].left_out == {"2": "no examples to fit on, to choose on"}
    with pytest.raises(DataError, match="no feature has examples on every side: none has 1 classes"):
        report(None, store, {"none": torch.zeros(N, dtype=torch.int64)}, ["embed"])


def test_one_document_gives_no_interval_and_none_at_all_no_report():
    store, _, _ = planted()
    ids = torch.where(store.document_ids % 3 == 0, 0, store.document_ids)
    one = PlantedStore({"embed": store.x[Site.parse("embed")]}, ids, store.token_ids, store.labels(slice(0, N)))
    found = report(None, one, ["one"], n_resamples=10)
    assert of(found, "one").sites[0].accuracy.low is None
    assert any("one held-out document only: no interval is possible" in note for note in found.notes)
    alone = PlantedStore({"embed": store.x[Site.parse("embed")]}, ids * 0, store.token_ids, store.labels(slice(0, N)))
    with pytest.raises(DataError, match="got 1 in all"):
        report(None, alone, ["one"])


def test_a_dictionary_of_another_site_or_model_is_refused_unless_forced():
    store, _, axes = planted()
    elsewhere = {"axes": dictionary_of(axes, site=Site.parse("1.resid_post"), model="tiny")}
    with pytest.raises(DataError, match=r"expected 1\.resid_post"):
        report(None, store, ["one"], dictionaries=elsewhere)
    foreign = {"axes": dictionary_of(axes, site=HOME, model="other")}
    with pytest.raises(DataError, match="was made for model other, got activations of tiny; force"):
        report(None, store, ["one"], dictionaries=foreign)
    forced = report(None, store, ["one"], ["embed"], foreign, n_resamples=10, force=True)
    assert forced.latent_sets[0].site == "0.resid_post"


def test_labels_by_document_are_read_from_a_file(tmp_path):
    store, _, _ = planted()
    file = tmp_path / "labels.json"
    content = {"odd": {"classes": ["no", "yes"], "documents": {str(i): ["no", "yes"][i % 2] for i in range(100)}}}
    file.write_text(json.dumps(content))
    labels, meanings = read_labels(file, store)
    assert labels["odd"][:20].tolist() == [0] * 10 + [1] * 10
    assert labels["odd"][1000:].tolist() == [-1] * 500
    assert meanings["odd"].kind == "binary"
    for wrong, message in (
        ({"odd": {"classes": ["no", "yes"], "documents": {"900": 1}}}, "none of its 1 documents is in the store"),
        ({"odd": {"classes": ["no", "yes"], "documents": {"1": "maybe"}}}, "no class 'maybe'"),
        ({"odd": {"classes": ["no", "yes"], "rows": [0, 5]}}, r"must be -1 or in \[0, 2\), got 5"),
        ({"odd": {"classes": ["no", "yes"]}}, '"documents" or "rows"'),
        ({"odd": {"classes": ["no"], "kind": "round", "rows": []}}, "is of kind 'round'"),
        ([], "must be an object"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            read_labels(file, store)
