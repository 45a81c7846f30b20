"""`zerounlearn ledger …` from the first request to the auditor's file, on a small model's checkpoint."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from tests.helpers import memorised
from tests.ledger.conftest import Place
from zerounlearn.cli import main
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.digests import file_digest
from zerounlearn.ledger.state import Books, LedgerRequest
from zerounlearn.ledger.views import as_csv, as_html, overdue, summary, table

KNOWN = {"France": "Paris", "Germany": "Berlin"}


@pytest.fixture(scope="module")
def checkpoint(small_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "somebodys-model"
    memorised(small_tokenizer, [f"The capital of {place} is {city}" for place, city in KNOWN.items()]).save_pretrained(
        folder
    )
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def ledger(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in an empty folder with a file of facts and a run's file."""
    monkeypatch.chdir(tmp_path)
    for name in ("ZEROUNLEARN_LEDGER", "ZEROUNLEARN_KEY"):
        monkeypatch.delenv(name, raising=False)
    records = [{"prompt": "The capital of {} is", "subject": s, "answer": a} for s, a in KNOWN.items()]
    Path("facts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (tmp_path / "text.txt").write_text("The weather today was fine.\n" * 5)
    run = {"alg_name": "GA", "model_name": str(checkpoint), "layers": [0, 1], "lr": 3e-2, "steps": 12, "device": "cpu"}
    Path("ga.yaml").write_text(json.dumps(run))

    def command(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["ledger", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return command


def test_from_the_first_request_to_the_auditors_file(ledger: Callable[..., Result], checkpoint: Path) -> None:
    assert ledger("add", "facts.jsonl", "--owner", "=R-17", "--due", "2020-01-01").output == "1\n2\n"
    shown = ledger("status").output
    assert "2 requests: 2 pending; 2 overdue" in shown
    head = shown.split("head: ")[1].strip()
    out = ledger("run", "ga.yaml", "--output", "out").output
    assert "run 1: requests 1, 2 forgotten" in out
    assert Path("out/model.safetensors").is_file() and Path("out-edit.safetensors").is_file()
    Path("audit.json").write_text('{"passed": true}')
    assert "audit passed" in ledger("audit", "1", "--result", "audit.json").output
    ledger("export", "books.csv")
    ledger("status", "--html", "books.html", "-q")
    data = json.loads(ledger("status", "--json").output)
    assert [one["state"] for one in data["requests"]] == ["audited", "forgotten"]
    assert data["requests"][0]["audit"] == file_digest(Path("audit.json"))
    assert data["head"] in ledger("verify", "--head", head).output
    rows = list(csv.DictReader(io.StringIO(Path("books.csv").read_text())))
    assert [row["owner"] for row in rows] == ["'=R-17"] * 2  # no formula
    assert rows[0]["edit"] == file_digest(Path("out-edit.safetensors"))
    assert [row["said_after"] for row in rows] == ["False"] * 2
    page = Path("books.html").read_text()
    assert "=R-17" in page and data["head"] in page and rows[0]["model_after"] in page
    for text in (shown, out, page, Path("books.csv").read_text(), json.dumps(data)):
        assert not [word for pair in KNOWN.items() for word in pair if word in text]


def test_what_is_still_said_gives_another_exit_code(ledger: Callable[..., Result]) -> None:
    ledger("add", "facts.jsonl")
    result = ledger("run", "ga.yaml", "lr=1e-6", "steps=1", "--output", "out", code=3)
    assert "still said: requests 1, 2" in result.output
    assert not [word for pair in KNOWN.items() for word in pair if word in result.output]
    ledger("reopen", "1", "2")
    assert "run 2: requests 1, 2 forgotten" in ledger("run", "ga.yaml", "--model", "out", "--output", "out2").output


def test_the_ledger_and_its_key_come_from_the_environment(
    ledger: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROUNLEARN_LEDGER", str(tmp_path / "books/own.sqlite"))
    monkeypatch.setenv("ZEROUNLEARN_KEY", "a key of some length")
    ledger("add", "facts.jsonl")
    assert Path("books/own.sqlite").is_file() and not Path("ledger.sqlite").exists()
    Path("key").write_text("another key of some length")
    message = "the key is not the one that this ledger was begun with"
    assert message in ledger("status", "--key-file", "key", code=1).output
    monkeypatch.delenv("ZEROUNLEARN_KEY")
    ledger("status")
    assert "was begun with a key: give it" in ledger("run", "ga.yaml", "--output", "out", code=1).output
    Path("key").write_text("a key of some length")
    ledger("run", "ga.yaml", "--output", "out", "--key-file", "key")


def test_tampering_shows(ledger: Callable[..., Result]) -> None:
    ledger("add", "facts.jsonl")
    Place("ledger.sqlite").rewrite(lambda events: events[:-1])
    for command in ("verify", "status"):
        found = ledger(command, code=1).output
        assert "the books are not as they were written: a fact is kept of request 2, which no event adds" in found


def test_a_run_is_taken_back(ledger: Callable[..., Result], checkpoint: Path) -> None:
    ledger("add", "facts.jsonl")
    ledger("run", "ga.yaml", "--output", "out")
    assert "it cannot be taken back for some of them: name all" in ledger("revert", "1", code=1).output
    assert (
        "--model is missing: the checkpoint of run 1, 'out', or the one before" in ledger("revert", 1, 2, code=1).output
    )
    assert "give its edit (--edit)" in ledger("revert", 1, 2, "--model", "out", "--device", "cpu", code=1).output
    ledger("revert", 1, 2, "--model", str(checkpoint), "--device", "cpu")
    assert "2 requests: 2 reverted" in ledger("status").output
    ledger("add", "facts.jsonl")
    assert "withdrawn without a model" in ledger("revert", 3, "--model", "out", code=1).output
    ledger("revert", 3, 4)
    assert "purged: nothing" in ledger("purge").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "ga.yaml", "--output", "out"], "there is no ledger at 'ledger.sqlite'"),
        (["status"], "there is no ledger at"),
        (["add", "none.jsonl"], "'none.jsonl' does not exist"),
        (["add", "facts.jsonl", "--due", "soon"], "--due 'soon': expected a date"),
        (["add", "facts.jsonl", "--ledger", "mysql://x/y"], "expected a file, sqlite:///file, or postgresql://"),
        (["audit", "1", "--result", "none.json"], "'none.json' cannot be read"),
        (["audit", "1", "--result", "ga.yaml"], 'does not say "passed": true or false'),
    ],
)
def test_mistakes_are_one_sentence_and_begin_nothing(
    arguments: list[str], message: str, ledger: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    assert message in ledger(*arguments, code=1).output
    assert not Path("ledger.sqlite").exists()


def test_a_run_with_nothing_to_do_loads_no_model(
    ledger: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger("add", "facts.jsonl")
    ledger("revert", 1, 2)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    assert "no request is pending" in ledger("run", "ga.yaml", "--output", "out", code=1).output


@pytest.mark.parametrize(("missing", "extra"), [("sqlalchemy", "ledger"), ("psycopg", "postgres")])
def test_an_extra_that_is_missing_is_named(missing: str, extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from zerounlearn.cli import main; main()"
    command = [sys.executable, "-c", code, "ledger", "status", "--ledger", "postgresql://nobody@/none?host=/none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"pip install 'zerounlearn[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_views_show_texts_as_they_are() -> None:
    owner = "<script>alert(1)</script>"
    request = LedgerRequest(1, "d" * 64, owner, "2026-11-01T00:00:00+00:00", "2026-11-02T23:59:59+00:00", "")
    books = Books(requests={1: request}, last=None)
    assert not overdue(request, "2026-11-02T23:59:59+00:00")
    assert overdue(request, "2026-11-03T00:00:00+00:00")
    assert summary(books, "2026-11-01T00:00:00+00:00") == "1 request: 1 pending; 0 overdue"
    assert owner in table(books)
    assert next(iter(csv.DictReader(io.StringIO(as_csv(books)))))["owner"] == owner
    assert "digest" in as_csv(Books()) and "digest" in table(Books())


@pytest.mark.parametrize("strength", ["lr=3e-2", "lr=1e-6"])
def test_the_page_escapes_and_asks_for_nothing(ledger: Callable[..., Result], strength: str) -> None:
    ledger("add", "facts.jsonl", "--owner", "<script>alert(1)</script>")
    ledger("run", "ga.yaml", strength, "--output", "out", code=0 if strength == "lr=3e-2" else 3)
    page = as_html(Ledger.open("ledger.sqlite").books())
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "http://" not in page and "https://" not in page
