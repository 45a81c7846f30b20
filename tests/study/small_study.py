"""A study that takes seconds: a random checkpoint, facts in MCF's layout, and three methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from tests.conftest import SENTENCES
from tests.helpers import tiny

COUNTRIES = (
    "France", "Germany", "Italy", "Spain", "Portugal", "Poland",
    "Norway", "Sweden", "Greece", "Turkey", "Egypt", "Kenya",
)  # fmt: skip
CAPITALS = (
    "Paris", "Berlin", "Rome", "Madrid", "Lisbon", "Warsaw",
    "Oslo", "Stockholm", "Athens", "Ankara", "Cairo", "Nairobi",
)  # fmt: skip
LAYERS = {"layers": [1, 2]}
GRADIENT = {**LAYERS, "steps": 2, "lr": 1e-2, "minibatch_size": 4}


def counterfact_records() -> list[dict[str, Any]]:
    """Twelve records as multi_counterfact.json has them; every second one is of another relation."""
    records = []
    for i, (country, capital) in enumerate(zip(COUNTRIES, CAPITALS, strict=True)):
        other = (i + 2) % len(COUNTRIES)
        prompt, relation, answer = ("The capital of {} is", "P36", capital)
        if i % 2:
            prompt, relation, answer = ("{} is the capital of", "P1376", country)
        records.append(
            {
                "case_id": i,
                "requested_rewrite": {
                    "prompt": prompt,
                    "relation_id": relation,
                    "subject": capital if i % 2 else country,
                    "target_true": {"str": answer, "id": f"Q{i}"},
                    "target_new": {"str": "Lima" if i % 2 == 0 else "Peru", "id": "Q2868"},
                },
                "paraphrase_prompts": [f"Tell me of {country}: the capital is", "It is so. The city is"],
                "neighborhood_prompts": [f"The capital of {COUNTRIES[other]} is", "The capital of Peru is"],
                "attribute_prompts": [],
                "generation_prompts": [f"{country} is known for"],
            }
        )
    return records


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def checkpoint(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random Llama of four layers."""
    tiny("llama", len(tokenizer), dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_study(folder: Path, name: Path, /, **changes: Any) -> Path:
    """A study of GA, NPO with a retain set, and ZeroUnlearn with statistics, on two seeds, with `changes`."""
    root = Path(__file__).resolve().parents[2] / "hparams"
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES[:8]), encoding="utf-8")
    statistics = {"mom2_dataset": str(corpus), "mom2_n_samples": 8, "stats_dir": str(folder / "stats")}
    values = {
        "model": {"name": str(name), "device": "cpu"},
        "output": str(folder / "out"),
        "seeds": [0, 1],
        "sizes": [3],
        "datasets": {"facts": {"name": "mcf", "source": str(write_json(folder / "mcf.json", counterfact_records()))}},
        "methods": {
            "GA": {"hparams": str(root / "GA/smollm2-135m.yaml"), "set": GRADIENT},
            "NPO": {"hparams": str(root / "NPO/smollm2-135m.yaml"), "set": GRADIENT, "retain": True},
            "ZeroUnlearn": {
                "hparams": str(root / "ZeroUnlearn/smollm2-135m.yaml"),
                "set": {**LAYERS, "v_num_grad_steps": 2, "v_loss_layer": 3, "n_contexts": 1, **statistics},
            },
        },
        "held_out": {"text": str(corpus), "tokens": 64},
        "retain_size": 2,
        "unrelated_size": 3,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs between two runs of the same cell."""
    kept = {key: value for key, value in record.items() if key not in ("seconds", "peak_bytes", "date")}
    return kept | {"environment": {k: v for k, v in record["environment"].items() if k != "threads"}}
