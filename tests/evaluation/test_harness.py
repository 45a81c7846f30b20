"""The evaluation harness on a model in memory, with a task of our own and no network."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import tiny
from tests.offline_task import QUESTIONS, TASK, write_task
from zerounlearn.errors import ConfigError
from zerounlearn.evaluation.harness import standard_tasks
from zerounlearn.model.answers import answer_tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path)


def test_accuracy_is_that_of_our_own_pass(small_tokenizer, folder: Path) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    right = 0
    for question, choices, label in QUESTIONS:
        sums = [float(t.log_p.sum()) for t in answer_tokens(model, small_tokenizer, [(question, c) for c in choices])]
        right += sums.index(max(sums)) == label
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = standard_tasks(model, small_tokenizer, [TASK], folder=folder, batch_size=2)
    assert found == {TASK: {"acc": pytest.approx(right / len(QUESTIONS))}}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert all(p.requires_grad for p in model.parameters())


def test_an_unknown_task_is_named(small_tokenizer, folder: Path) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    with pytest.raises(ConfigError, match="mmlu_of_mars"):
        standard_tasks(model, small_tokenizer, ["mmlu_of_mars"], folder=folder)
    with pytest.raises(ConfigError, match=f"did you mean '{TASK}'"):
        standard_tasks(model, small_tokenizer, ["capitals_ofline"], folder=folder)
    with pytest.raises(ConfigError, match="no task"):
        standard_tasks(model, small_tokenizer, [], folder=folder)
    with pytest.raises(ConfigError, match="is not a folder"):
        standard_tasks(model, small_tokenizer, [TASK], folder=folder / "missing")
