"""Linear, linear in each kind of text, or not: the verdict on planted representations where each is the known truth."""

import pytest
import torch
from planted_features import PlantedStore, directions, documents

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.labelled import Documents, Meaning, examples_of, labelled_features
from sparsight.evaluation.features.linearity import linearity_of
from sparsight.evaluation.features.nonlinearity import STRENGTHS, chosen_logistic, compare, verdict_of
from sparsight.evaluation.features.probes import logistic
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.features.within import linear_in_each
from sparsight.evaluation.record import Estimate
from sparsight.models import Site

D, N, KINDS = 12, 3000, 4
FEW = (600, 300, 900)
MEANINGS = {"label": Meaning("binary", ("no", "yes")), "kind": Meaning("categorical", ("a", "b", "c", "d"))}


def planted(at_home: str, elsewhere: str, *, turned: float = 0, seed: int = 77):
    """A bit and a kind for each token, the kind along directions of its own, the bit as `at_home` and `elsewhere` say.

    `one direction`: along the same direction in each kind. `of its own`: along another direction in each kind, and the
    directions of the other kinds are nuisance. `exclusive or`: the product of two signs. `faint`: one direction, with
    as much noise as leaves 60 %. A share `turned` of tokens has the opposite sign, and a mark that says so.
    """
    g = torch.Generator().manual_seed(seed)
    axes = directions(2 * KINDS + 1, D, g)
    bit, kind = torch.randint(2, (N,), generator=g), torch.randint(KINDS, (N,), generator=g)
    mark = torch.rand(N, generator=g) < turned
    sign = (2.0 * bit.double() - 1) * (1 - 2 * mark.double())

    def x(how: str) -> torch.Tensor:
        nuisance = 2.0 * torch.randint(2, (N, KINDS), generator=g).double() - 1
        if how == "one direction":
            nuisance[:, 0] = sign
        elif how == "of its own":
            nuisance[torch.arange(N), kind] = sign
        elif how == "exclusive or":
            nuisance[:, 1] = sign * nuisance[:, 0]
        noise = 0.1 * torch.randn(N, D, generator=g, dtype=torch.float64)
        if how == "faint":
            nuisance[:, 0] = 0.25 * sign + torch.randn(N, generator=g, dtype=torch.float64)
        return nuisance @ axes[:KINDS] + 2 * axes[KINDS:][kind] + 4 * mark[:, None] * axes[-1] + noise

    sites = {"embed": x(elsewhere), "0.resid_post": x(at_home)}
    sites["1.resid_pre"] = sites["0.resid_post"]
    token_ids = torch.randint(50, (N,), generator=g)
    return PlantedStore(sites, documents(N), token_ids, {"label": bit, "kind": kind, "mark": mark.long()})


def decided(store: PlantedStore, others: tuple[str, ...] = ("kind",)):
    features = {f.name: f for f in labelled_features(store, None, MEANINGS)}
    documents_, resampling = Documents.of(store), Resampling(100)
    few = examples_of(features["label"], documents_, sizes=FEW)
    home = Site.parse("0.resid_post")
    xs = tuple(store.rows(home, part.rows) for part in (few.fit, few.choose, few.judge))
    screen = compare(str(home), xs, few, resampling, seed=3).record
    sites = [str(site) for site in store.sites]
    return linearity_of(store, sites, few, [features[o] for o in others], documents_, screen, resampling, seed=3)


def test_one_direction_in_all_kinds_is_linear():
    found = decided(planted("one direction", "faint"))
    assert found.verdict == "linear"
    assert found.home.linear.value > 0.99
    assert found.home.gain.high <= 0.02
    assert found.home.n_fit == FEW[0]
    assert found.within is None
    assert found.elsewhere == []


def test_a_direction_for_each_kind_is_linear_within_and_said_to_be_linear_where_one_direction_is_all_there_is():
    """Of four signs one tells the bit, which one the kind says: their sum is right in 11 of 16 cases."""
    found = decided(planted("of its own", "faint"))
    assert found.verdict == "linear within"
    assert found.home.site == "0.resid_post"
    assert found.home.linear.value == pytest.approx(11 / 16, abs=0.05)
    assert found.home.gain.low > 0.2
    assert found.home.n_fit > FEW[0]
    w = found.within
    assert (w.given, w.linear) == ("kind", True)
    assert w.within.value > 0.99
    assert abs(w.shared) < 0.1
    assert [k.kind for k in w.kinds] == ["a", "b", "c", "d"]
    assert all(k.own and k.within > 0.98 and k.pooled < 0.8 for k in w.kinds)
    assert sum(k.n_judge for k in w.kinds) == 1000
    # 1.resid_pre holds what 0.resid_post holds, and is not said again.
    assert [(s.site, s.verdict) for s in found.elsewhere] == [("embed", "linear")]
    assert found.elsewhere[0].linear.value == pytest.approx(0.6, abs=0.05)
    assert "to one for each kind" in found.because
    assert "linear at embed (0." in found.because


def test_exclusive_or_is_linear_nowhere():
    found = decided(planted("exclusive or", "exclusive or"))
    assert found.verdict == "not linear"
    assert found.home.linear.value < 0.56
    assert found.home.mlp.value > 0.95
    assert [(s.site, s.verdict) for s in found.elsewhere] == [("embed", "not linear")]
    assert found.within.linear is False
    assert all(k.nonlinearity.low > 0.2 for k in found.within.kinds)
    assert "not linear at embed" in found.because


def test_where_there_is_no_other_feature_a_direction_for_each_kind_is_not_linear():
    store = planted("of its own", "faint")
    store.sites = store.sites[1:2]
    found = decided(store, others=())
    assert found.verdict == "not linear"
    assert "none to look within" in found.no_within


def test_what_few_tokens_do_not_decide_is_measured_on_more_and_may_stay_undecided():
    """One sign in forty is turned, and marked: an MLP adds 0.025, too near to 0.02 for a thousand tokens to tell."""
    found = decided(planted("one direction", "faint", turned=1 / 40), others=("mark",))
    assert found.verdict == "undecided"
    assert found.home.gain.low <= 0.02 < found.home.gain.high
    assert found.home.gain.value == pytest.approx(0.025, abs=0.01)
    assert found.home.n_fit > FEW[0]
    assert found.elsewhere == []
    # Told apart by the mark both kinds are linear; that does not decide what one probe for all lacks.
    assert (found.within.given, found.within.linear) == ("mark", True)


def test_what_neither_probe_tells_gets_no_verdict():
    store = planted("noise", "noise")
    with pytest.raises(UndefinedMetric, match=r"neither a linear probe .* is better than chance, 0\.500"):
        decided(store)


def test_an_interval_decides_only_where_the_bound_is_not_inside_it():
    def gain(low: float | None, value: float, high: float | None) -> Estimate:
        return Estimate(value=value, low=low, high=high)

    assert verdict_of(gain(-0.03, 0.01, 0.02)) == "linear"
    assert verdict_of(gain(-0.01, 0.0, 0.021)) == "undecided"
    assert verdict_of(gain(0.019, 0.04, 0.06)) == "undecided"
    assert verdict_of(gain(0.021, 0.03, 0.04)) == "not linear"
    assert [verdict_of(gain(None, value, None)) for value in (0.02, 0.03)] == ["linear", "not linear"]
    more, little, much = gain(0.01, 0.02, 0.03), gain(-0.01, 0.0, 0.01), gain(0.03, 0.04, 0.05)
    assert linear_in_each(more, little, [little, gain(0.0, 0.03, 0.06)])
    assert not linear_in_each(gain(-0.01, 0.02, 0.03), little, [])
    assert not linear_in_each(more, gain(0.0, 0.01, 0.03), [])
    assert not linear_in_each(more, little, [little, much])


def test_the_linear_probe_gets_the_penalty_that_is_best_on_the_choosing_documents():
    """80 tokens of 60 columns that all tell a little: noise is fitted unless the penalty is strong."""
    g = torch.Generator().manual_seed(5)
    bit = torch.randint(2, (N,), generator=g)
    x = torch.randn(N, 60, generator=g, dtype=torch.float64) + 0.2 * (2.0 * bit.double() - 1)[:, None]
    store = PlantedStore({"embed": x}, documents(N), torch.zeros(N, dtype=torch.int64), {"label": bit})
    e = examples_of(labelled_features(store, None, MEANINGS)[0], Documents.of(store), sizes=(80, 500, 1000))
    xs = tuple(store.rows(store.sites[0], part.rows) for part in (e.fit, e.choose, e.judge))
    probe, strength = chosen_logistic(xs, e)
    right = {
        s: (logistic(xs[0], e.fit.y, 2, strength=s).scores(xs[2]).argmax(dim=1) == e.judge.y).double().mean()
        for s in STRENGTHS
    }
    assert strength == STRENGTHS[0]
    assert right[0.01] > right[1.0] + 0.01
    assert (probe.scores(xs[2]).argmax(dim=1) == e.judge.y).double().mean() == right[strength]
