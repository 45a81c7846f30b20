"""The report as a reader has it: in a headless Chromium, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.report.made_cells import cell, study
from zerounlearn.report.outputs import outputs
from zerounlearn.report.page import About

NASTY = 'GA <img src=x onerror=alert(1)> & "co" $x$'
METHODS = [
    NASTY,
    "A method whose label says all of its hyperparameters, lr=0.1",
    *(f"Method-{i:02}" for i in range(12)),
]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def made() -> list[dict[str, Any]]:
    """Fourteen methods, a broken one, a failed one, two sizes of which the second is small."""
    cells = study(METHODS, seeds=(0, 1, 2)) + study(METHODS[2:5], seeds=(0, 1, 2), sizes=(50,))
    cells += [cell("Broken", s, after={"ppl": math.inf}) for s in range(3)]
    return cells + [cell("Dead", s, error=f"RuntimeError: <b>{'x' * 300}</b>") for s in range(3)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page on disk."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(
        outputs(made(), About("Study of <b>fourteen</b> methods", "made-up", highlight="Method-03"))["report.html"]
    )
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with each of its parts once; axe takes its time on thousands of elements."""
    path = tmp_path_factory.mktemp("small") / "report.html"
    cells = [*study(["GA", "NPO"], seeds=(0, 1, 2)), cell("Dead", 0, restored=False, error="no")]
    path.write_bytes(outputs(cells, About("Small study"))["report.html"])
    return path


class Ids(HTMLParser):
    """Collects identifiers and what asks for other files."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of every element."""
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
                self.references.append(value or "")


def test_the_page_is_self_contained_and_its_identifiers_are_unique(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    parsed = Ids()
    parsed.feed(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    images = [reference for reference in parsed.references if reference.startswith("data:image/svg+xml;base64,")]
    anchors = {reference for reference in parsed.references if reference not in images}
    assert images
    assert all(reference.startswith("#") for reference in anchors)
    assert {reference[1:] for reference in anchors} <= set(parsed.ids)
    assert "url(" not in text
    assert "@import" not in text


def test_only_our_own_script_may_run(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text.replace("&#39;", "'")
    assert "<img src=x" not in text and "<b>fourteen" not in text and "<b>a place" not in text


def test_a_study_with_too_few_seeds_has_no_section_of_tests(small: Path, report: Path) -> None:
    cells = study(["GA", "NPO"], seeds=(0, 1))
    assert 'id="tests"' not in outputs(cells, About("t"))["report.html"].decode()
    assert all('id="tests"' in page.read_text(encoding="utf-8") for page in (small, report))


def test_failures_settings_and_environment_are_shown(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert text.count("RuntimeError: &lt;b&gt;") == 3 + 1, "in full each, and at the top"
    assert '<th scope="row">v_lr</th><td>0.1</td>' in text
    assert '<th scope="row">torch</th><td>2.13.0</td>' in text


def header(cells: list[dict[str, Any]], about: About) -> str:
    text = outputs(cells, about)["report.html"].decode()
    return html.unescape(re.sub(r"<[^>]+>|\s+", " ", text.partition("<header>")[2].partition("</header>")[0]))


def test_the_first_screen_says_what_came_out() -> None:
    good = {"eff": 0.0, "gen": 0.07, "spe_relation": 0.9, "spe_subject": 0.95, "spe_unrelated": 0.9, "ppl": 29.5}
    wreck = {"eff": 0.0, "gen": 0.0, "spe": 0.0, "spe_relation": 0.0, "spe_subject": 0.0, "spe_unrelated": 0.0}
    cells = [cell("Good", s, after=good) for s in (0, 1)]
    cells += [cell("Wreck", s, after=wreck | {"ppl": 4000.0}) for s in (0, 1)]
    cells += [cell("Dead", s, error="RuntimeError: out of memory\nline 2") for s in (0, 1)]
    shown = header(cells, About("A study", "SmolLM2, float32"))
    assert "SmolLM2, float32 · 2026-11-20 to 2026-11-21" in shown
    # (0.9 / 1 + 0.95 / 0.95 + 0.9 / 1) / 3 of what was said before
    assert "Good forgets 100 % of what was known (Eff. 100.0 → 0.0) and keeps 93 % of the rest" in shown
    assert "2 cells failed: RuntimeError: out of memory (2)" in shown
    assert "Wreck" not in shown and "line 2" not in shown
    assert "No cells failed." in header(cells[:4], About("A study"))
    assert "no method has finished every seed" in header(cells[2:], About("A study"))
    two = header([*cells[:2], cell("Good", 0, 50, after=good)], About("A study"))
    assert "packaged, n = 10: Good forgets" in two and "packaged, n = 50: Good forgets" in two


def test_each_fact_has_a_table_of_what_every_method_leaves_of_it() -> None:
    said = {"said": True, "probability": 0.5, "completion": " Rome."}
    gone = {"said": False, "probability": 0.01, "completion": " a <i>city</i>."}
    reworded = {"prompt": "Italy's capital:", "said": True, "probability": 0.25}
    fact = {"prompt": "The capital of Italy is", "answer": "Rome", "before": said | {"paraphrases": [reworded]}}
    fact |= {"after": gone | {"paraphrases": [reworded | {"said": False, "probability": 0.125}]}}
    files = outputs([cell("A", facts=[fact]), cell("B", facts=[fact])], About("t"))
    (shown,) = pd.read_html(
        io.StringIO(files["report.html"].decode()), attrs={"class": "dataframe words facts"}, flavor="lxml"
    )
    assert shown.columns.tolist() == ["method", "seed", "completion", "The capital of Italy is", "Italy's capital:"]
    assert shown.values.tolist() == [
        ["base", 0, "Rome.", "said (0.500)", "said (0.250)"],
        ["A", 0, "a <i>city</i>.", "not said (0.010)", "not said (0.125)"],
        ["B", 0, "a <i>city</i>.", "not said (0.010)", "not said (0.125)"],
    ]
    rows = pd.read_csv(io.BytesIO(files["facts.csv"]))
    assert rows["wording"].tolist() == ["The capital of Italy is", "Italy's capital:"] * 2
    assert rows["probability_after"].tolist() == [0.01, 0.125] * 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The installed Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report at a width and in a colour scheme; fails if anything was requested or reported."""
    contexts = []
    troubles: list[str] = []

    def at(width: int = 1280, scheme: str = "light", path: Path = report) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield at
    for context in contexts:
        context.close()
    assert troubles == []


def column_of(page: Any, index: int) -> list[str]:
    return (
        page.locator("table.sortable")
        .first.locator("tbody")
        .last.evaluate("(body, i) => [...body.rows].map(row => row.cells[i].dataset.value)", index)
    )


def test_a_column_sorts_by_keyboard_and_says_so(opened: Any) -> None:
    page = opened()
    names = column_of(page, 0)
    button = page.locator("table.sortable thead button").nth(7)
    assert "PPL" in button.text_content()
    button.focus()
    page.keyboard.press("Enter")
    head = page.locator("table.sortable thead th").nth(7)
    assert head.get_attribute("aria-sort") == "ascending"
    values = column_of(page, 7)
    finite = [float(v) for v in values if v]
    assert finite == sorted(finite) and finite[-1] == math.inf
    assert values[-1] == ""  # the method that failed
    assert "Sorted by PPL" in page.locator("#announcer").text_content()
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    finite = [float(v) for v in column_of(page, 7) if v]
    assert finite == sorted(finite, reverse=True)
    assert column_of(page, 7)[-1] == ""
    assert page.locator("table.sortable").first.locator("tbody").first.text_content().strip().startswith("base")
    page.keyboard.press("Shift+Tab")
    page.locator("table.sortable thead button").first.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    assert sorted(column_of(page, 0), key=str.casefold) == sorted(names, key=str.casefold)
    assert column_of(page, 0)[0].startswith("A method")


def test_a_column_where_more_is_better_starts_with_the_best(opened: Any) -> None:
    page = opened()
    page.locator("table.sortable thead button").nth(3).press("Enter")
    values = [float(v) for v in column_of(page, 3) if v]
    assert values == sorted(values, reverse=True)


def test_the_first_tab_stop_skips_to_the_results(opened: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    link = page.locator("a.skip")
    assert link.evaluate("e => e === document.activeElement && e.getBoundingClientRect().left >= 0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_focus_can_be_seen(opened: Any) -> None:
    page = opened()
    for selector in ("nav a", "table.sortable thead button", ".scroll", "summary"):
        page.keyboard.press("Tab")  # the last input must be the keyboard's for :focus-visible
        page.locator(selector).first.focus()
        style = page.locator(selector).first.evaluate(
            "e => [getComputedStyle(e).outlineStyle, parseFloat(getComputedStyle(e).outlineWidth)]"
        )
        assert style[0] == "solid" and style[1] >= 2, selector


@pytest.mark.parametrize("width", [320, 375])
def test_nothing_overflows_sideways(opened: Any, width: int) -> None:
    page = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 375:  # tables are wider, and scroll in their own frame
        assert page.locator(".scroll").first.evaluate("e => e.scrollWidth > e.clientWidth")


def test_the_dark_scheme_applies_to_the_page_and_plots_stay_on_paper(opened: Any) -> None:
    shades = """() => [document.body, ...document.querySelectorAll(".panels img")].map(e => getComputedStyle(e)
        .backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3)"""
    paper, *plots = opened(scheme="light").evaluate(shades)
    assert paper > 230 and len(plots) > 10 and min(plots) == 255
    paper, *plots = opened(scheme="dark").evaluate(shades)
    assert paper < 50 and min(plots) == 255


def test_panels_stand_beside_each_other_and_on_a_phone_below(opened: Any) -> None:
    places = """() => [...document.querySelectorAll("figure .panels")].map(f =>
        [...f.querySelectorAll("img")].map(e => [e.getBoundingClientRect().left, e.getBoundingClientRect().width]))"""
    wide = [images for images in opened(1280).evaluate(places) if len(images) > 1]
    assert wide and all(len({left for left, _ in images}) == 2 for images in wide)
    for width in (360, 480):
        for images in opened(width).evaluate(places):
            assert len({left for left, _ in images}) == 1
            assert all(0.8 * width < shown <= width for _, shown in images)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(opened: Any, small: Path, scheme: str) -> None:
    """Contrast AA, names, roles, landmarks and the rest of axe-core's rules."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = opened(scheme=scheme, path=small)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.fixture(scope="module")
def drawn(report: Path) -> Path:
    """The page with its plots' elements in it."""
    text = report.read_text(encoding="utf-8")
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', text)
    path = report.with_name("plots.html")
    path.write_text("".join(f"<div>{base64.b64decode(i).decode().partition('?>')[2]}</div>" for i in images))
    return path


def test_no_two_words_of_a_plot_overlap(opened: Any, drawn: Path) -> None:
    page = opened(path=drawn)
    clashes = page.evaluate("""() => [...document.querySelectorAll("svg")].flatMap((svg, k) => {
        const words = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
        return words.flatMap(([s, a], i) => words.slice(i + 1).filter(([, b]) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5
        ).map(([t]) => [k, s, t]));
    })""")
    assert clashes == []


def test_every_plot_shows_all_of_its_words(opened: Any, drawn: Path) -> None:
    page = opened(path=drawn)
    outside = page.evaluate("""() => [...document.querySelectorAll("svg")].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(e => {
            const box = e.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
                || box.bottom > frame.bottom + 1;
        }).map(e => e.textContent);
    })""")
    assert outside == []


def test_a_page_without_the_script_still_shows_its_tables(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("table.sortable").first.locator("tbody tr").count() == len(METHODS) + 3
    context.close()
