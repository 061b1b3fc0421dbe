"""The page of a suite in a real browser: it loads alone, draws every site, sorts, and fits a narrow screen."""

from pathlib import Path

import pytest

from sparsight.suites import Measured, Suite, SuiteMember, SuiteRecord, write_suite_report

pytestmark = pytest.mark.browser
SITES = ("0.attn_z", "0.resid_post", "1.attn_z", "1.resid_post")


def member(site: str, width: int, l0: int) -> SuiteMember:
    fvu = 10 / (l0 * width) ** 0.5
    measured = Measured(
        n_tokens=1000, n_documents=10, fvu=fvu, fvu_low=0.9 * fvu, fvu_high=1.1 * fvu, l0=l0, l0_median=l0, dead=0.1,
        dense=0.0, cosine=0.9, relative_norm=0.8, loss=1.0, loss_added=fvu / 2, loss_added_low=0.4 * fvu,
        loss_added_high=0.6 * fvu, loss_added_by_zero=3.0, loss_added_by_mean=2.0, loss_recovered=1 - fvu / 6, kl=0.1,
        no_loss_because=None,
    )  # fmt: skip
    return SuiteMember(
        site=site, layer=int(site[0]), kind=site[2:], d_in=8, n_latents=width, target_l0=l0, config={}, scale=1.0,
        folder=f"sites/{site}/topk-{width}-k{l0}", frontier=width == 512, measured=measured,
    )  # fmt: skip


@pytest.fixture
def page(browser, tmp_path):
    settings = {
        "sites": list(SITES), "widths": [256, 512], "l0s": [8, 16], "n_tokens": 1000, "dtype": "float16", "context": 64,
        "seed": 0, "training": {"n_tokens": 4000, "batch_size": 256, "lr": 1e-3},
    }  # fmt: skip
    record = SuiteRecord(
        model="<b>hostile</b>",
        architecture="topk",
        settings=settings,
        members=[member(site, w, k) for site in SITES for w in (256, 512) for k in (8, 16)],
    )
    written = write_suite_report(tmp_path / "report.html", Suite(Path(tmp_path), record))
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.troubles, page.requests = [], []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(written.as_uri())
    yield page
    assert page.troubles == []
    assert len(page.requests) == 1 + len([url for url in page.requests if url.startswith("data:")])
    context.close()


def test_every_site_has_its_frontiers_and_the_layers_are_drawn(page):
    assert page.title() == "16 TopK dictionaries of <b>hostile</b>"
    assert page.locator("#layers svg.chart").count() == 2
    assert page.locator("#frontiers svg.chart").count() == 2 * len(SITES)
    assert page.locator("#frontiers svg.chart").first.locator("circle.dot").count() == 4
    assert page.locator("#frontiers svg.chart").first.bounding_box()["width"] > 400


def test_members_sort_by_a_click_and_the_best_stand_out(page):
    page.get_by_role("button", name="FVU").click()
    values = [
        float(t) for t in page.eval_on_selector_all(".members tbody tr", "r => r.map(x => x.cells[4].dataset.sort)")
    ]
    assert values == sorted(values, reverse=True)
    assert page.locator(".members tr.best").count() == 8


def test_a_narrow_screen_shows_it_all(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
