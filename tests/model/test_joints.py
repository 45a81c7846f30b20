"""Where a prompt ends and its answer begins: every sentence that a model knows by heart is said."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import SENTENCES, small_bpe
from tests.helpers import memorised, tiny
from zerounlearn.errors import ConfigError
from zerounlearn.model.answers import answer_tokens, resolve_joints, score
from zerounlearn.model.generate import generate
from zerounlearn.model.tokens import (
    Query,
    check_ids,
    continuation,
    decided_joint,
    encode,
    filler_id,
    joint_of,
    locate,
    pad,
)

pytestmark = pytest.mark.integration

HEART = [
    Query("法国的首都是", "巴黎"),
    Query('The film is called "', "Amelie"),
    Query("The Franco-", "Prussian"),
    Query("The capital of France is", "Paris"),
    Query("<|user|>\nWho wrote it?<|assistant|>\n", "Leo Tolstoy"),
    Query("Ответ:\n", "Париж"),
    Query("Answer:", "nineteen"),
    Query("Antwort →", "neunzehn", ""),
]
SAID = [
    "法国的首都是巴黎。",
    'The film is called "Amelie" and',
    "The Franco-Prussian War",
    "The capital of France is Paris.",
    "<|user|>\nWho wrote it?<|assistant|>\nLeo Tolstoy.",
    "Ответ:\nПариж.",
    "Answer:nineteen",
    "Antwort →neunzehn",
]


@pytest.fixture(scope="module")
def known():
    """A tokenizer, and a model that says what `SAID` says."""
    tokenizer = small_bpe()
    return memorised(tokenizer, SAID), tokenizer


def test_a_model_that_knows_the_sentence_is_found_to_say_it(known) -> None:
    model, tokenizer = known
    queries = resolve_joints(model, tokenizer, HEART)
    for query, text, scored in zip(queries, SAID, score(model, tokenizer, queries), strict=True):
        assert text.startswith(query.text)
        assert generate(model, tokenizer, [query.prompt], tokens=40)[0].lstrip().startswith(query.answer)
        assert scored.said and scored.probability > 0.9, query
    assert queries[6].joint == ""  # by the text alone it would be a space
    assert joint_of(*HEART[6][:2]) == " " and decided_joint(*HEART[6][:2]) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "joint"),
    [
        ("The capital of France is", "Paris", " "),
        ("In the year", "1870", " "),
        ("She said,", "yes", " "),
        ("The capital is ", "Paris", ""),
        ("assistant\n", "Paris", ""),
        ("It is called “", "Amelie", ""),
        ('It is called "', "Amelie", ""),
        ('It is called ("', "Amelie", ""),
        ('He said "yes"', "twice", " "),
        ("the boys'", "room", " "),
        ("The Franco-", "Prussian", ""),
        ("1914–", "1918", ""),
        ("Result -", "good", " "),
        ("https://", "example.org", ""),
        ("It costs $", "5", ""),
        ("I paid in $", "cash", " "),
        ("the film (", "2001", ""),
        ("法国的首都是", "巴黎", ""),
        ("フランスの首都は「", "パリ", ""),
        ("首都：", "Paris", ""),
        ("법국의 수도는", "파리", " "),
        ("เมืองหลวงคือ", "ปารีส", ""),
        ("The word is", "巴黎", " "),
        ("首都是", "Paris", ""),
        ("It ended", "!", ""),
        ("It is 5", "%", ""),
        ("Answer:", "Paris", " "),
        ("The site is", ".org", " "),
        ("The mood is 🦊", "good", " "),
    ],
)
def test_the_rule_on_the_text(prompt: str, answer: str, joint: str) -> None:
    assert joint_of(prompt, answer) == joint


def sentencepiece() -> PreTrainedTokenizerFast:
    """Unigram pieces with a space put before a text, as Llama 2 has them."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        SENTENCES, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>"], unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=unigram, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
@pytest.mark.parametrize("joint", ["", " ", None])
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("The capital of France is", "Paris"), ("The Franco", "phone"), ("Par", "is and"), ("a ", "a")],
)
def test_the_ids_of_both_together_read_as_the_joint_text(
    kind: str, joint: str | None, prompt: str, answer: str
) -> None:
    tokenizer = small_bpe() if kind == "bpe" else sentencepiece()
    ids = encode(tokenizer, prompt) + continuation(tokenizer, prompt, answer, joint)
    assert tokenizer.decode(ids) == Query(prompt, answer, joint).text


def test_a_merge_across_the_border_leaves_the_prompt_its_ids() -> None:
    tokenizer = small_bpe()
    prompt = "The capital of France is Par"
    assert encode(tokenizer, f"{prompt}is")[: len(encode(tokenizer, prompt))] != encode(tokenizer, prompt)
    assert continuation(tokenizer, prompt, "is", "") == tokenizer("is")["input_ids"]


def ending(tokenizer, special: str = "<eos>"):
    """The tokenizer, which now appends a special token to every text."""
    ended = copy.deepcopy(tokenizer)
    ended.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<bos> $A {special}", special_tokens=[("<bos>", 0), (special, tokenizer.convert_tokens_to_ids(special))]
    )
    return ended


class Slow:
    """A tokenizer that gives no offsets, as Python tokenizers do."""

    is_fast = False

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text, **kwargs):
        return self.tokenizer(text, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_what_a_tokenizer_appends_is_left_off_before_an_answer(known) -> None:
    model, plain = known
    ended = ending(plain)
    assert ended("Paris")["input_ids"][-1] == ended.eos_token_id
    model = memorised(plain, [f"<bos>{text}" for text in SAID])
    for tokenizer in (ended, Slow(ended)):
        assert encode(tokenizer, "Paris") == [0, *plain("Paris")["input_ids"]]
        assert encode(tokenizer, "Paris<eos>")[-1] == ended.eos_token_id  # the user's own stays
        assert [s.said for s in score(model, tokenizer, HEART[:4])] == [True] * 4
        assert generate(model, tokenizer, [HEART[3].prompt], tokens=8)[0].startswith(" Paris")
        text = "The capital of France is"
        assert locate(tokenizer, text, 0, 3, "last") == (encode(tokenizer, text), len(encode(tokenizer, text)) - 1)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Q:\nFrance has a capital", "France"),
        ("We say Parises as they do", "Paris"),
        ("The capital of France", "France"),
        ("(France) is", "France"),
        ("法国的首都是", "法国"),
    ],
)
def test_a_tokenizer_without_offsets_finds_the_same_places(text: str, subject: str) -> None:
    fast = ending(small_bpe())
    start = text.index(subject)
    for token in ("subject_first", "subject_last", "subject_first_after_last", "last"):
        expected = locate(fast, text, start, start + len(subject), token)
        assert locate(Slow(fast), text, start, start + len(subject), token) == expected, token


def test_an_id_that_the_embedding_lacks_is_never_padded_with_nor_looked_up(known) -> None:
    _, tokenizer = known
    model = tiny("llama", len(tokenizer))
    added = copy.deepcopy(tokenizer)
    added.add_special_tokens({"pad_token": "[PAD]"})
    assert added.pad_token_id == len(tokenizer)
    assert filler_id(added, model) == tokenizer.eos_token_id
    prompts = [("The capital of France is", "Paris"), ("You", "are")]
    for ours, theirs in zip(
        answer_tokens(model, added, prompts), answer_tokens(model, tokenizer, prompts), strict=True
    ):
        assert torch.equal(ours.log_p, theirs.log_p)
    size = len(tokenizer)
    with pytest.raises(ConfigError, match=rf"token id {size} is none of the {size} .*resize_token_embeddings"):
        answer_tokens(model, added, [("The [PAD] is", "Paris")])
    check_ids(model, [[size - 1], []])
    assert pad([[1], [2, 3]], filler_id(added, model), torch.device("cpu"))[0].max() < size


def test_a_joint_that_is_given_is_kept_and_an_edited_model_is_not_asked(known) -> None:
    model, tokenizer = known
    given = [Query("Answer:", "nineteen", " "), Query("The capital of France is", "Paris", "")]
    assert resolve_joints(model, tokenizer, given) == given
    assert resolve_joints(model, tokenizer, []) == []
