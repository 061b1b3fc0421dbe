"""The report as a file: what it says, that it is safe, and that it stands alone."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fake_report import HOSTILE, fake_dictionary, fake_report

from sparsight.interpretation import Estimate, Example, FeatureMatch, write_report
from sparsight.interpretation.dictionary_report import _short
from sparsight.interpretation.report import context, number, render, visible


class Outline(HTMLParser):
    """Tags with their attributes, the text outside of scripts and styles, and whether tags pair up."""

    VOID = ("meta", "link", "input", "br", "path", "rect", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def attributes(self, name):
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def html() -> str:
    return render(fake_report())


@pytest.fixture(scope="module")
def page(html) -> Outline:
    return Outline(html)


def test_every_tag_is_closed_in_order(page):
    assert page.open == []


def test_the_page_shows_the_numbers_it_was_given_with_their_intervals(page):
    text = re.sub(r"\s+", " ", page.text)
    assert "0.0831" in text
    assert "[0.0802, 0.0862]" in text
    assert "not measured" in text  # a quantity one dictionary lacks is said to be missing, not shown as 0
    assert "sparsight demo --out x" in text


def test_hostile_text_is_shown_and_never_run(html, page):
    assert HOSTILE not in html
    assert HOSTILE in page.text  # the reader sees it as it is in the corpus
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_security_policy_allows_the_page_own_script_only(html):
    import base64
    import hashlib

    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_the_page_asks_for_no_other_file(html, page):
    for name in ("src", "href", "action", "srcset", "poster", "data"):
        assert all(value.startswith(("#", "data:,")) for value in page.attributes(name))
    assert "://" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_a_latent_is_never_called_a_feature(page):
    text = page.text + " ".join(page.attributes("data-tip")) + " ".join(page.attributes("aria-label"))
    for index in re.finditer(r"feature", text, re.IGNORECASE):
        around = text[max(0, index.start() - 30) : index.end() + 12].lower()
        assert not re.search(r"feature\s*#?\s*\d|latent feature|feature index", around), around
    assert re.search(r"latent\s#17", text)


def test_every_link_leads_to_something_on_the_page(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [href[1:] for href in page.attributes("href") if href.startswith("#")]
    assert "topk-latent-17" in ids
    assert set(targets) <= set(ids)


def test_features_told_best_come_first_and_classes_seen_too_seldom_last():
    report = fake_report(3)
    aurocs = {"a": 0.8, "b": 0.9, "c": 1.0}
    matches = [
        FeatureMatch(feature=f, label="x", latent=17, auroc=auroc, f1=0.5, n_positive=3 if f == "c" else 99, n=200)
        for f, auroc in aurocs.items()
    ]
    html = render(replace(report, dictionaries=[replace(report.dictionaries[0], matches=matches)]))
    assert re.findall(r'<tr(?: class="few")?><th scope="row">(\w)</th>', html) == ["b", "a", "c"]
    assert '<tr class="few"><th scope="row">c</th>' in html


def test_a_page_of_two_hundred_latents_stays_under_three_megabytes(tmp_path):
    path = write_report(tmp_path / "folder" / "report.html", fake_report(100))
    assert path.stat().st_size < 3e6
    assert list(path.parent.iterdir()) == [path]


def test_two_dictionaries_that_share_an_address_are_refused():
    report = fake_report(2)
    twins = [fake_dictionary("top k", 2, 0), fake_dictionary("Top-K", 2, 1)]
    with pytest.raises(ValueError, match="names that differ"):
        render(replace(report, dictionaries=twins))


def test_a_report_without_features_figures_or_latents_is_still_a_page(html):
    bare = replace(fake_report(2), dictionaries=[], figures=[], measurements=[], notes=[])
    page = Outline(render(bare))
    assert page.open == []
    assert "Labelled features" not in page.text


def test_tokens_are_shaded_by_their_share_of_the_maximum():
    line = context(Example(("a", "b", "c"), (0.0, 5.0, 2.5), 1, 0, 1), 10.0, True)
    assert re.findall(r"--a:([\d.]+)", line) == ["0.50", "0.25"]
    assert re.findall(r'data-v="([^"]+)"', line) == ["5.00", "2.50"]
    assert re.sub(r"<[^>]+>", "", line) == "5.00a b c"
    assert 'class="peak"' in line


def test_words_are_set_apart_and_pieces_of_words_are_not():
    tokens = ("un", "##like", "##ly", "end", ".")
    line = context(Example(tokens, (0.0, 1.0, 0.0, 0.0, 0.0), 1, 0, 1), 1.0, True)
    assert re.sub(r"<[^>]+>", "", line) == "1.00unlikely end."
    line = context(Example(("It", " is", "land"), (0.0, 1.0, 0.0), 1, 0, 1), 1.0, False)
    assert re.sub(r"<[^>]+>", "", line) == "1.00It island"


def test_cut_text_is_marked_on_the_side_where_it_was_cut():
    line = re.sub(r"<[^>]+>", "", context(Example(("a",), (1.0,), 0, 0, 9, True, False), 1.0, True))
    assert line == "1.00… a"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.08312, "0.0831"),
        (16.0, "16.0"),
        (16, "16"),
        (99.96, "100"),
        (999.4, "999"),
        (1024, "1,024"),
        (-3.14159, "−3.14"),
        (2.1e-5, "2.1·10⁻⁵"),
        (1.0, "1.00"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_white_space_alone_can_be_seen():
    assert [visible(t) for t in (" ", "\n", " the", "  ")] == ["␣", "↵", "the", "␣␣"]


def test_an_estimate_without_an_interval_shows_none():
    report = fake_report(2)
    only = replace(report.measurements[1], estimates={"TopK": Estimate(16.0)})
    text = Outline(render(replace(report, measurements=[only]))).text
    assert "[" not in text[text.index("Mean number of active latents.") :][:200]


def test_a_title_has_room_for_two_folders_of_a_long_path():
    assert _short("/data/models/minilm/model") == "minilm/model"
    assert _short("openai-community/gpt2") == "openai-community/gpt2"
    assert _short("organism") == "organism"
