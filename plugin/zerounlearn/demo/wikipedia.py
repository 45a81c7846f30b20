"""Ordinary text without a data hub: an extract of English Wikipedia that the gensim wheel carries.

About a hundred long articles (titles in A), as plain paragraphs of prose. One part of them gives the
statistics of ordinary text, the other, disjoint by article, measures what an edit did to ordinary text.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import logging
import os
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zerounlearn.demo.wheels import fetch_from_wheel
from zerounlearn.errors import AssetError

log = logging.getLogger(__name__)

REQUIREMENT = "gensim==4.4.0"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2"
# The last number changes with every change of what is kept of an article, so that no old cache is read.
CACHE_NAME = "wikipedia-gensim-4.4.0-1.jsonl"

HELD_OUT_SHARE = 0.15
MIN_CHARS, MAX_CHARS = 200, 4000

# Sections and tags that are lists, sources or formulas, not prose.
TAIL_SECTIONS = {
    *("bibliography", "citations", "discography", "external links", "filmography", "footnotes"),
    *("further reading", "gallery", "notes", "notes and references", "primary sources", "publications"),
    *("references", "references and notes", "see also", "selected works", "sources", "works", "works cited"),
}
DROPPED_TAGS = {"ref", "references", "table", "gallery", "timeline", "imagemap", "score", "source", "pre"}
# A name before the colon of a link: these are no text, and neither are the two- or three-letter languages.
LINK_SPACES = {"file", "image", "category", "media", "template", "wikipedia", "portal", "simple"}

# Stands where something that cannot be read aloud was (a formula); its whole line is dropped later.
HOLE = "\0"


@dataclass(frozen=True)
class Article:
    """One encyclopaedia article; paragraphs of `text` are separated by a newline."""

    title: str
    text: str


def wikipedia_articles(cache: Path | None = None) -> list[Article]:
    """The articles of the extract as plain prose, in the extract's order.

    The first call downloads 27 MB and strips wiki markup (about 15 s); later ones read the cache.

    Args:
        cache: folder for the stripped text; by default the environment variable ZEROUNLEARN_CACHE, else
            ~/.cache/zerounlearn.

    Raises:
        AssetError: the wheel cannot be had, `mwparserfromhell` is not installed, or the cached file cannot
            be read or written.
    """
    folder = cache or Path(os.environ.get("ZEROUNLEARN_CACHE", "~/.cache/zerounlearn")).expanduser()
    stored = folder / CACHE_NAME
    if stored.exists():
        return _load(stored)
    _require_parser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".wikipedia-", dir=folder) as work:
            dump = fetch_from_wheel(REQUIREMENT, MEMBER, Path(work) / "pages.xml.bz2")
            pages = list(_pages(dump))
            stripped = (_strip(*page) for page in tqdm(pages, desc="wiki markup", disable=None))
            articles = [article for article in stripped if len(article.text) >= MIN_CHARS]
            partial = Path(work) / CACHE_NAME
            lines = (json.dumps(asdict(article), ensure_ascii=False) + "\n" for article in articles)
            partial.write_text("".join(lines), encoding="utf-8")
            os.replace(partial, stored)
    except AssetError:
        raise
    except OSError as error:
        raise AssetError(
            f"cannot keep the Wikipedia text in {folder} ({error}): set ZEROUNLEARN_CACHE to a folder that "
            "can be written"
        ) from error
    log.info("%d Wikipedia articles are in %s", len(articles), stored)
    return articles


def split_articles(articles: Sequence[Article]) -> tuple[list[Article], list[Article]]:
    """Divide articles into (statistics, held out), about 85 to 15, each in the given order.

    Where an article goes depends on its title alone, so it stays there whatever else is in the list.
    """
    statistics = [article for article in articles if _fraction(article.title) >= HELD_OUT_SHARE]
    held_out = [article for article in articles if _fraction(article.title) < HELD_OUT_SHARE]
    return statistics, held_out


def embedded_statistics_texts(cache: Path | None = None) -> list[str]:
    """Texts of 200 to 4000 characters for the statistics of ordinary text, in a fixed shuffled order.

    Shuffled, because the first n texts in article order would be about n/30 subjects only.
    """
    return _texts(split_articles(wikipedia_articles(cache))[0])


def embedded_held_out_texts(cache: Path | None = None) -> list[str]:
    """Texts like those of `embedded_statistics_texts`, from other articles, for measuring perplexity."""
    return _texts(split_articles(wikipedia_articles(cache))[1])


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _texts(articles: Sequence[Article]) -> list[str]:
    """All articles in pieces, each piece placed by a hash of its own text."""
    return sorted((piece for article in articles for piece in _pieces(article.text)), key=_fraction)


def _pieces(text: str) -> Iterator[str]:
    """Whole paragraphs, joined up to MIN_CHARS; one above MAX_CHARS is cut between sentences.

    A last piece below MIN_CHARS, or a single sentence above MAX_CHARS, is left out.
    """
    held = ""
    for paragraph in text.split("\n"):
        parts = [paragraph] if len(paragraph) <= MAX_CHARS else re.split(r"(?<=[.!?]) ", paragraph)
        for part in parts:
            joined = f"{held}\n{part}" if held and len(parts) == 1 else f"{held} {part}".strip()
            if len(joined) > MAX_CHARS:
                if len(held) >= MIN_CHARS:
                    yield held
                joined = part if len(part) <= MAX_CHARS else ""
            held = joined
        if len(held) >= MIN_CHARS:
            yield held
            held = ""


def _load(stored: Path) -> list[Article]:
    try:
        text = stored.read_text(encoding="utf-8")  # lines end at \n alone: texts may hold U+2028 and its like
        rows = [json.loads(line) for line in text.split("\n") if line]
        return [Article(title=str(row["title"]), text=str(row["text"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(f"{stored} cannot be read ({error}): delete it, and it is made anew") from error


def _require_parser() -> None:
    try:
        import mwparserfromhell  # noqa: F401
    except ImportError as error:
        raise AssetError(
            "stripping wiki markup needs the package mwparserfromhell: pip install mwparserfromhell"
        ) from error


def _pages(dump: Path) -> Iterator[tuple[str, str]]:
    """(title, wikitext) of every article proper: no redirects, other namespaces or disambiguations."""
    with bz2.open(dump) as stream:
        for _, element in ElementTree.iterparse(stream):
            if not element.tag.endswith("}page"):
                continue
            space = element.tag.removesuffix("page")
            title = element.findtext(f"{space}title") or ""
            text = element.findtext(f"{space}revision/{space}text") or ""
            is_article = element.findtext(f"{space}ns") == "0" and element.find(f"{space}redirect") is None
            if is_article and not re.search(r"\{\{\s*(disambig|geodis|hndis)", text, re.IGNORECASE):
                yield title, text
            element.clear()


def _strip(title: str, wikitext: str) -> Article:
    """Keep the prose of an article: paragraphs that are sentences and show no markup."""
    import mwparserfromhell

    opening, *sections = re.split(r"^==([^=\n]+)==[ \t]*$", wikitext, flags=re.MULTILINE)
    kept = [opening]
    for heading, body in zip(sections[::2], sections[1::2], strict=True):
        if heading.strip().lower() not in TAIL_SECTIONS:
            kept.append(body)
    lines = _plain(mwparserfromhell.parse("\n".join(kept))).split("\n")
    return Article(title, "\n".join(tidy for line in lines if _is_prose(tidy := _tidy(line))))


def _plain(code: Any) -> str:
    """The text that a reader sees of a parsed piece of wikitext."""
    from mwparserfromhell import nodes

    parts: list[str] = []
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            parts.append(str(node.value))
        elif isinstance(node, nodes.HTMLEntity):
            parts.append(str(node.normalize()))
        elif isinstance(node, nodes.Wikilink):
            parts.append(_link(node))
        elif isinstance(node, nodes.ExternalLink):
            parts.append(_plain(node.title) if node.title is not None else "")
        elif isinstance(node, nodes.Tag):
            parts.append(_tag(node))
        elif isinstance(node, nodes.Template):
            parts.append(_template(node))
        elif isinstance(node, nodes.Heading):
            parts.append("\n")
    return "".join(parts)


def _link(node: Any) -> str:
    space, colon, _ = str(node.title).strip().partition(":")
    # "[[:Category:X]]" is a visible link; "[[Apollo 11: the film]]" has no namespace.
    if colon and (space.lower() in LINK_SPACES or re.fullmatch(r"[a-z]{2,3}", space)):
        return ""
    return _plain(node.title if node.text is None else node.text)


def _tag(node: Any) -> str:
    name = str(node.tag).strip().lower()
    if name == "math":
        return HOLE
    if name == "br":
        return " "
    if name in DROPPED_TAGS or node.contents is None:
        return ""
    return _plain(node.contents)


def _template(node: Any) -> str:
    """Templates are notes, boxes and sources, but for the few that stand inside sentences."""
    name = str(node.name).strip().lower()
    values = [_plain(parameter.value).strip() for parameter in node.params if not parameter.showkey]
    if name in {"convert", "cvt"} and len(values) >= 2:
        between = values[1] in {"-", "–", "to", "and", "x", "by"} and len(values) >= 4
        return f"{values[0]} {values[1]} {values[2]} {values[3]}" if between else f"{values[0]} {values[1]}"
    if name in {"lang", "transl", "transliteration"} and len(values) >= 2:
        return values[-1]
    if name in {"nowrap", "smallcaps", "as of", "'"} or name.startswith("lang-"):
        start = "As of " if name == "as of" else ""
        return start + values[0] if values else ""
    if name in {"math", "mvar", "chem", "su"}:
        return HOLE
    return ""


def _tidy(line: str) -> str:
    """Close the gaps that dropped notes and pronunciations leave."""
    line = re.sub(r"\s+", " ", line.replace("\xa0", " ").replace("\u200b", ""))
    # Marks of italics that the parser found no partner for; of three before an s, one is an apostrophe.
    line = re.sub(r"''+", "", re.sub(r"'''(?=s\b)", "'", line))
    line = re.sub(r"\(\s*(?:(?:or|and|;|,|:)\s*)+", "(", line)
    line = re.sub(r"(?:\s*[;,:])+\s*\)", ")", line)
    line = re.sub(r"\(\s*\)|\[\s*\]", "", line)
    line = re.sub(r" +([.,;:!?)])", r"\1", re.sub(r"\( +", "(", line))
    return re.sub(r" {2,}", " ", line).strip()


def _is_prose(line: str) -> bool:
    """Whether a line is a paragraph of sentences and not a list entry, a caption or a leftover of markup."""
    if len(line) < 60 or HOLE in line or line[0] in "|!{}*#:;<":
        return False
    if any(mark in line for mark in ("{{", "}}", "[[", "]]", "||", "{|", "|}", "thumb|", "style=", "<ref", "</")):
        return False
    return re.search(r"[.!?][\"'”’)\]]*$", line) is not None
