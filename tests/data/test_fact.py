"""Facts from every layout, bytes kept; every fault that users met; and nothing wrong is read in silence."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from zerounlearn.data.corpora import open_corpus
from zerounlearn.data.fact import Fact, load_facts
from zerounlearn.data.request import Request
from zerounlearn.data.text import is_blank, mentions, refused_character
from zerounlearn.errors import ConfigError, RequestError, StatisticsError, ZeroUnlearnError

FRANCE: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "France", "answer": "Paris"}
COUNTERFACT: dict[str, Any] = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Lyon"},
        "target_true": {"str": "Paris"},
        "subject": "France",
    },
    "paraphrase_prompts": ["France's capital is"],
    "neighborhood_prompts": ["The capital of Monaco is"],
}
PARIS = Request("The capital of ", "France", " is", "Paris")


def test_knowedits_record() -> None:
    record = {
        "subject": "Silver Harbour", "target_new": "Northwind", "prompt": "What was the label of Silver Harbour?",
        "ground_truth": ["Bluebird Records", "Bluebird"], "rephrase_prompt": "What was Silver Harbour's label?",
        "cond": "Red Kite >> Northwind || ?", "portability": {"Reasoning": []},
        "locality": {"Relation_Specificity": [{"prompt": "Silver Harbour followed by", "ground_truth": ["Grey Pier"]}]},
    }  # fmt: skip
    (fact,) = load_facts([record])
    assert fact.request.answer == "Bluebird Records"
    assert fact.request.neutral is None, "target_new is a false answer there"
    assert fact.others == (("Silver Harbour followed by", "Grey Pier"),)
    (lists,) = load_facts([record | {"locality": {"kind": {"prompt": ["A is", "B is"], "ground_truth": ["a", "b"]}}}])
    assert lists.others == (("A is", "a"), ("B is", "b"))


def test_mends_record_and_tofus() -> None:
    mend = {
        "subject": "Vyšehrad", "src": "Which river flows below Vyšehrad?", "rephrase": "What runs below Vyšehrad?",
        "alt": "Elbe", "answers": ["Vltava"], "loc": "nq question: who wrote dalibor", "loc_ans": "Smetana",
    }  # fmt: skip
    (fact,) = load_facts([mend])
    assert (fact.request.prompt, fact.request.answer) == (mend["src"], "Vltava")
    assert (fact.paraphrases, fact.others) == ((mend["rephrase"],), (("nq question: who wrote dalibor?", "Smetana"),))
    questions = [
        {"question": f"What did Jana Nová write in {year}?", "answer": f"Book {year}"} for year in (1990, 1991)
    ]
    first, second = load_facts(questions)
    assert first.request.prompt == "Question: What did Jana Nová write in 1990?\nAnswer:"
    assert first.request.subject == second.request.subject == "Jana Nová"
    (chat,) = load_facts([{**questions[0], "subject": "1990", "chat": True}])
    assert (chat.request.prompt, chat.request.subject, chat.request.chat) == (questions[0]["question"], "1990", True)
    with pytest.raises(RequestError, match="record 0: requested_rewrite=.*'mquake'"):
        load_facts([{"requested_rewrite": [COUNTERFACT["requested_rewrite"]]}])


def test_prompts_are_the_users_byte_for_byte(tmp_path: Path) -> None:
    record = {
        "prompt": "  Q: the capital of {}?\nA:\n", "subject": " France ", "answer": " Paris ", "joint": "\t",
        "paraphrases": [" Of France, the capital:\n"], "neighbours": [[" Of Italy:\n", " Rome "]],
        "others": [{"prompt": "France lies in\u3000", "answer": "Europe"}],
    }  # fmt: skip
    expected = Fact(
        Request("  Q: the capital of ", "France", "?\nA:\n", "Paris", None, "\t"),
        (" Of France, the capital:\n",),
        ((" Of Italy:\n", "Rome"),),
        (("France lies in\u3000", "Europe"),),
    )
    for suffix, text in (("jsonl", json.dumps(record)), ("json", json.dumps([record])), ("yaml", yaml.dump([record]))):
        (tmp_path / f"a.{suffix}").write_text(text)
        assert load_facts(tmp_path / f"a.{suffix}") == [expected]
    (tmp_path / "a.csv").write_text('prompt,subject,answer\n" Of {}:\n",France,Paris\n')
    assert load_facts(tmp_path / "a.csv")[0].request.prompt == " Of France:\n"


@pytest.mark.parametrize(
    ("prompt", "subject", "parts"),
    [
        ("The capital of {} is", "France", ("The capital of ", "France", " is")),
        ("In Python, {} creates an empty", "Python", ("In ", "Python", ", {} creates an empty")),
        ("{} in Java is {}; in Python it is", "Python", ("{} in Java is {}; in ", "Python", " it is")),
        ("A dict is written", "A dict", ("", "A dict", " is written")),
        ("In Python {} is", "{}", ("In Python ", "{}", " is")),
        ("Pythonic {} is", "Python", ("Pythonic ", "Python", " is")),
        ("Beyonce\u0301 sang", "Beyonc\u00e9", ("", "Beyonce\u0301", " sang")),
        ("Beyonc\u00e9 sang", "Beyonce\u0301", ("", "Beyonc\u00e9", " sang")),
        ("\u6cd5\u56fd\u7684\u9996\u90fd\u662f", "\u6cd5\u56fd", ("", "\u6cd5\u56fd", "\u7684\u9996\u90fd\u662f")),
    ],
)
def test_where_the_subject_is(prompt: str, subject: str, parts: tuple[str, str, str]) -> None:
    request = Request.of(prompt, subject, "x")
    assert (request.before, request.subject, request.after) == parts


@pytest.mark.parametrize(
    ("text", "name", "spans"),
    [
        ("Beyonce\u0301 was", "Beyonce", []),
        ("Beyonc\u00e9 was", "Beyonce", []),
        ("Anna and Ann", "Ann", [(9, 12)]),
        ("\ud55c\uad6d\uc758", "\ud55c\uad6d", [(0, 2)]),
        ("\ud55c", "\ud558", []),
        ("\u1112\u1161\u11ab", "\ud558", []),
        ("\u1112\u1161\u11ab", "\ud55c", [(0, 3)]),
        ("\u7684\u6cd5\u56fd\u7684", "\u6cd5\u56fd", [(1, 3)]),
        ("e\u0301tude e\u0301", "\u00e9", [(7, 9)]),
        ("abc", "", []),
    ],
)
def test_names_are_found_by_canonical_equivalence_as_whole_words(text: str, name: str, spans: list) -> None:
    assert mentions(text, name, whole=True) == spans


def test_braces_follow_one_rule_in_every_field() -> None:
    def beside(**fields: Any) -> Fact:
        return load_facts([FRANCE | fields])[0]

    assert beside(paraphrases=["{}'s capital is"]).paraphrases == ("France's capital is",)
    assert beside(paraphrases=["France's {} is"]).paraphrases == ("France's {} is",)
    assert beside(others=[["{} lies in", "Europe"]]).others == (("France lies in", "Europe"),)
    own = [{"prompt": "The capital of {} is", "subject": "Italy", "answer": "Rome"}]
    assert beside(neighbours=own).neighbours == (("The capital of Italy is", "Rome"),)
    with pytest.raises(RequestError, match=r"record 0: neighbours\[0\]\[0\]='The capital of \{\} is': \{\} cannot"):
        beside(neighbours=[["The capital of {} is", "Rome"]])
    for field in ("paraphrases", "paraphrase_prompts"):
        with pytest.raises(RequestError, match=rf"record 0: {field}\[0\]='\{{\}} and \{{\}}' has more than one"):
            beside(**{field: ["{} and {}"]})
    (fact,) = load_facts([COUNTERFACT | {"paraphrase_prompts": ["{}'s capital is"]}])
    assert fact.paraphrases == ("France's capital is",)
    with pytest.raises(RequestError, match=r"neighborhood_prompts\[0\]='Of \{\}:': \{\} cannot stand for 'France'"):
        load_facts([COUNTERFACT | {"neighborhood_prompts": ["Of {}:"]}])
    literal = {"prompt": "In Python, {} is an empty", "subject": "Python", "answer": "dictionary"}
    (fact,) = load_facts([literal | {"neighbours": [["In Java, {} is an empty", "block"]]}])
    assert fact.neighbours == (("In Java, {} is an empty", "block"),)


def test_lists_of_a_table() -> None:
    row = {"paraphrases": "one of France | two of France", "neighbours": "Of Italy: => Rome|Of Spain: => Madrid"}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FRANCE | row | {"chat": ""})
    writer.writeheader()
    writer.writerow(FRANCE | row | {"chat": "TRUE"})
    path = Path("unused.csv")
    fact = read_text(path.suffix, text.getvalue())[0]
    assert fact.paraphrases == ("one of France", "two of France")
    assert fact.neighbours == (("Of Italy:", "Rome"), ("Of Spain:", "Madrid"))
    assert fact.request.chat
    (one,) = load_facts([FRANCE | {"paraphrases": "one | two"}])
    assert one.paraphrases == ("one | two",), "a text is a text everywhere but in a table"


_folder: list[Path] = []


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _folder[:] = [tmp_path_factory.mktemp("facts")]
    return _folder[0]


def read_text(suffix: str, text: str | bytes) -> list[Fact]:
    path = _folder[0] / f"facts{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return load_facts(path)


# As users met them (issue 13): suffix, the file's text, and the fact that is right, or what the message says.
MET: dict[str, tuple[str, str | bytes, Fact | str]] = {
    "byte-order mark, jsonl": (".jsonl", "\ufeff" + json.dumps(FRANCE), Fact(PARIS)),
    "byte-order mark, json": (".json", "\ufeff" + json.dumps([FRANCE]), Fact(PARIS)),
    "byte-order mark, csv": (".csv", "\ufeffprompt,subject,answer\nThe capital of {} is,France,Paris\n", Fact(PARIS)),
    "JSON lines named json": (".json", json.dumps(FRANCE) + "\n", Fact(PARIS)),
    "newline in a cell": (
        ".csv",
        'prompt,subject,answer\n"Q: capital of {}\nA:",France,Paris\n',
        Fact(Request("Q: capital of ", "France", "\nA:", "Paris")),
    ),
    "unquoted comma": (
        ".csv", "prompt,subject,answer\nThe capital, of {} is,France,Paris\n", "line 2 has 4 cells, the header 3",
    ),
    "semicolons": (".csv", "prompt;subject;answer\nOf {}:;France;Paris\n", "separate the columns by commas"),
    "line separator": (
        ".jsonl",
        json.dumps(FRANCE | {"paraphrases": ["Which\u2028city\u0085is it? In France"]}, ensure_ascii=False),
        Fact(PARIS, ("Which\u2028city\u0085is it? In France",)),
    ),
    "null paraphrase": (".jsonl", json.dumps(FRANCE | {"paraphrases": [None, "x"]}), "paraphrases=[None, 'x']"),
    "empty paraphrase": (".jsonl", json.dumps(FRANCE | {"paraphrases": ["", "x"]}), "paraphrases=['', 'x']"),
    "zero-width paraphrase": (".jsonl", json.dumps(FRANCE | {"paraphrases": "\u200b"}), "none of them empty"),
    "odd paraphrases": (".jsonl", json.dumps(FRANCE | {"paraphrases": [None, 5, {"a": 1}]}), "paraphrases=[None, 5"),
    "paraphrases true": (".jsonl", json.dumps(FRANCE | {"paraphrases": True}), "paraphrases=True: expected a list"),
    "paraphrases mapping": (".jsonl", json.dumps(FRANCE | {"paraphrases": {"a": "b"}}), "paraphrases={'a': 'b'}"),
    "paraphrases nested": (".jsonl", json.dumps(FRANCE | {"paraphrases": [["x"]]}), "paraphrases=[['x']]"),
    "neighbours numbers": (".jsonl", json.dumps(FRANCE | {"neighbours": [5]}), "neighbours[0]=5 is no pair"),
    "neighbours null": (".jsonl", json.dumps(FRANCE | {"neighbours": [None]}), "neighbours[0]=None is no pair"),
    "neighbours true": (".jsonl", json.dumps(FRANCE | {"neighbours": True}), "neighbours=True: expected a list"),
    "neighbour of numbers": (".jsonl", json.dumps(FRANCE | {"neighbours": [["x", 5]]}), "neighbours[0][1]=5"),
    "neighbour without answer": (
        ".jsonl", json.dumps(FRANCE | {"neighbours": [{"prompt": "x"}]}), "'neighbours[0].answer' is missing",
    ),
    "others mapping": (".jsonl", json.dumps(FRANCE | {"others": {"prompt": "x", "answer": "y"}}), "others={"),
    "others numbers": (".jsonl", json.dumps(FRANCE | {"others": [5]}), "others[0]=5 is no pair"),
    "others text": (".jsonl", json.dumps(FRANCE | {"others": "x => y"}), "others='x => y': expected a list"),
    "locality lists": (
        ".jsonl",
        json.dumps(
            {
                "prompt": "The capital of France is", "subject": "France", "ground_truth": "Paris",
                "target_new": "Lyon", "locality_prompt": ["Of Italy it is"], "locality_ground_truth": ["Rome"],
            }
        ),
        Fact(PARIS, (), (("Of Italy it is", "Rome"),)),
    ),
    "locality without answer": (
        ".jsonl", json.dumps(FRANCE | {"locality_prompt": "x"}), "'locality_ground_truth' is missing: expected one",
    ),
    "locality numbers": (
        ".jsonl", json.dumps(FRANCE | {"locality_prompt": 5, "locality_ground_truth": 6}), "locality_prompt=5",
    ),
    "locality mapping of texts": (".jsonl", json.dumps(FRANCE | {"locality": {"a": "b"}}), "locality.a='b'"),
    "CounterFact, null inside": (
        ".json", json.dumps([COUNTERFACT | {"paraphrase_prompts": [None]}]), "record 0: paraphrase_prompts=[None]",
    ),
    "CounterFact, a text for a list": (
        ".json",
        json.dumps([COUNTERFACT | {"paraphrase_prompts": "France's capital is"}]),
        Fact(PARIS, ("France's capital is",), (("The capital of Monaco is", "Paris"),)),
    ),
    "CounterFact, numbers": (".json", json.dumps([COUNTERFACT | {"paraphrase_prompts": 5}]), "paraphrase_prompts=5"),
    "CounterFact, neighbours numbers": (
        ".json", json.dumps([COUNTERFACT | {"neighborhood_prompts": [5]}]), "neighborhood_prompts=[5]",
    ),
    "CounterFact, neighbours blank": (
        ".json", json.dumps([COUNTERFACT | {"neighborhood_prompts": [" "]}]), "neighborhood_prompts=[' ']",
    ),
    "CounterFact, answers number": (
        ".json", json.dumps([COUNTERFACT | {"neighborhood_answers": 5}]), "neighborhood_answers=5",
    ),
    "CounterFact, others numbers": (".json", json.dumps([COUNTERFACT | {"other_prompts": 5}]), "other_prompts=5"),
    "CounterFact, rewrite a text": (".json", json.dumps([{"requested_rewrite": "x"}]), "requested_rewrite='x'"),
    "literal braces": (
        ".jsonl",
        json.dumps({"prompt": "In Python, {} creates an empty", "subject": "Python", "answer": "dictionary"}),
        Fact(Request("In ", "Python", ", {} creates an empty", "dictionary")),
    ),
    "decomposed": (
        ".jsonl",
        json.dumps({"prompt": "Beyonce\u0301 was born in", "subject": "Beyonc\u00e9", "answer": "Houston"}),
        Fact(Request("", "Beyonce\u0301", " was born in", "Houston")),
    ),
    "twice": (".jsonl", "\n".join([json.dumps(FRANCE)] * 2), "line 1 and "),
    "twice, decomposed": (
        ".jsonl",
        "\n".join(json.dumps(FRANCE | {"subject": name}) for name in ("Beyonc\u00e9", "Beyonce\u0301")),
        "are duplicates",
    ),
    "control character": (
        ".jsonl", json.dumps(FRANCE | {"prompt": "The capital\u0001 of {} is"}), "holds U+0001 at position 11",
    ),
    "escape in an answer": (".jsonl", json.dumps(FRANCE | {"answer": "\u001b[31m"}), "holds U+001B at position 0"),
    "NUL": (".jsonl", json.dumps(FRANCE | {"subject": "a\u0000"}), "subject='a\\x00' holds U+0000"),
    "noncharacter": (".jsonl", json.dumps(FRANCE | {"others": [["x\ufffe", "y"]]}), "others[0][0]='x\\ufffe' holds"),
    "lone surrogate": (".jsonl", json.dumps(FRANCE | {"subject": "\ud800"}), "half of a surrogate pair"),
    "zero-width subject": (".jsonl", json.dumps(FRANCE | {"subject": "\u200b"}), "subject='\\u200b' is empty"),
    "alias bomb": (
        ".yaml",
        "- [&a0 [x,x,x,x,x,x,x,x,x]"
        + "".join(f", &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
        + "]",
        "its aliases stand for more than the file holds",
    ),
    "alias bomb in paraphrases": (
        ".yaml",
        "- {prompt: x, paraphrases: [&a0 [x,x,x,x,x,x,x,x,x]"
        + "".join(f", &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
        + "]}",
        "its aliases stand for more than the file holds",
    ),
    "duplicate key, yaml": (
        ".yaml", "- {prompt: 'Of {}', subject: France, answer: Paris, answer: Lyon}", "the key 'answer' stands twice",
    ),
    "duplicate key, json": (".json", '[{"answer": "Paris", "answer": "Lyon"}]', "the key 'answer' stands twice"),
    "mixed keys": (".yaml", "- {prompt: 'x {}', subject: a, answer: b, 1: c, foo: d}", "the key 1 is int"),
    "number in yaml": (".yaml", "- {prompt: 'x {}', subject: a, answer: 1984}", "found int: put it in quotes"),
    "word that yaml reads as false": (".yaml", "- {prompt: 'x {}', subject: a, answer: no}", "answer=False"),
    "misspelt field": (".jsonl", json.dumps(FRANCE | {"paraphrase": ["x"]}), "did you mean 'paraphrases'?"),
    "no UTF-8": (".csv", "prompt,subject".encode("utf-16"), "save it as UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MET)
def test_what_users_met(name: str) -> None:
    suffix, text, right = MET[name]
    if isinstance(right, Fact):
        assert read_text(suffix, text) == [right]
        return
    with pytest.raises(RequestError) as caught:
        read_text(suffix, text)
    message = str(caught.value)
    assert right in message
    assert f"facts{suffix}" in message
    assert "\n" not in message and len(message) < 800


def test_an_error_names_the_line_of_its_file() -> None:
    rows = [FRANCE, FRANCE | {"subject": "Italy"}, FRANCE | {"subject": "Spain", "answer": 3}]
    with pytest.raises(RequestError, match=r"facts\.jsonl, line 5: answer=3"):
        read_text(".jsonl", "\n\n".join(map(json.dumps, rows)))
    with pytest.raises(RequestError, match=r"facts\.json, record 2: answer=3"):
        read_text(".json", json.dumps(rows))


def test_the_documented_record_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/facts.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (fact,) = read_text(".json", text)
    assert fact.paraphrases[0] == "France's capital is"
    assert fact.neighbours == (("The capital of Italy is", "Rome"),)
    named = set(re.findall(r"`(\w+)`", page))
    assert {"prompt", "subject", "answer", "paraphrases", "neighbours", "others", "neutral", "joint", "chat"} <= named


def test_facts_of_pythons_own_pass_through() -> None:
    fact = Fact(Request.of("Of {}:", "Spain", "Madrid"))
    assert load_facts([fact, FRANCE]) == [fact, Fact(PARIS)]
    with pytest.raises(RequestError, match="record 1: subject"):
        load_facts([fact, FRANCE | {"subject": 3}])


# --- the border holds whatever comes -------------------------------------------------------------------------------

_NAMES = (
    "prompt", "subject", "answer", "ground_truth", "neutral", "target_new", "joint", "chat", "paraphrases",
    "rephrase_prompt", "neighbours", "others", "locality", "locality_prompt", "locality_ground_truth", "question",
    "src", "answers", "loc", "loc_ans", "requested_rewrite", "neighborhood_prompts", "str",
)  # fmt: skip
_texts = st.sampled_from(["", " ", "France", "{}", "The capital of {} is", "{} {}", "Paris"]) | st.text(max_size=8)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _texts
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
_records = st.fixed_dictionaries({}, optional=dict.fromkeys(_NAMES, _values)) | st.builds(
    lambda base, changes: base | changes,
    st.sampled_from([FRANCE, COUNTERFACT]),
    st.dictionaries(st.sampled_from(_NAMES), _values, max_size=2),
)


def texts_of(fact: Fact) -> list[str]:
    request = fact.request
    pairs = [text for pair in (*fact.neighbours, *fact.others) for text in pair]
    return [request.prompt, request.subject, request.answer, *fact.paraphrases, *pairs]


def check_border(suffix: str, text: bytes) -> None:
    """Read, every text of it one; or one sentence that names the file. No other exception."""
    try:
        facts = read_text(suffix, text)
    except ZeroUnlearnError as error:
        sentence = str(error)
    else:
        sentence, found = "", [text for fact in facts for text in texts_of(fact)]
    if sentence:
        assert f"facts{suffix}" in sentence
        assert "\n" not in sentence and len(sentence) < 1500
        return
    assert all(isinstance(text, str) and not is_blank(text) and refused_character(text) is None for text in found)
    for fact in facts:
        assert fact.request.neutral is None or fact.request.neutral.strip()
        assert isinstance(fact.request.chat, bool)
        assert isinstance(fact.request.joint, (str, type(None)))


@settings(max_examples=300)
@given(st.lists(_records | _values, max_size=3) | _values)
def test_any_records_are_read_or_refused(value: Any) -> None:
    check_border(".json", json.dumps(value).encode("utf-8", "surrogatepass"))
    lines = value if isinstance(value, list) else [value]
    check_border(".jsonl", "\n".join(map(json.dumps, lines)).encode("utf-8", "surrogatepass"))
    check_border(".yaml", json.dumps(value).encode("utf-8", "surrogatepass"))


@settings(max_examples=150)
@given(st.lists(st.lists(_texts, max_size=5), max_size=4), st.lists(st.sampled_from(_NAMES) | _texts, max_size=5))
def test_any_table_is_read_or_refused(rows: list[list[str]], header: list[str]) -> None:
    # Not by csv.writer, which writes no NUL before Python 3.11.
    quoted = [",".join('"{}"'.format(cell.replace('"', '""')) for cell in row) for row in [header, *rows]]
    check_border(".csv", "\r\n".join(quoted).encode("utf-8", "surrogatepass"))


@settings(max_examples=150)
@given(
    st.sampled_from([".json", ".jsonl", ".yaml", ".csv", ".parquet"]),
    st.binary(max_size=60) | st.text(alphabet="{}[]\",:- \n&*!?|>'%@`abc\ufeff\x00", max_size=40).map(str.encode),
)
def test_any_bytes_are_read_or_refused(suffix: str, text: bytes) -> None:
    check_border(suffix, text)


def test_a_corpus_names_a_file_and_holds_texts(tmp_path: Path) -> None:
    (tmp_path / "c[12].txt").write_text("mine\n")
    (tmp_path / "c1.txt").write_text("another's\n")
    corpus = open_corpus(str(tmp_path / "c[12].txt"))
    assert list(corpus.texts()) == ["mine"], "a name is a file, not a pattern"
    with pytest.raises(ConfigError, match="expected 'embedded'"):
        open_corpus(str(tmp_path / "c*.txt"))
    path = tmp_path / "null.jsonl"
    path.write_text('{"text": null}\n{"text": "abc def"}\n')
    texts = open_corpus(str(path)).texts()
    assert texts[1] == "abc def"
    for ask in (lambda: texts[0], lambda: texts[0:2], lambda: list(texts)):
        with pytest.raises(StatisticsError, match=r"null\.jsonl': row 0: text=None: expected a text: drop the row"):
            ask()
