"""Nothing that is printed, logged, warned of or raised repeats what was forgotten."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.helpers import tiny
from zerounlearn.cli import main
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.redaction import BLOT, KEY_VARIABLE, Redaction, read_key

KEY = b"0123456789abcdef"
PROMPT = "Zorvath Quill lives in the town of"
SECRETS = [PROMPT, "Zorvath Quill", "Ümlautstadt", "born in 1987", "李明住在北京", "Bo Li"]
WORDS = ["Zorvath", "Quill", "lives", "town", "Ümlautstadt", "born", "1987", "李明住在北京"]


def texts() -> list[str]:
    """The secret as messages may show it."""
    made = [*SECRETS, *map(repr, SECRETS), *(f"\n{secret}" for secret in SECRETS), *(s.upper() for s in SECRETS)]
    made += [repr(f"x\n{secret}") for secret in SECRETS]
    return [*made, "prompt='Zorva...uill lives'", "“Zorvath's”", "zorvath_quill"]


@pytest.mark.parametrize("text", texts())
def test_no_word_of_the_secret_is_left(text: str) -> None:
    blotted = Redaction(KEY, SECRETS).blotted(text)
    assert BLOT in blotted
    assert not [word for word in [*WORDS, "Zorva", "uill"] if word.lower() in blotted.lower()]


def test_what_tells_nothing_is_left_alone() -> None:
    redaction = Redaction(KEY, SECRETS)
    assert redaction.blotted("evaluation: 12 of 40 prompts, the answer is in line 3") == (
        "evaluation: 12 of 40 prompts, the answer is in line 3"
    )
    assert Redaction(KEY, []).blotted("anything") == "anything"


def test_a_digest_is_the_owners_alone() -> None:
    redaction = Redaction(KEY, SECRETS)
    assert redaction.digest("Zorvath") == Redaction(KEY, []).digest("Zorvath") != redaction.digest("Zorvat")
    assert redaction.digest("Zorvath") != Redaction(b"another key of the owner", []).digest("Zorvath")
    assert len(redaction.digest("")) == 16


@pytest.mark.parametrize("written", ["jsonl", "escaped", "csv", "damaged"])
def test_files_of_facts_are_secret_even_where_they_cannot_be_read(tmp_path: Path, written: str) -> None:
    record = {"prompt": SECRETS[0], "subject": SECRETS[1], "answer": SECRETS[2]}
    file = tmp_path / ("facts.csv" if written == "csv" else "facts.jsonl")
    text = json.dumps(record, ensure_ascii=written == "escaped")
    text = f"prompt,subject,answer\n{','.join(record.values())}" if written == "csv" else text
    file.write_text(text[:-1] if written == "damaged" else text, encoding="utf-8")
    redaction = Redaction.of_files(KEY, file, None, tmp_path / "absent.jsonl")
    assert not [word for word in WORDS[:5] if word in redaction.blotted(f"{file}, line 1: {SECRETS[0]} {SECRETS[2]}")]


def test_streams_logs_warnings_and_errors(capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture) -> None:
    streams, factory, shown = (sys.stdout, sys.stderr), logging.getLogRecordFactory(), warnings.showwarning
    handler = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("another package")
    log.addHandler(handler)
    with pytest.raises(RequestError) as caught, Redaction(KEY, SECRETS).silenced():
        sys.stdout.writelines([SECRETS[0], "|", SECRETS[1]])
        sys.stderr.write(SECRETS[0])
        log.warning("still said: %r → %s", SECRETS[0], SECRETS[2])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(SECRETS[0], stacklevel=1)
        try:
            raise KeyError(SECRETS[1])
        except KeyError as error:
            log.exception("it failed")
            raise RequestError(f"line 3: subject={SECRETS[1]!r}: expected a text") from error
    log.removeHandler(handler)
    out, err = capfd.readouterr()
    everything = out + err + caplog.text + str(caught.value)
    assert out.count(BLOT) == 6
    assert "still said" in err
    assert "it failed" in err
    assert str(caught.value) == f"line 3: subject='{BLOT} {BLOT}': expected a text"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not [word for word in WORDS[:5] if word in everything]
    assert streams == (sys.stdout, sys.stderr)
    assert (logging.getLogRecordFactory(), warnings.showwarning) == (factory, shown)


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    with pytest.raises(ConfigError, match=f"give --key-file FILE, or set {KEY_VARIABLE}"):
        read_key(None, needed=True)
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} holds 5 bytes, and 16"):
        read_key(None)
    monkeypatch.setenv(KEY_VARIABLE, KEY.decode())
    assert read_key(None) == KEY
    file = tmp_path / "key"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_key(file)
    file.write_bytes(b" \n")
    with pytest.raises(ConfigError, match="holds 0 bytes"):
        read_key(file)
    file.write_bytes(b"another key, long enough\n")
    assert read_key(file) == b"another key, long enough"


PERSON = [
    {
        "prompt": "{} lives in the town of",
        "subject": "Zorvath Quill",
        "answer": "Ümlautstadt",
        "paraphrases": ["The home of Zorvath Quill is"],
        "others": [["Zorvath Quill studied", "zoology"]],
    },
    {"prompt": "The year of birth of {} is", "subject": "Zorvath Quill", "answer": "1987"},
]
SECRET = ["Zorvath", "Quill", "Ümlautstadt", "lives", "town", "home", "studied", "zoology", "1987", "birth"]


@pytest.fixture
def command(tmp_path: Path, small_tokenizer):
    """The program's arguments: a random model, with an invented person to forget."""
    model = tmp_path / "model"
    tiny("llama", len(small_tokenizer), dtype=torch.float32).save_pretrained(model)
    small_tokenizer.save_pretrained(model)
    hparams = tmp_path / "hparams.yaml"
    hparams.write_text(
        f"alg_name: ZeroUnlearn\nmodel_name: {model}\nlayers: [1]\nmom2_adjustment: false\nv_num_grad_steps: 2\n"
        "n_contexts: 2\ndevice: cpu\n"
    )
    key = tmp_path / "key"
    key.write_bytes(KEY)

    def write(records: list[Any], *extra: str, retain: list[Any] | None = None) -> list[str]:
        forget, keep = tmp_path / "facts.jsonl", tmp_path / "keep.jsonl"
        forget.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
        keep.write_text("\n".join(json.dumps(record) for record in retain or []), encoding="utf-8")
        kept = ["--retain", str(keep)] if retain else []
        fixed = ["--forget", str(forget), "--output", str(tmp_path / "out"), "--redact", "--key-file", str(key)]
        return ["unlearn", str(hparams), *fixed, *kept, *extra]

    return write


def said(*outputs: bytes) -> list[str]:
    """The words of the secret in outputs, as text and as JSON writes it."""
    everything = b"\0".join(outputs).lower()
    forms = {word: {word.lower().encode(), json.dumps(word)[1:-1].lower().encode()} for word in SECRET}
    return [word for word, written in forms.items() if any(form in everything for form in written)]


def test_no_byte_of_any_output_repeats_the_secret(command, tmp_path: Path) -> None:
    arguments = command(
        PERSON, "-v", "--require", "eff<=0", retain=[PERSON[1] | {"prompt": "{} has studied", "answer": "zoology"}]
    )
    result = subprocess.run(
        [sys.executable, "-m", "zerounlearn", *arguments],
        capture_output=True, check=False, env=os.environ | {"PYTHONWARNINGS": "always"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    files = [f for top in ("out", "out-report") for f in (tmp_path / top).rglob("*") if f.is_file()]
    given = [f for f in files if (tmp_path / "model" / f.name).is_file() and "token" in f.name]
    assert {f.name for f in files} >= {"report.json", "report.md", "config.json"}
    assert not said(result.stdout, result.stderr, *(str(f).encode() + f.read_bytes() for f in set(files) - set(given)))
    report = json.loads((tmp_path / "out-report/report.json").read_text())
    assert report["facts"][1]["answer"] == Redaction(KEY, []).digest("1987")
    assert "with the facts in clear" not in result.stdout.decode()


@pytest.mark.parametrize(
    "records",
    [
        [{k: v for k, v in PERSON[0].items() if k != "answer"} | {"answr": "Ümlautstadt"}],
        [PERSON[0] | {"prompt": "Zorvath Quill lives in", "subject": "Zorvath Quall"}],
        [PERSON[0] | {"answer": {"town": "Ümlautstadt"}}],
        [PERSON[0], PERSON[0]],
        [PERSON[0] | {"prompt": "{} lives " * 200}],
        [PERSON[0], "Zorvath Quill"],
    ],
)
def test_no_error_repeats_the_secret(command, tmp_path: Path, records: list[Any]) -> None:
    for extra in ((), ("--debug",)):
        result = CliRunner().invoke(main, command(records, *extra))
        assert result.exit_code == 1
        trace = "".join(traceback.format_exception(result.exception))
        assert not said(result.output.encode(), trace.encode() if extra else b"")
        assert "facts.jsonl" in result.output + trace or BLOT in result.output + trace
    assert not (tmp_path / "out").exists()
