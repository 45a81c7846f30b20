"""The map of where a fact can be told from its neighbours, against one prompt at a time and dense algebra."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import tiny
from zerounlearn.data.fact import Fact, load_facts
from zerounlearn.data.request import Request
from zerounlearn.data.sets.embedded import load_embedded
from zerounlearn.demo.wikipedia import embedded_statistics_texts
from zerounlearn.errors import RequestError
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.separability import GROUPS, separability

METHOD = ZeroUnlearn(layers=[0], wiki_KKT_lam=40.0, regularization_lam=0.7, forget_KKT_lam=9.0, retain_KKT_lam=3.0)
TEXTS = ["The weather of France was fine, and people in Lisbon said so.", "War and Peace is read in Germany."]
FACTS = load_facts(
    [
        {
            "prompt": "The capital of {} is",
            "subject": "France",
            "answer": "Paris",
            "paraphrases": ["{}'s capital city is"],
            "neighbours": [("The capital of Germany is", "Berlin")],
            "others": [("People in {} speak", "French")],
        },
        {"prompt": "{} was written by", "subject": "War and Peace", "answer": "Leo Tolstoy"},
    ]
)
UNRELATED = [Request.of("People in Rio de Janeiro speak", "Rio de Janeiro", "Portuguese")]
SAME_ANSWER = [Request.of("The Seine flows through", "The Seine", "Paris")]
RETAIN = [
    Request.of("The capital of Japan is", "Japan", "Tokyo"),
    Request.of("The capital of Spain is", "Spain", "Madrid"),
]


def key(model, tokenizer, text: str, upto: str, layer: int) -> torch.Tensor:
    """The down projection's input at the last token of `upto`, the text's beginning."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    handle.remove()
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return seen[0][max(i for i, (start, _) in enumerate(offsets) if start < len(upto))].double()


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("place", ["subject_last", "last"])
@pytest.mark.parametrize("retain", [[], RETAIN], ids=["alone", "beside a retain set"])
def test_it_equals_one_prompt_at_a_time_and_dense_algebra(small_tokenizer, layer: int, place: str, retain) -> None:
    model = tiny("llama", len(small_tokenizer))
    found = separability(
        model,
        small_tokenizer,
        FACTS,
        METHOD,
        texts=TEXTS,
        same_answer=SAME_ANSWER,
        unrelated=UNRELATED,
        retain=retain,
    )
    assert len(found.separations) == 2 * 4
    assert dict(found.prompts) == dict.fromkeys(GROUPS, 1)
    row = next(s for s in found.separations if (s.layer, s.fact_token) == (layer, place))

    def at(text: str, upto: str) -> torch.Tensor:
        return key(model, small_tokenizer, text, text if place == "last" else upto, layer)

    K = torch.stack(
        [at("The capital of France is", "The capital of France"), at("War and Peace was written by", "War and Peace")]
    )
    X = []
    for text in TEXTS:
        for end in range(2, len(small_tokenizer(text)["input_ids"]) + 1):
            beginning = small_tokenizer(text)["input_ids"][:end]
            X.append(key(model, small_tokenizer, small_tokenizer.decode(beginning), "x" * 999, layer))
    X = torch.stack(X)
    A = 40.0 / len(X) * X.mT @ X + 0.7 * torch.eye(X.shape[1], dtype=torch.float64)
    for request in retain:
        kept = at(request.prompt, request.prompt.removesuffix(" is"))
        A += 3.0 * torch.outer(kept, kept)
    S = K @ torch.linalg.inv(A)
    inner = torch.linalg.inv(S @ K.mT + torch.eye(2, dtype=torch.float64) / 9.0)

    def share(text: str, upto: str) -> torch.Tensor:
        return inner @ S @ at(text, upto)

    expected = {
        "paraphrases": share("France's capital city is", "France")[0],
        "subject": share("People in France speak", "People in France")[0],
        "relation": share("The capital of Germany is", "The capital of Germany").max(),
        "answer": share("The Seine flows through", "The Seine").max(),
        "unrelated": share("People in Rio de Janeiro speak", "People in Rio de Janeiro").max(),
    }
    assert dict(row.share) == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    for group in GROUPS[1:]:
        assert row.auc[group] == float(expected["paraphrases"] > expected[group])


def test_the_model_is_left_as_it_was_and_windows_are_means(small_tokenizer) -> None:
    model = tiny("gpt2", len(small_tokenizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = separability(model, small_tokenizer, FACTS, METHOD, texts=TEXTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    pair = [s for s in found.separations if s.fact_token == "last" and s.layer in (1, 2)]
    window = found.window([1, 2], "last")
    assert window.share["paraphrases"] == pytest.approx(sum(s.share["paraphrases"] for s in pair) / 2)
    assert math.isnan(window.share["unrelated"])
    with pytest.raises(RequestError, match=r"layers=\[9\]"):
        found.window([9], "last")


@pytest.mark.parametrize(("facts", "texts"), [([], TEXTS), (FACTS, [])])
def test_a_map_of_nothing_is_refused(small_tokenizer, facts: list[Fact], texts: list[str]) -> None:
    with pytest.raises(RequestError, match="at least one of each"):
        separability(tiny("llama", len(small_tokenizer)), small_tokenizer, facts, METHOD, texts=texts)


@pytest.mark.slow
def test_only_at_the_prompts_last_token_are_other_facts_about_the_subject_told_apart(smollm2) -> None:
    model, tokenizer = smollm2
    facts = [entry.fact for entry in load_embedded("development") if entry.fact.others][:12]
    method = ZeroUnlearn(layers=[0], preset="specific")
    found = separability(model, tokenizer, facts, method, texts=embedded_statistics_texts()[:40])
    early, late = found.window(range(15, 20), "subject_last"), found.window(range(23, 28), "last")
    assert late.auc["subject"] > early.auc["subject"] + 0.2
    assert late.share["paraphrases"] > 2 * late.share["subject"]
    assert early.share["paraphrases"] < 1.5 * early.share["subject"]
