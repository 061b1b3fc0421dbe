"""Sites are chosen by short texts, and a site that the model lacks is answered with those it has."""

from types import SimpleNamespace

import pytest

from sparsight.errors import ModelError
from sparsight.models import Site
from sparsight.suites import choose_sites

KINDS = ("attn_z", "mlp_out", "resid_post")


class Model(SimpleNamespace):
    """Two layers with three kinds of site each, and the embedding."""

    name, n_layers = "two layers", 2

    def sites(self) -> list[Site]:
        return [Site(None, "embed"), *(Site(layer, kind) for layer in range(2) for kind in KINDS)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", "0.attn_z 0.mlp_out 0.resid_post 1.attn_z 1.mlp_out 1.resid_post"),
        ("all.resid_post", "0.resid_post 1.resid_post"),
        ("0-1.mlp_out,attn_z", "0.attn_z 0.mlp_out 1.attn_z 1.mlp_out"),
        ("1.resid_post", "1.resid_post"),
        ("0,1.attn_z", "0.attn_z 1.attn_z"),
        (["1.resid_post", "embed", "1.resid_post", Site(0, "attn_z")], "embed 0.attn_z 1.resid_post"),
    ],
)
def test_a_text_names_sites_in_the_order_of_a_forward_pass_each_once(wanted, expected):
    assert [str(site) for site in choose_sites(Model(), wanted)] == expected.split()


@pytest.mark.parametrize("wanted", ["resid_post", "x.resid_post", "1-0.mlp_out", "all.middle", "0..mlp_out", []])
def test_a_text_that_names_no_site_is_refused(wanted):
    with pytest.raises(ValueError, match=r"expected|at least one"):
        choose_sites(Model(), wanted)


def test_a_site_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(ModelError, match=r"two layers has no site 2\.mlp_out; it has embed; layers 0-1 × attn_z"):
        choose_sites(Model(), ["all", "2.mlp_out"])
