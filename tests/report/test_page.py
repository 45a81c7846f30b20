"""The report as a reader has it: in a headless Chromium, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report.made_cells import cell, study
from zerounlearn.report.outputs import outputs

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
    path.write_bytes(outputs(made(), "Study of <b>fourteen</b> methods")["report.html"])
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with each of its parts once; axe takes its time on thousands of elements."""
    path = tmp_path_factory.mktemp("small") / "report.html"
    cells = [*study(["GA", "NPO"], seeds=(0, 1, 2)), cell("Dead", 0, restored=False, error="no")]
    path.write_bytes(outputs(cells, "Small study")["report.html"])
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
    assert all(reference.startswith("#") for reference in parsed.references)
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    assert set(re.findall(r"url\(([^)]{0,2})", text)) <= {"#p"}  # clip paths of plots
    assert "@import" not in text


def test_only_our_own_script_may_run(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text.replace("&#39;", "'")
    assert "<img" not in text and "<b>fourteen" not in text


def test_a_study_with_too_few_seeds_has_no_section_of_tests(small: Path, report: Path) -> None:
    cells = study(["GA", "NPO"], seeds=(0, 1))
    assert 'id="tests"' not in outputs(cells, "t")["report.html"].decode()
    assert all('id="tests"' in page.read_text(encoding="utf-8") for page in (small, report))


def test_failures_settings_and_environment_are_shown(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert text.count("RuntimeError: &lt;b&gt;") == 3
    assert '<th scope="row">v_lr</th><td>0.1</td>' in text
    assert '<th scope="row">torch</th><td>2.13.0</td>' in text


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


def test_the_dark_scheme_applies_to_page_and_plots(opened: Any) -> None:
    shades = """() => [document.body, ...document.querySelectorAll("svg.plot text")].map((e, i) => {
        const colour = getComputedStyle(e)[i === 0 ? "backgroundColor" : "fill"];
        return colour.match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3;
    })"""
    paper, *words = opened(scheme="light").evaluate(shades)
    assert len(words) > 50
    assert paper > 230 and max(words) < 80
    paper, *words = opened(scheme="dark").evaluate(shades)
    assert paper < 50 and min(words) > 200


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(opened: Any, small: Path, scheme: str) -> None:
    """Contrast AA, names, roles, landmarks and the rest of axe-core's rules."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = opened(scheme=scheme, path=small)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    # A plot is one image to it; what is drawn inside has tests of its own.
    found = axe.Axe().run(page, context={"exclude": [["svg.plot > *"]]})
    assert found.violations_count == 0, found.generate_report()


def test_no_two_words_of_a_plot_overlap(opened: Any) -> None:
    page = opened()
    clashes = page.evaluate("""() => [...document.querySelectorAll("svg.plot")].flatMap(svg => {
        const words = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
        return words.flatMap(([s, a], i) => words.slice(i + 1).filter(([, b]) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5
        ).map(([t]) => [svg.getAttribute("aria-label"), s, t]));
    })""")
    assert clashes == []


def test_every_plot_shows_all_of_its_words(opened: Any) -> None:
    page = opened()
    outside = page.evaluate("""() => [...document.querySelectorAll("svg.plot")].flatMap(svg => {
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
