"""The shipped model: its language is linear in each domain and not across them, on texts drawn for this test."""

import pytest

from sparsight.activations import ActivationStore, harvest
from sparsight.evaluation.features import report
from sparsight.models import load_model
from sparsight.models.organism import corpus


@pytest.mark.slow
def test_the_organism_has_language_linear_in_each_domain_and_not_across_them(tmp_path):
    lm = load_model("organism", device="cpu")
    harvest(lm, corpus(904, 1500), ["embed", "2.resid_mid"], tmp_path / "store", n_tokens=40_000, heldout=0.3)
    store = ActivationStore(tmp_path / "store")
    found = report(None, store, ["language", "domain", "is_bit"])
    language, _, is_bit = (r.linearity for r in found.representations)
    assert is_bit.verdict == "linear"
    assert language.verdict == "linear within"
    assert language.home.site == "2.resid_mid"
    assert language.within.given == "domain"
    assert language.within.within.value > 0.97
    assert language.within.shared < 0.3
    assert [s.site for s in language.elsewhere] == ["embed"]
    assert language.elsewhere[0].verdict != "not linear"
