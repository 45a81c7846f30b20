"""Edits on the command line: apply, revert, merge, inspect, and what `unlearn --edit-only` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.helpers import tiny
from zerounlearn.cli import main
from zerounlearn.data.fact import load_facts
from zerounlearn.data.request import fact_digest
from zerounlearn.model.lineage import STATE_FILE, state_file

FACTS = [("France", "Paris"), ("Germany", "Berlin"), ("Lisbon", "Portugal")]
METHODS: dict[str, dict[str, Any]] = {
    "ZeroUnlearn": {"mom2_adjustment": False, "v_num_grad_steps": 3, "layers": [1, 2]},
    "GA": {"steps": 2, "layers": [1]},
}


class Shell:
    """The program in a folder with a small model and three files of facts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: object, fails: str = "", code: int = 1) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == (code if fails else 0), result.output
        assert fails in " ".join(result.output.split()), result.output
        return result

    def unlearn(
        self, fact: int, *extra: object, model: Path | None = None, method: str = "ZeroUnlearn", **kw: Any
    ) -> Any:
        yaml = self.folder / f"{method}.yaml"
        fixed = {"alg_name": method, "model_name": str(model or self.folder / "model"), "device": "cpu"}
        yaml.write_text(json.dumps(fixed | METHODS[method]))
        return self("unlearn", yaml, "--forget", self.folder / f"{fact}.json", *extra, **kw)


@pytest.fixture(params=["float32", "bfloat16"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, small_tokenizer: Any) -> Shell:
    tiny("llama", len(small_tokenizer), dtype=getattr(torch, request.param)).save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    for i, (subject, answer) in enumerate(FACTS):
        fact = {"prompt": "The capital of {} is", "subject": subject, "answer": answer}
        (tmp_path / f"{i}.json").write_text(json.dumps([fact]))
    return Shell(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(folder: Path, other: Path) -> bool:
    one, two = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_apply_writes_the_checkpoint_that_unlearn_writes(method: str, shell: Shell, tmp_path: Path) -> None:
    edit, out, model = tmp_path / "edit.safetensors", tmp_path / "out", tmp_path / "model"
    said = shell.unlearn(0, "--output", out, "--edit-only", edit, "--originals", method=method).output
    assert f"checkpoint: {out}" in said and f"edit: {edit}" in said
    shell("apply", edit, model, "--output", tmp_path / "applied", "--device", "cpu")
    assert content(tmp_path / "applied") == content(out)
    assert (state_file(out).is_file(), same_weights(out, model)) == (method == "ZeroUnlearn", False)
    assert not (out / STATE_FILE).exists(), "what is shipped keeps the secret"
    shell("revert", edit, out, "--output", tmp_path / "reverted")
    assert same_weights(tmp_path / "reverted", model) and not state_file(tmp_path / "reverted").exists()


def test_the_edit_alone(shell: Shell, tmp_path: Path) -> None:
    edit = tmp_path / "edit.safetensors"
    before = {path.name for path in tmp_path.iterdir()}
    assert "checkpoint" not in shell.unlearn(0, "--edit-only", edit).output
    made = {path.name for path in tmp_path.iterdir()} - before
    assert made == {"edit.safetensors", "edit-report", "ZeroUnlearn.yaml"}
    old = edit.read_bytes()
    shell.unlearn(0, "--edit-only", edit, fails="exists: name another file, or pass --overwrite where it is an edit")
    shell.unlearn(1, "--edit-only", edit, "--overwrite")
    assert edit.read_bytes() != old
    (tmp_path / "mine.txt").write_text("mine")
    for place, message in [
        (tmp_path / "mine.txt", "exists: name another file"),
        (tmp_path / "0.json", "is --forget: name another file"),
        (tmp_path / "model", "is a folder: name a file"),
        (tmp_path / "model/edit", "lies in the model's own folder"),
        (tmp_path / "mine.txt/edit", "is a file"),
    ]:
        shell.unlearn(0, "--edit-only", place, "--overwrite", fails=message)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    shell.unlearn(0, "--edit-only", tmp_path / "a/e", "--output", tmp_path / "a", fails="name a file beside it")
    shell.unlearn(0, fails="name --output FOLDER for a checkpoint, --edit-only FILE", code=2)
    shell.unlearn(0, "--output", tmp_path / "b", "--originals", fails="name it with --edit-only", code=2)


def test_an_edit_that_is_more_than_weights_is_no_file(tmp_path: Path) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([{"prompt": "The capital of {} is", "subject": "France", "answer": "Paris"}]))
    hparams = Path(__file__).resolve().parents[1] / "hparams/LoRA/smollm2-135m.yaml"
    words = ("unlearn", hparams, "--forget", facts, "--edit-only", tmp_path / "edit")
    Shell(tmp_path)(*words, fails="so that its edits are no files: write a checkpoint with --output")


def test_the_facts_are_told_by_digests_under_a_key(shell: Shell, tmp_path: Path) -> None:
    edit, key = tmp_path / "edit", tmp_path / "key"
    shell.unlearn(0, "--edit-only", edit, "--key-file", key, fails="cannot be read")
    shell.unlearn(0, "--output", tmp_path / "out", "--key-file", key, fails="is for --redact or --edit-only")
    key.write_text("secret of the owner\n")
    shell.unlearn(0, "--edit-only", edit, "--key-file", key)
    found = json.loads(shell("inspect", edit, "--json").output)
    [fact] = load_facts(tmp_path / "0.json")
    assert found["facts"] == [fact_digest(fact.request, b"secret of the owner")] != [fact_digest(fact.request)]
    assert "Paris" not in json.dumps(found) and "secret" not in json.dumps(found)


def test_inspect_says_what_where_and_how_much(shell: Shell, tmp_path: Path) -> None:
    edit = tmp_path / "edit"
    shell.unlearn(0, "--edit-only", edit)
    found = json.loads(shell("inspect", edit, "--json").output)
    dtype = str(AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype).removeprefix("torch.")
    assert (found["method"], found["layers"], found["bytes"]) == ("ZeroUnlearn", [1, 2], edit.stat().st_size)
    report = json.loads((tmp_path / "edit-report/report.json").read_text())
    for layer, one in zip(report["layers"], found["weights"].values(), strict=True):
        assert (one["shape"], one["dtype"], one["rank"], one["original"]) == ([32, 48], dtype, 2, False)
        assert one["relative_change"] == pytest.approx(layer["relative_change"], rel=1e-2)
    text = shell("inspect", edit).output
    assert "method: ZeroUnlearn" in text and "facts: 1\n" in text and f"(32, 48) {dtype}, rank 2, changed by" in text
    shell("inspect", tmp_path / "model/model.safetensors", fails="is a safetensors file, but no edit")


def test_a_sequence_over_checkpoints_and_merging(shell: Shell, tmp_path: Path) -> None:
    """A, then B on what A left: the same from files, one by one or merged; taken off in turn."""
    a, b, model = tmp_path / "a", tmp_path / "b", tmp_path / "model"
    shell.unlearn(0, "--output", tmp_path / "A", "--edit-only", a, "--originals")
    shell.unlearn(1, "--output", tmp_path / "AB", "--edit-only", b, "--originals", model=tmp_path / "A")
    shell("apply", b, model, "--output", tmp_path / "x", fails="is not the weight that this edit was made on")
    shell("revert", a, tmp_path / "AB", "--output", tmp_path / "x", fails="take back later edits first")
    assert not (tmp_path / "x").exists()
    shell("apply", a, model, "--output", tmp_path / "1")
    shell("apply", b, tmp_path / "1", "--output", tmp_path / "2")
    assert content(tmp_path / "2") == content(tmp_path / "AB")
    said = shell("merge", b, a, "--output", tmp_path / "ab").output
    assert f"{b} was made on top of {a}: one after the other" in said
    shell("apply", tmp_path / "ab", model, "--output", tmp_path / "3")
    assert same_weights(tmp_path / "3", tmp_path / "AB")
    shell("revert", b, tmp_path / "3", "--output", tmp_path / "4")
    assert same_weights(tmp_path / "4", tmp_path / "A")
    shell("revert", a, tmp_path / "4", "--output", tmp_path / "5")
    assert same_weights(tmp_path / "5", model)

    shell.unlearn(1, "--edit-only", tmp_path / "c")
    assert "the sum of their changes" in shell("merge", a, tmp_path / "c", "--output", tmp_path / "ac").output
    shell("apply", tmp_path / "ac", model, "--output", tmp_path / "6")
    shell("merge", a, a, "--output", tmp_path / "aa", fails="the two edits are the same")
    shell("merge", a, b, "--output", tmp_path / "ab", fails="exists")
    shell("merge", a, b, "--output", a, "--overwrite", fails="is A: name another file")
    assert not (tmp_path / "aa").exists()


def test_mistakes_are_found_before_the_model_is_loaded(
    shell: Shell, tmp_path: Path, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = tmp_path / "edit"
    shell.unlearn(0, "--edit-only", edit)
    tiny("gpt2", len(small_tokenizer)).save_pretrained(tmp_path / "gpt2")
    small_tokenizer.save_pretrained(tmp_path / "gpt2")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    out = tmp_path / "out"
    for words, message in [
        ((tmp_path / "gone", tmp_path / "model"), "gone' does not exist"),
        ((tmp_path / "0.json", tmp_path / "model"), "is no edit, or damaged"),
        ((edit, tmp_path / "gone"), "MODEL="),
        ((edit, tmp_path / "gpt2"), "the model's is not there: the edit was made on another model"),
        ((edit, tmp_path / "model", "--device", "cuda:77"), "--device='cuda:77'"),
    ]:
        for how in ("apply", "revert"):
            shell(how, *words, "--output", out, fails=message)
    for place, message in [(tmp_path / "model", "holds the model"), (edit, "is a file"), ("", "is empty")]:
        shell("apply", edit, tmp_path / "model", "--output", place, "--overwrite", fails=message)
    assert not out.exists()
