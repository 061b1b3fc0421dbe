"""Sites are chosen by short texts, and a site that the model lacks is answered with those it has."""

from types import SimpleNamespace

import pytest

from sparsight.errors import ModelError
from sparsight.models import Site, choose_sites
from sparsight.models.site_choice import names_one_site, sites_meant

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


@pytest.mark.parametrize(
    "wanted",
    ["resid_post", "x.resid_post", "1-0.mlp_out", "0-.mlp_out", "².mlp_out", "all.middle", "0..mlp_out", "0.embed", ""],
)
def test_a_text_that_names_no_site_is_refused_with_what_can_be_written(wanted):
    with pytest.raises(
        ValueError, match=r"expected sites such as 2\.resid_post, .* or all, got .*; kinds: resid_pre, "
    ):
        choose_sites(Model(), wanted)


def test_at_least_one_site_must_be_named():
    with pytest.raises(ValueError, match="at least one"):
        choose_sites(Model(), [])


def test_a_site_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(ModelError, match=r"two layers has no site 2\.mlp_out; it has embed; layers 0-1 × attn_z"):
        choose_sites(Model(), ["all", "2.mlp_out"])
    with pytest.raises(ModelError, match=r"has no site 2\.mlp_out; it has"):
        choose_sites(Model(), "0-1000000000000.mlp_out")


def test_all_layers_of_a_kind_are_those_that_have_it_where_sites_are_few():
    held = [Site(1, "mlp_in"), Site(0, "resid_post"), Site(3, "resid_post")]
    assert sites_meant("all.resid_post", held) == held[1:]
    assert sites_meant(["3.resid_post", "all.mlp_in", "3.resid_post"], held) == [held[2], held[0], held[2]]
    assert sites_meant("all.mlp_out", held) == [Site(layer, "mlp_out") for layer in (0, 1, 3)], "none of these is held"


def test_the_text_of_one_site_is_told_from_texts_that_may_mean_several():
    assert all(map(names_one_site, ["embed", "2.resid_post", Site(0, "mlp_out")]))
    assert not any(map(names_one_site, ["all", "all.mlp_out", "0-0.mlp_out", "0.mlp_in,mlp_out", ["embed"]]))
