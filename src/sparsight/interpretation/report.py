"""One HTML file that holds a whole report: no network, no other file, no script but its own."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparsight.interpretation.examples import Example
from sparsight.interpretation.figures import bar_strip
from sparsight.interpretation.frame import asset, rendered_page, write_page
from sparsight.interpretation.page import DictionaryPage, FeatureMatch, ReportPage
from sparsight.interpretation.summaries import TELLING

CHIP_FROM = 0.9  # a weaker match stays in the table of features and is no heading for a latent
ENOUGH = 20  # tokens of a class, below which its AUROC says little
GROUPS = {"best": "Most energy", "random": "Random", "label": "Best for a label"}


def write_report(path: Path | str, page: ReportPage) -> Path:
    """Write a page that opens anywhere, offline, and never asks for another file.

    Text from models and corpora is escaped throughout, and the page's own security policy refuses any script but the
    one it was written with, any connection and any image from elsewhere. The file appears whole or not at all.

    Args:
        path: File to write; folders above it are made.
        page: What to show.
    Returns:
        The path written.
    Raises:
        ValueError: two dictionaries have names that cannot be told apart in an address.
    """
    return write_page(path, render(page))


def render(page: ReportPage) -> str:
    """The page as one string of HTML."""
    slugs = [slug(dictionary.name) for dictionary in page.dictionaries]
    if len(set(slugs)) != len(slugs) or not all(slugs):
        raise ValueError(f"dictionaries need names that differ in letters or digits, got {slugs}")
    filters: dict[str, Callable[..., Any]] = {
        "slug": slug,
        "number": number,
        "visible": visible,
        "context": context,
        "strip": bar_strip,
    }
    return rendered_page(
        asset("report.html"),
        "report",
        page.title,
        filters,
        page=page,
        shown={d.name: {summary.latent for summary in d.latents} for d in page.dictionaries},
        chip_from=CHIP_FROM,
        enough=ENOUGH,
        feature_rows=_feature_rows(page.dictionaries),
        group_titles=_groups_present(page.dictionaries),
        latents_intro=_latents_intro(page.dictionaries),
        spaced=_needs_spaces(page.dictionaries),
    )


def slug(name: str) -> str:
    """A name as it can stand in an address: lower case, letters and digits joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def number(value: float | int) -> str:
    """Three significant digits, or all of a whole number, not in the notation of programs: 0.083, 1,024, 2.1·10⁻⁵."""
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) >= 999.5:
        return f"{value:,.0f}".replace("-", "−")
    exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    if exponent < -4:
        mantissa = f"{value / 10.0**exponent:.1f}".replace("-", "−")
        return f"{mantissa}·10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:.{max(0, 2 - exponent)}f}".replace("-", "−")


def visible(token: str) -> str:
    """A token that can be seen when it stands alone: white space is drawn."""
    return token.replace("\n", "↵").replace("\t", "⇥").strip(" ") or "␣" * len(token)


def context(example: Example, maximum: float | int, spaced: bool) -> Markup:
    """One context as a line: what comes before the peak, then the peak and what comes after, shaded by value."""
    before = _shaded(example, range(example.peak), maximum, spaced)
    after = _shaded(example, range(example.peak, len(example.tokens)), maximum, spaced)
    return Markup(
        '<li><span class="v">{}</span><span class="l"><span>{}{}{}</span></span><span class="r">{}{}</span></li>'
    ).format(
        number(example.values[example.peak]),
        "… " if example.cut_before else "",
        before,
        " " if spaced and example.peak and _space_before(example.tokens[example.peak]) else "",
        after,
        " …" if example.cut_after else "",
    )


def _shaded(example: Example, part: range, maximum: float | int, spaced: bool) -> Markup:
    pieces: list[str] = []
    for i in part:
        token, value = _one_line(example.tokens[i]), example.values[i]
        if spaced and i != part.start and _space_before(token):
            pieces.append(" ")
        if spaced and len(token) > 2:
            token = token.removeprefix("##")
        if value == 0:
            pieces.append(str(Markup.escape(token)))
            continue
        share = min(1.0, abs(value) / maximum) if maximum > 0 else 1.0
        names = " ".join(["neg"] * (value < 0) + ["peak"] * (i == example.peak))
        kind = f' class="{names}"' if names else ""
        pieces.append(f'<mark{kind} style="--a:{share:.2f}" data-v="{number(value)}">{Markup.escape(token)}</mark>')
    return Markup("".join(pieces))  # every token went through escape above


def _one_line(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "")


def _space_before(token: str) -> bool:
    """Whether a tokenizer that leaves white space out of its tokens had some before this one."""
    return not token.startswith("##") and token not in {".", ",", ";", ":", "!", "?", "%"}


def _needs_spaces(dictionaries: Sequence[DictionaryPage]) -> bool:
    """Whether tokens carry no white space of their own, as those of word-level and WordPiece tokenizers do."""
    tokens = (t for d in dictionaries for summary in d.latents for e in summary.contexts for t in e.tokens)
    return not any(token[:1].isspace() or token[-1:].isspace() for token in tokens)


@dataclass(frozen=True)
class _FeatureRow:
    feature: str
    label: str
    n_positive: int
    n: int
    by_dictionary: dict[str, FeatureMatch]


def _feature_rows(dictionaries: Sequence[DictionaryPage]) -> list[_FeatureRow]:
    rows: dict[tuple[str, str], _FeatureRow] = {}
    for dictionary in dictionaries:
        for match in dictionary.matches:
            key = (match.feature, match.label)
            row = rows.setdefault(key, _FeatureRow(*key, match.n_positive, match.n, {}))
            row.by_dictionary[dictionary.name] = match
    # Best told first; classes seen too seldom for a trustworthy AUROC last.
    best = {key: max(match.auroc for match in row.by_dictionary.values()) for key, row in rows.items()}
    order = sorted(rows, key=lambda key: (rows[key].n_positive < ENOUGH, -best[key]))
    return [rows[key] for key in order]


def _groups_present(dictionaries: Sequence[DictionaryPage]) -> list[tuple[str, str]]:
    present = {group for d in dictionaries for summary in d.latents for group in summary.groups}
    return [(group, title) for group, title in GROUPS.items() if group in present]


def _latents_intro(dictionaries: Sequence[DictionaryPage]) -> str:
    tokens = max((d.n_tokens for d in dictionaries), default=0)
    return (
        f"Where chosen latents are most active in {tokens:,} held-out tokens, one context per document as far as there "
        "are enough. “Most energy”: the largest shares of the code’s energy (sum of squared values) among the latents "
        "active in at most 10 % of tokens. “Random”: drawn evenly from all live latents; these, not the first, show "
        "what a typical latent looks like. “Best for a label”: those of the table above with "
        f"an AUROC of {TELLING} or more."
    )
