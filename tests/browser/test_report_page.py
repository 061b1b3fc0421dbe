"""The report in a real browser: it loads alone, draws, shades, searches and follows its links."""

import pytest
from fake_report import fake_report

from sparsight.interpretation import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", fake_report(40))


@pytest.fixture
def page(browser, report):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.troubles, page.requests = [], []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert page.troubles == []
    assert all(url.startswith(("file://", "data:")) for url in page.requests)
    assert len([url for url in page.requests if url.startswith("file://")]) == 1
    context.close()


def shown(page):
    return page.locator(".latent:visible").count()


def test_the_page_loads_alone_and_hostile_text_does_not_run(page):
    assert page.title() == "Two dictionaries of the residual stream"


def test_figures_are_drawn_at_a_size_that_can_be_read(page):
    charts = page.locator("svg.chart")
    assert charts.count() == 3
    for i in range(3):
        assert charts.nth(i).bounding_box()["width"] > 250
        assert charts.nth(i).locator("path.line").count() >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shading_grows_with_the_value_and_text_stays_readable(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.locator("#latents").scroll_into_view_if_needed()
    contrasts = page.evaluate(
        """() => {
          const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
          const paint = (...colours) => {
            for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
          };
          const light = (rgb) => {
            const [r, g, b] = rgb.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          return [...document.querySelectorAll(".latents:not([hidden]) .latent mark")].slice(0, 300).map((mark) => {
            const sheet = getComputedStyle(mark.closest(".latent")).backgroundColor;
            const style = getComputedStyle(mark);
            const ground = light(paint(sheet, style.backgroundColor)), ink = light(paint(style.color));
            const contrast = (Math.max(ground, ink) + .05) / (Math.min(ground, ink) + .05);
            return [Number(style.getPropertyValue("--a")), contrast, Math.abs(ground - light(paint(sheet)))];
          });
        }"""
    )
    assert len(contrasts) == 300
    assert min(contrast for _, contrast, _ in contrasts) >= 4.5
    faint = [distance for share, _, distance in contrasts if share < 0.2]
    strong = [distance for share, _, distance in contrasts if share > 0.8]
    assert max(faint) < min(strong)


def test_pointing_at_a_token_shows_its_value(page):
    mark = page.locator(".latents:not([hidden]) .latent .r mark").first
    mark.scroll_into_view_if_needed()
    mark.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert tip.text_content() == f"value {mark.get_attribute('data-v')}"


def test_search_narrows_the_list_and_escape_restores_it(page):
    everything = shown(page)
    assert everything >= 39
    page.keyboard.press("/")
    page.keyboard.type("PEAK17x")
    assert shown(page) == 0
    assert page.locator("#nothing").is_visible()
    page.locator("#search").fill("owned")
    assert shown(page) == 1
    assert page.locator("#count").text_content() == f"1 of {everything} shown"
    page.locator("#search").press("Escape")
    assert shown(page) == everything


def test_groups_and_dictionaries_can_be_chosen(page):
    everything = shown(page)
    page.get_by_role("button", name="Random").click()
    assert 0 < shown(page) < everything
    page.get_by_role("button", name="JumpReLU", exact=True).click()
    assert page.locator("#jumprelu-latents").is_visible()
    assert not page.locator("#topk-latents").is_visible()


def test_a_link_of_the_feature_table_opens_its_latent_in_the_other_dictionary(page):
    page.locator("#search").fill("nothing has this text")
    link = page.locator(".features a[href^='#jumprelu-latent-']").first
    target = link.get_attribute("href")
    link.click()
    card = page.locator(target)
    page.wait_for_timeout(200)
    assert card.is_visible()
    assert 0 <= card.bounding_box()["y"] < 500
    assert page.evaluate("document.activeElement.id") == target[1:]


def test_typing_a_number_goes_to_that_latent(page):
    page.locator("#jump").fill("#17")
    page.locator("#jump").press("Enter")
    page.wait_for_timeout(200)
    assert page.url.endswith("#topk-latent-17")
    assert 0 <= page.locator("#topk-latent-17").bounding_box()["y"] < 500


def test_a_heading_sorts_the_feature_table(page):
    page.get_by_role("button", name="AUROC").first.click()
    values = [float(t) for t in page.locator(".features tbody tr td:nth-child(5)").all_text_contents()]
    assert values == sorted(values, reverse=True)


def test_sorting_by_index_puts_the_smallest_first(page):
    page.locator("#order").select_option("latent")
    indices = [int(v) for v in page.eval_on_selector_all("#topk-latents .latent", "c => c.map(x => x.dataset.latent)")]
    assert indices == sorted(indices)


def test_whole_contexts_can_be_shown(page):
    card = page.locator("#topk-latents .latent").first
    card.scroll_into_view_if_needed()
    before = card.bounding_box()["height"]
    card.get_by_role("button", name="Show whole contexts").click()
    assert card.bounding_box()["height"] > before
    assert card.locator(".whole").get_attribute("aria-expanded") == "true"


def test_nothing_overflows_a_narrow_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_scheme_can_be_switched(page):
    page.emulate_media(color_scheme="light")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#scheme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
