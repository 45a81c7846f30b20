"""The ledger on the real model: two runs, one after another, and every snippet of its guide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zerounlearn as zu
from tests.guides import ROOT, like_a_clone, run, snippets
from tests.ledger.conftest import Place
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.forget import edit_file, forget_pending
from zerounlearn.ledger.revert import revert_run

SNIPPETS = snippets("docs/ledger.md")
FACTS = [json.loads(line) for line in (ROOT / "examples/facts.jsonl").read_text(encoding="utf-8").splitlines()]


def said(folder: Path, facts: list[dict[str, object]]) -> list[bool]:
    model, tokenizer = zu.load_model(str(folder), device="cpu")
    return [one.forget[0] for one in zu.evaluate(model, tokenizer, facts, text=None).facts]


@pytest.mark.slow
def test_what_an_earlier_run_forgot_is_not_said_after_a_later_one(
    smollm2_path: Path, tmp_path: Path, file: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the statistics' folder
    assert said(smollm2_path, FACTS) == [True] * 5
    ledger = Ledger.open(file.url, create=True)
    place = smollm2_path
    for number, part in enumerate((FACTS[:3], FACTS[3:])):
        ids = ledger.add(part)
        method = zu.load_method("hparams/ZeroUnlearn/smollm2-135m.yaml", ["preset=specific", f"model_name={place}"])
        model, tokenizer = zu.load_model(str(place), device="cpu")
        place = tmp_path / f"run-{number}"
        done = forget_pending(ledger, model, tokenizer, method, place, text=None)
        assert done.forgotten == ids
        assert {ledger.books().requests[i].state for i in ids} == {"forgotten"}
    assert said(place, FACTS) == [False] * 5
    assert ledger.verify(done.head) == []

    taken_off = tmp_path / "taken off"
    revert_run(ledger, [4, 5], model, tokenizer, edit=edit_file(place), output=taken_off)  # from the file, to the bit
    assert (taken_off / "model.safetensors").read_bytes() == (tmp_path / "run-0/model.safetensors").read_bytes()
    assert said(taken_off, FACTS) == [False] * 3 + [True] * 2
    assert [one.state for one in ledger.books().requests.values()] == ["forgotten"] * 3 + ["reverted"] * 2


def test_the_guides_python_runs(tmp_path: Path, smollm2_path: Path) -> None:
    (text,) = [text for kind, text in SNIPPETS if kind == "python"]
    assert "assert" in text
    like_a_clone(tmp_path, smollm2_path)
    run("python", text, tmp_path)


@pytest.mark.slow
def test_the_guides_commands_run(tmp_path: Path, smollm2_path: Path) -> None:
    """One after another, as they stand there."""
    texts = [text for kind, text in SNIPPETS if kind == "bash"]
    assert len(texts) == 3
    like_a_clone(tmp_path, smollm2_path)
    run("bash", "".join(texts), tmp_path)
    states = [one.state for one in Ledger.open(tmp_path / "ledger.sqlite").books().requests.values()]
    assert states == ["audited"] * 3 + ["forgotten"] * 2
    assert said(tmp_path / "outputs/december", FACTS) == [False] * 5
    assert (tmp_path / "status.html").is_file() and (tmp_path / "books.csv").is_file()
