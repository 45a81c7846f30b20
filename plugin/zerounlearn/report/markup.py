"""A study's tables as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jinja2
from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

from zerounlearn.report.columns import Column
from zerounlearn.report.table import Entry, Table
from zerounlearn.resources import template

_WIDE = 8
"""Columns of a LaTeX table; further ones go to another."""
_PLAIN = re.compile(r"-?\d+(\.\d+)?")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
_LATEX = UnicodeToLatexEncoder(
    # T1's vertical bar is a bar; OT1's, the default, is a dash.
    conversion_rules=[UnicodeToLatexConversionRule(RULE_DICT, {ord("|"): r"\textbar{}"}), "defaults"],
    unknown_char_policy="keep",
    unknown_char_warning=False,
)


def markdown(tables: Sequence[Table], title: str, warnings: Sequence[str]) -> str:
    """One Markdown page: a heading and a pipe table each, best in bold, second underlined (`<ins>`)."""
    env = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"md": markdown_text, "entry": _markdown_entry}
    return env.from_string(template("report", "tables.md.jinja")).render(tables=tables, title=title, warnings=warnings)


def latex(tables: Sequence[Table], title: str) -> str:
    r"""A file to `\input`: a table environment each, of at most eight metrics, numbers aligned at the decimal point.

    Best in bold, second in italics: a column of siunitx has no place for a line under a number. Needs the packages
    booktabs, graphicx and siunitx; scripts other than Latin and Greek need XeLaTeX or LuaLaTeX.
    """
    env = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # LaTeX is full of braces and percent signs.
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    env.filters |= {"tex": latex_text, "entry": _latex_entry, "head": _latex_head, "label": _label}
    parts = [
        (table, _formats(table), [slice(i, i + _WIDE) for i in range(0, len(table.columns), _WIDE)]) for table in tables
    ]
    return env.from_string(template("report", "tables.tex.jinja")).render(parts=parts, title=title)


def _formats(table: Table) -> list[str]:
    """Of each column, the number with its digits before and after the point, and what stands behind it."""
    rows = [row.entries for row in (table.base, *table.rows) if row]
    found = []
    for j in range(len(table.columns)):
        plain = [e.shown for entries in rows if (e := entries[j]) and _PLAIN.fullmatch(e.shown)] or ["0"]
        sign = "-" * any(text.startswith("-") for text in plain)
        whole, _, part = zip(*(text.lstrip("-").partition(".") for text in plain), strict=True)
        found.append(f"S[table-format={sign}{max(map(len, whole))}.{max(map(len, part))}]@{{\\,}}l")
    return found


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, inside a table cell too."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """Text that LaTeX shows as it is."""
    escaped: str = _LATEX.unicode_to_latex(" ".join(text.split()))
    return escaped


def _markdown_entry(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    mean = {1: f"**{entry.shown}**", 2: f"<ins>{entry.shown}</ins>"}.get(entry.place or 0, entry.shown)
    return mean + (f" ± {entry.spread}" if entry.spread else "") + (f" {entry.mark}" if entry.mark else "")


def _latex_entry(entry: Entry | None) -> str:
    """Two cells: the mean, and what stands behind it."""
    if entry is None:
        return "{--} &"
    style = {1: r"\bfseries ", 2: r"\itshape "}.get(entry.place or 0, "")
    mean = style + (entry.shown if _PLAIN.fullmatch(entry.shown) else f"{{{_latex_number(entry.shown)}}}")
    mark = {"†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$", "": ""}[entry.mark]
    spread = rf"{{\scriptsize$\pm$\,{_latex_number(entry.spread)}}}" if entry.spread else ""
    return f"{mean} & {spread}{mark}"


def _latex_head(column: Column) -> str:
    """One word a line: heads are longer than numbers."""
    words = latex_text(column.label).split(" ")
    words[-1] += f" {latex_text(column.goal.value)}" if column.goal.value else ""
    unit = [f"({latex_text(column.unit)})"] if column.unit else []
    return r"\multicolumn{2}{c}{\shortstack{" + r" \\ ".join(words + unit) + "}}"


def _latex_number(shown: str) -> str:
    """Outside a column of numbers: powers and infinity in mathematics."""
    shown = shown.replace("∞", r"$\infty$")
    shown = re.sub(r"e([+-])0*(\d+)$", lambda m: rf"$\times10^{{{m[1].strip('+')}{m[2]}}}$", shown)
    return re.sub(r"^-", "$-$", shown)


def _label(table: Table) -> str:
    r"""For `\ref`: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{table.dataset} n{table.n} {table.group.name} {table.at}").strip("-").lower()
