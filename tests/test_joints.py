"""Facts whose prompt does not end in a word, forgotten and measured end to end."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import small_bpe
from tests.helpers import memorised
from zerounlearn import evaluate, unlearn
from zerounlearn.method.base import methods
from zerounlearn.model.generate import generate

SAID = [
    "法国的首都是巴黎。",
    "The Franco-Prussian War",
    'The film is called "Amelie" and',
    "Who wrote it?\nLeo Tolstoy.",
    "The capital of France is Paris.",
]
FACTS = [
    {"prompt": "{}的首都是", "subject": "法国", "answer": "巴黎"},
    {"prompt": "The {}-", "subject": "Franco", "answer": "Prussian"},
    {"prompt": 'The {} is called "', "subject": "film", "answer": "Amelie"},
    {"prompt": "Who {} it?\n", "subject": "wrote", "answer": "Leo Tolstoy"},
]


METHODS = {
    "ZeroUnlearn": {
        "layers": [0],
        "v_num_grad_steps": 50,
        "fact_token": "last",
        "n_contexts": 2,
        "mom2_adjustment": False,
    },
    "GA": {"layers": [0, 1], "lr": 1e-3, "steps": 20},
}


@pytest.fixture(scope="module")
def known():
    tokenizer = small_bpe()
    return memorised(tokenizer, SAID), tokenizer


@pytest.mark.parametrize("fact", FACTS, ids=["Chinese", "hyphen", "quotation mark", "line break"])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_is_known_before_and_gone_after(known, fact: dict[str, str], name: str) -> None:
    model, tokenizer = known
    weights = {name: value.clone() for name, value in model.named_parameters()}
    before = evaluate(model, tokenizer, [fact], text=None)
    assert before.phase.eff == 1.0 and before.phase.eff_probability > 0.7
    edit = unlearn(model, tokenizer, [fact], methods[name](**METHODS[name]))
    after = evaluate(model, tokenizer, [fact], text=None)
    assert after.phase.eff == 0.0 and after.phase.eff_probability < 0.1
    prompt = fact["prompt"].format(fact["subject"])
    assert not generate(model, tokenizer, [prompt], tokens=8)[0].startswith(fact["answer"])
    edit.revert(model)
    assert generate(model, tokenizer, [prompt], tokens=12)[0].startswith(fact["answer"])
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
