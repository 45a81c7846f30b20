"""A task for lm-evaluation-harness that needs no network."""

from __future__ import annotations

import json
from pathlib import Path

TASK = "capitals_offline"
QUESTIONS = [
    ("The capital of France is", ["Paris", "Berlin", "Lisbon"], 0),
    ("War and Peace was written by", ["Rio", "Leo Tolstoy", "a reader"], 1),
    ("People in Rio de Janeiro speak", ["weather", "France", "Portuguese"], 2),
    ("The weather today was", ["fine", "so"], 0),
    ("You are a", ["said", "reader"], 1),
]
_YAML = """\
task: {name}
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


def write_task(folder: Path) -> Path:
    """The folder of task files that has it."""
    data = folder / "questions.jsonl"
    rows = [{"question": q, "choices": c, "label": i} for q, c, i in QUESTIONS]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = folder / "tasks"
    tasks.mkdir()
    text = _YAML.format(name=TASK, data=data, cache=folder / "cache")
    (tasks / "capitals.yaml").write_text(text, encoding="utf-8")
    return tasks
