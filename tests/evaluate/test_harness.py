"""The evaluation harness on a model in memory, with a task of our own and no network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import tiny

from zerounlearn.errors import ConfigError
from zerounlearn.evaluate.answers import answer_tokens
from zerounlearn.evaluate.harness import standard_tasks

QUESTIONS = [
    ("The capital of France is", ["Paris", "Berlin", "Lisbon"], 0),
    ("War and Peace was written by", ["Rio", "Leo Tolstoy", "a reader"], 1),
    ("People in Rio de Janeiro speak", ["weather", "France", "Portuguese"], 2),
    ("The weather today was", ["fine", "so"], 0),
    ("You are a", ["said", "reader"], 1),
]
TASK = """\
task: capitals_offline
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "questions.jsonl"
    rows = [{"question": q, "choices": c, "label": i} for q, c, i in QUESTIONS]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "capitals.yaml").write_text(TASK.format(data=data, cache=tmp_path / "cache"), encoding="utf-8")
    return tasks


def test_accuracy_is_that_of_our_own_pass(small_tokenizer, folder: Path) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    right = 0
    for question, choices, label in QUESTIONS:
        sums = [float(t.log_p.sum()) for t in answer_tokens(model, small_tokenizer, [(question, c) for c in choices])]
        right += sums.index(max(sums)) == label
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = standard_tasks(model, small_tokenizer, ["capitals_offline"], folder=folder, batch_size=2)
    assert found == {"capitals_offline": {"acc": pytest.approx(right / len(QUESTIONS))}}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert all(p.requires_grad for p in model.parameters())


def test_an_unknown_task_is_named(small_tokenizer, folder: Path) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    with pytest.raises(ConfigError, match="mmlu_of_mars"):
        standard_tasks(model, small_tokenizer, ["mmlu_of_mars"], folder=folder)
    with pytest.raises(ConfigError, match="no task"):
        standard_tasks(model, small_tokenizer, [], folder=folder)
