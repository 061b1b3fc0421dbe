"""How sites are written, read and sorted."""

import pytest

from sparsight.models import KINDS, Site
from sparsight.models.site import describe_sites

ALL = [Site(None, "embed"), *(Site(layer, kind) for layer in range(3) for kind in KINDS if kind != "embed")]


@pytest.mark.parametrize("site", ALL, ids=str)
def test_a_site_reads_back_as_it_was_written(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert Site.parse(site) is site


@pytest.mark.parametrize(
    "text",
    ["", "resid_post", "2", "2.", ".resid_post", "x.resid_post", "-1.resid_post", "2.resid", "0.embed", "².mlp_in"],
)
def test_what_is_no_site_is_refused_with_the_kinds(text: str) -> None:
    with pytest.raises(ValueError, match=r"LAYER\.KIND.*kinds: embed, resid_pre"):
        Site.parse(text)


@pytest.mark.parametrize(("layer", "kind"), [(None, "resid_pre"), (0, "embed"), (-1, "mlp_in"), (0, "head")])
def test_a_site_that_cannot_be_is_not_made(layer: int | None, kind: str) -> None:
    with pytest.raises(ValueError, match=r"expected|numbered"):
        Site(layer, kind)


def test_sites_sort_in_the_order_of_the_pass_and_serve_as_keys() -> None:
    assert sorted(reversed(ALL)) == ALL
    assert Site(10, "resid_pre") > Site(9, "resid_post") >= Site(9, "resid_post") > Site(None, "embed")
    assert Site(0, "attn_z") < Site(0, "attn_out") <= Site(0, "resid_mid")
    assert {Site(1, "mlp_in"): 1}[Site.parse("1.mlp_in")] == 1


def test_many_sites_are_described_on_one_line() -> None:
    some = ["embed", "0.mlp_in", "1.mlp_in", "3.mlp_in", "4.attn_z", "4.mlp_in"]
    described = describe_sites([Site.parse(name) for name in some])
    assert described == "embed; layers 0-1 × mlp_in; layer 3 × mlp_in; layer 4 × attn_z, mlp_in"


def test_the_width_of_a_site_may_be_asked_by_its_name(tiny):
    lm = tiny("gpt2")
    assert lm.width("1.resid_post") == lm.width(Site(1, "resid_post")) == 16
