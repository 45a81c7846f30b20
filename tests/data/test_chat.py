"""Facts in a tokenizer's chat template: on a model that knows a conversation by heart."""

from __future__ import annotations

import copy

import pytest

from tests.conftest import small_bpe
from tests.helpers import memorised
from zerounlearn.data.chat import as_chat, query_as_chat
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.model.answers import score
from zerounlearn.model.generate import generate
from zerounlearn.model.tokens import Query, encode, locate

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
FACT = Fact(
    Request.of("What is the capital of {}?", "France", "Paris"),
    paraphrases=("Which city governs France?",),
    neighbours=(("What is the capital of Germany?", "Berlin"),),
    others=(("What do they speak in Rio?", "Portuguese"),),
)


def chatting(template: str, *, bos: bool = False):
    tokenizer = small_bpe(bos=bos)
    tokenizer.chat_template = template
    return tokenizer


def test_every_prompt_is_a_users_message_and_the_subject_stays_where_it_is() -> None:
    tokenizer = chatting(TEMPLATE)
    [fact] = as_chat(tokenizer, [FACT])
    around = "<bos><|user|>\n{}\n<|assistant|>\n"
    assert fact.request.prompt == around.format("What is the capital of France?")
    start, end = fact.request.subject_span
    assert fact.request.prompt[start:end] == "France"
    assert (fact.request.answer, fact.request.joint) == ("Paris", "")
    assert fact.paraphrases == (around.format("Which city governs France?"),)
    assert fact.neighbours == (Query(around.format("What is the capital of Germany?"), "Berlin", ""),)
    assert fact.others == (Query(around.format("What do they speak in Rio?"), "Portuguese", ""),)
    ids, at = locate(tokenizer, fact.request.prompt, start, end, "subject_last")
    assert tokenizer.decode(ids[: at + 1]).endswith("France")


@pytest.mark.integration
def test_a_conversation_that_the_model_knows_is_found_said() -> None:
    for template, bos in ((TEMPLATE, False), (TEMPLATE, True), (INST, True)):
        tokenizer = chatting(template, bos=bos)
        plain = small_bpe()
        pairs = [(FACT.request.prompt, "Paris"), *FACT.others]
        turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in pairs]
        model = memorised(plain, [tokenizer.apply_chat_template(t, tokenize=False) for t in turns])
        [fact] = as_chat(tokenizer, [FACT])
        queries = [fact.request.query, *fact.others]
        assert [s.said for s in score(model, tokenizer, queries)] == [True] * 2, template
        assert generate(model, tokenizer, [queries[0].prompt], tokens=6)[0].lstrip().startswith("Paris")
        assert encode(tokenizer, queries[0].prompt).count(tokenizer.bos_token_id) == 1


def test_the_templates_own_space_before_an_answer_is_the_joint() -> None:
    assert query_as_chat(chatting(INST), Query("Who?", "Leo", None)) == Query("<bos>[INST] Who? [/INST]", "Leo", " ")


def test_a_prompt_that_the_template_strips() -> None:
    request = Request("  Is ", "Rio", " a city? \n", "yes")
    [fact] = as_chat(chatting(TEMPLATE), [Fact(request)])
    assert fact.request.prompt == "<bos><|user|>\nIs Rio a city?\n<|assistant|>\n"
    start, end = fact.request.subject_span
    assert fact.request.prompt[start:end] == "Rio"


def test_a_tokenizer_without_a_template_and_a_template_that_rewrites_are_refused() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        as_chat(small_bpe(), [FACT])
    loud = copy.deepcopy(chatting("{% for m in messages %}{{ m.content | upper }}{% endfor %}"))
    with pytest.raises(RequestError, match="changes its words"):
        as_chat(loud, [FACT])
