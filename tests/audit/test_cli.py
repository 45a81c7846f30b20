"""`zerounlearn audit` and `audit verify`, on checkpoints and on an edit's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.audit.conftest import KNOWN, Forgetful
from tests.audit.test_certificate import keys
from zerounlearn.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture
def files(forgetful: Forgetful, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both checkpoints, the edit and the facts; the current one."""
    monkeypatch.chdir(tmp_path)
    tokenizer: Any = forgetful.tokenizer
    forgetful.edit.save(tmp_path / "edit.safetensors", originals=True)
    forgetful.model.save_pretrained(tmp_path / "edited")
    forgetful.edit.revert(forgetful.model)
    forgetful.model.save_pretrained(tmp_path / "base")
    forgetful.edit.apply(forgetful.model)
    for name in ("edited", "base"):
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": r.prompt, "subject": r.subject, "answer": r.answer} for r in KNOWN]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["audit", *args])


def audited(edited: str, output: str, *more: str) -> Result:
    given = ["--base", "base", "--forget", "facts.jsonl", "--attacks", "plain,wording", "--output", output]
    return run(edited, *given, *more)


def test_a_checkpoint_and_an_edit_give_the_same_audit_which_verifies(files: Path) -> None:
    for edited, output in (("edited", "one"), ("edit.safetensors", "two")):
        result = audited(edited, output)
        assert result.exit_code == 0, result.output
        assert "grade" in result.output and "Wording: filler" in result.output
    one, two = (json.loads((files / name / "audit.json").read_text()) for name in ("one", "two"))
    assert one | {"seconds": {}} == two | {"seconds": {}}
    assert (files / "one" / "audit.html").is_file()
    fitting = ["--edited", "edited", "--base", "base", "--forget", "facts.jsonl"]
    result = run("verify", "one", *fitting)
    assert result.exit_code == 0, result.output
    assert "the certificate is of this audit, the edited model, the base model, these facts" in result.output
    assert "not checked: signature" in result.output
    result = run("verify", "one", "--edited", "base")
    assert (result.exit_code, "edited: not what was audited" in result.output) == (1, True)


@pytest.mark.usefixtures("files")
def test_nothing_tells_what_was_forgotten_where_it_is_redacted(tmp_path: Path) -> None:
    Path("key").write_text("0123456789abcdef")
    result = audited("edited", "out", "--redact", "--key-file", "key", "--verbose")
    assert result.exit_code == 0, result.output
    everything = result.output.encode() + b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    for word in ("France", "Paris", "Peace", "Tolstoy", "Janeiro", "Portuguese"):
        assert word.encode() not in everything
    given = ("verify", "out", "--forget", "facts.jsonl")
    result = run(*given, "--key-file", "key")
    assert result.exit_code == 0, result.output
    assert run(*given).exit_code == 1


@pytest.mark.usefixtures("files")
def test_a_signed_certificate(tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    private, public = keys(tmp_path, "own")
    assert audited("edited", "out", "--sign", str(private)).exit_code == 0
    result = run("verify", "out", "--signed-by", str(public))
    assert result.exit_code == 0, result.output
    assert "this key's owner" in result.output


@pytest.mark.parametrize(
    ("edited", "more", "message"),
    [
        ("edited", ["--budget", "huge"], "--budget='huge'"),
        ("edited", ["--attacks", "plane"], "did you mean 'plain'"),
        ("edited", ["--output", "base"], "holds the model"),
        ("edited", ["--sign", "facts.jsonl"], "is no private key"),
        ("edited", ["--base", "nowhere/at/all"], "there is no such folder"),
        ("base", [], "the base model's weights, every one"),
        ("facts.jsonl", [], "facts.jsonl"),
        ("edited", ["--controls", "0"], "--controls"),
    ],
)
@pytest.mark.usefixtures("files")
def test_mistakes_leave_no_folder(edited: str, more: list[str], message: str) -> None:
    result = audited(edited, "out", *more)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not Path("out").exists()


def test_help_names_both_ways() -> None:
    result = run("--help")
    assert (result.exit_code, "run " in result.output, "verify" in result.output) == (0, True, True)
    assert "--budget" in run("run", "--help").output
