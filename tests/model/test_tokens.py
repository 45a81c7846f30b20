"""Positions and target ids, for tokenizers with and without BOS, with and without offsets."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import small_bpe
from zerounlearn.data.request import Request, target_ids
from zerounlearn.model.tokens import continuation, length_sorted_batches, locate, pad

CASES = [
    ("{} is the country whose capital is", "France"),  # at the start
    ("The capital of {} is", "France"),  # in the middle
    ("The novelist is {}", "Leo Tolstoy"),  # last
    ("People in {} speak", "Rio de Janeiro"),  # several tokens
    ("“{}”, they said, is", "Žižkov 🦊"),  # several tokens a character
]


class _WithoutOffsets:
    """A tokenizer that gives no offsets, as Python tokenizers do."""

    is_fast = False

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text, **kwargs):
        return self.tokenizer(text, **kwargs)

    def decode(self, ids, **kwargs):
        return self.tokenizer.decode(ids, **kwargs)


@pytest.fixture(params=["plain", "bos", "smollm2", "no offsets"])
def tokenizer(request, smollm2_tokenizer):
    return {
        "plain": lambda: small_bpe(),
        "bos": lambda: small_bpe(bos=True),
        "smollm2": lambda: smollm2_tokenizer,
        "no offsets": lambda: _WithoutOffsets(small_bpe(bos=True)),
    }[request.param]()


def decode(tokenizer, ids: list[int]) -> str:
    return getattr(tokenizer, "tokenizer", tokenizer).decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("template", "subject"), CASES)
def test_the_subjects_last_token(tokenizer, template: str, subject: str, side: str) -> None:
    getattr(tokenizer, "tokenizer", tokenizer).padding_side = side
    request = Request.of(template, subject, "x")
    for prefix in ("", "It was fine. "):
        text = prefix + request.prompt
        start, end = (len(prefix) + at for at in request.subject_span)
        ids, position = locate(tokenizer, text, start, end, "subject_last")
        assert ids == list(tokenizer(text)["input_ids"])
        assert decode(tokenizer, ids[: position + 1]).endswith(subject)
        assert not decode(tokenizer, ids[:position]).endswith(subject)
        _, first = locate(tokenizer, text, start, end, "subject_first")
        assert decode(tokenizer, ids[:first]).rstrip() == text[:start].rstrip()
        _, after = locate(tokenizer, text, start, end, "subject_first_after_last")
        assert after == min(position + 1, len(ids) - 1)
        assert locate(tokenizer, text, start, end, "last")[1] == len(ids) - 1


def test_of_repeated_mentions_the_last_whole_word_counts(small_tokenizer) -> None:
    request = Request.of("Paris lies where France is; the Parisian loves Paris, and Parisians", "Paris", "wine")
    assert request.prompt[: request.subject_span[0]].endswith("loves ")
    ids, position = locate(small_tokenizer, request.prompt, *request.subject_span, "subject_last")
    assert small_tokenizer.decode(ids[: position + 1]).endswith("loves Paris")
    inside = Request.of("The Parisians love", "Paris", "wine")  # no mention as a word: any will do
    assert inside.subject_span == (4, 9)
    assert Request.of("{} and Berlin are", "Paris", "towns").subject_span == (0, 5)
    literal = Request.of("{} and Paris are", "Paris", "towns")  # the prompt names its subject, so {} is text
    assert literal.prompt == "{} and Paris are"
    assert literal.subject_span == (7, 12)


def test_answers_continue_their_prompt(tokenizer) -> None:
    for answer in ("Paris", "Leo Tolstoy", "Žižkov 🦊"):
        ids = continuation(tokenizer, "The capital of France is", answer)
        prompt = list(tokenizer("The capital of France is")["input_ids"])
        assert decode(tokenizer, prompt + ids) == f"The capital of France is {answer}"


def test_neutral_targets(small_tokenizer) -> None:
    def ids(neutral: str | None, run: str = "eos") -> list[int]:
        return target_ids(small_tokenizer, Request.of("{} is", "It", "so", neutral), run)

    assert ids(None) == [small_tokenizer.eos_token_id]
    assert ids("pad") == [small_tokenizer.pad_token_id]
    assert small_tokenizer.decode(ids(" I don't know.")) == " I don't know."
    assert ids(None, run="fine") == ids("fine") != ids(None)


def test_padding_is_on_the_right_and_masked() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 12, 2, 40]
    batches = length_sorted_batches(lengths, 18)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 18
