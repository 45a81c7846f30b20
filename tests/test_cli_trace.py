"""`zerounlearn trace` writes maps, page and numbers, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from tests.guides import like_a_clone, run, snippets
from tests.helpers import tiny
from zerounlearn.cli import main

SUBJECTS = ["Lisbon", "the river", "a big house", "Rio", "Paris", "the old town"]


@pytest.fixture
def traced(tmp_path: Path, small_tokenizer, monkeypatch: pytest.MonkeyPatch):
    """The command on a random model and on what it says of some subjects."""
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    texts = ["The weather was fine in Lisbon.", "People said so because it was late."]
    monkeypatch.setattr("zerounlearn.demo.wikipedia.embedded_held_out_texts", lambda: texts)
    facts = []
    for subject in SUBJECTS:
        ids = torch.tensor([small_tokenizer(f"{subject} is in the")["input_ids"]])
        says = small_tokenizer.decode([int(model(input_ids=ids).logits[0, -1].argmax())])
        if says.strip() and says.isprintable() and says.isascii():
            others = [[f"{subject} was", "old"]]
            facts.append({"prompt": "{} is in the", "subject": subject, "answer": says.strip(), "others": others})
            facts[-1] |= {
                "joint": says[: len(says) - len(says.lstrip())],
                "paraphrases": [f"In the town, {subject} is"],
            }
    assert facts
    forget = tmp_path / "facts.json"

    def run(*extra: str, records: list[Any] = facts) -> Result:
        forget.write_text(json.dumps(records))
        fixed = ["trace", str(tmp_path / "model"), "--forget", str(forget), "--output", str(tmp_path / "out")]
        return CliRunner().invoke(main, [*fixed, "--samples", "2", "--device", "cpu", *extra])

    return run


def test_it_writes_maps_a_page_and_numbers(traced, tmp_path: Path) -> None:
    result = traced()
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "out/trace.json").read_text())
    assert values["trace"]["facts"] >= 1
    assert [len(grid) for grid in values["trace"]["restored"].values()] == [4, 4, 4]
    assert all(0 <= p <= 1 for grid in values["trace"]["restored"].values() for row in grid for p in row)
    suggested = values["suggested"]
    assert suggested["layers"] == [0, 1, 2, 3] and suggested["fact_token"] in ("last", "subject_last")
    assert f"layers {0} to {3}" in result.output
    page = (tmp_path / "out/trace.md").read_text()
    for name in ("trace-block", "trace-mlp", "trace-attention", "trace-lens", "separability-last"):
        assert (tmp_path / f"out/{name}.svg").read_bytes().startswith(b"<?xml")
        assert (tmp_path / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.svg)" in page
    again = traced()
    assert again.exit_code == 1 and "exists and is not empty" in again.output
    assert traced("--overwrite").exit_code == 0


def test_what_cannot_be_traced_is_said_and_nothing_is_written(traced, tmp_path: Path) -> None:
    unknown = [{"prompt": "{} is in the", "subject": "Lisbon", "answer": "Zzz"}]
    result = traced(records=unknown)
    assert result.exit_code == 1 and "says none of these 1 facts" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bash", "python"])
def test_the_pages_snippets_run(kind: str, tmp_path: Path, smollm2_path: Path) -> None:
    (text,) = [text for found, text in snippets("docs/trace.md") if found == kind]
    like_a_clone(tmp_path, smollm2_path)
    run(kind, text, tmp_path)
    assert (tmp_path / "outputs/trace/trace.md").is_file() == (kind == "bash")
