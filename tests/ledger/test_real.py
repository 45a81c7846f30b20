"""The ledger on the real model: two runs, one after another, and every snippet of its guide."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zerounlearn as zu
from tests.conftest import ROOT
from tests.ledger.conftest import Place
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.forget import edit_file, forget_pending
from zerounlearn.ledger.revert import revert_run

GUIDE = (ROOT / "docs/ledger.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(python|bash)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
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


def _run(kind: str, text: str, folder: Path, smollm2_path: Path) -> None:
    for name, target in {"models": smollm2_path.parent, "data": ROOT / "data", "examples": ROOT / "examples"}.items():
        target.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_guides_python_runs(tmp_path: Path, smollm2_path: Path) -> None:
    (text,) = [text for kind, text in SNIPPETS if kind == "python"]
    assert "assert" in text
    _run("python", text, tmp_path, smollm2_path)


@pytest.mark.slow
def test_the_guides_commands_run(tmp_path: Path, smollm2_path: Path) -> None:
    """One after another, as they stand there."""
    texts = [text for kind, text in SNIPPETS if kind == "bash"]
    assert len(texts) == 3
    _run("bash", "".join(texts), tmp_path, smollm2_path)
    states = [one.state for one in Ledger.open(tmp_path / "ledger.sqlite").books().requests.values()]
    assert states == ["audited"] * 3 + ["forgotten"] * 2
    assert said(tmp_path / "outputs/december", FACTS) == [False] * 5
    assert (tmp_path / "status.html").is_file() and (tmp_path / "books.csv").is_file()
