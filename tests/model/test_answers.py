"""The pass over a model: token by token what a plain forward pass gives, one text at a time."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny
from zerounlearn.errors import RequestError
from zerounlearn.model import answers
from zerounlearn.model.answers import answer_tokens, logits_at, score, text_tokens

ITEMS = [
    ("The capital of France is", "Paris"),
    ("War and Peace was written by", "Leo Tolstoy in the nineteenth century"),
    ("People", "speak"),
    ("You are a reader of it.", "Because I said so."),
]


def plain(model, ids: list[int], start: int) -> tuple[torch.Tensor, ...]:
    """Columns of the tokens from `start` on, from one forward pass over the row alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    log_p = logits.double().log_softmax(-1)
    wanted = torch.tensor(ids[start:])
    mean = (log_p.exp() * log_p).sum(-1)
    sd = ((log_p.exp() * log_p**2).sum(-1) - mean**2).sqrt()
    return log_p.gather(-1, wanted[:, None])[:, 0], logits.argmax(-1) == wanted, mean, sd


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [1, 2048])
def test_tokens_equal_a_plain_pass_one_by_one(small_tokenizer, kind: str, batch_tokens: int, monkeypatch) -> None:
    monkeypatch.setattr(answers, "good_positions", lambda device, vocabulary: 3)  # so that there are several pieces
    model = tiny(kind, len(small_tokenizer))
    found = answer_tokens(model, small_tokenizer, ITEMS, moments=True, batch_tokens=batch_tokens)
    for (prompt, answer), tokens in zip(ITEMS, found, strict=True):
        before, target = (small_tokenizer(t)["input_ids"] for t in (prompt, f" {answer}"))
        assert tokens.ids == tuple(target)
        log_p, hit, mean, sd = plain(model, before + target, len(before))
        torch.testing.assert_close(tokens.log_p.double(), log_p, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.sd.double(), sd, rtol=1e-4, atol=1e-5)
        assert torch.equal(tokens.hit, hit)
        assert tokens.log_p.dtype == torch.float32


def test_the_head_sees_the_answers_positions_alone_and_the_model_is_left_as_it_was(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer)).train()
    seen = []
    with torch.no_grad():
        before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    handle = model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape[:-1].numel()))
    found = answer_tokens(model, small_tokenizer, ITEMS)
    handle.remove()
    assert sum(seen) == sum(len(tokens.ids) for tokens in found)
    assert found[0].mean is None and found[0].sd is None
    assert model.training and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


def test_the_end_of_text_counts_as_the_last_token_on_demand(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    (without,), (with_end,) = (answer_tokens(model, small_tokenizer, ITEMS[:1], end=end) for end in (False, True))
    assert with_end.ids == (*without.ids, small_tokenizer.eos_token_id)
    torch.testing.assert_close(with_end.log_p[:-1], without.log_p)


def test_a_text_is_scored_from_its_second_token_on(small_tokenizer) -> None:
    model = tiny("gpt2", len(small_tokenizer))
    texts = ["The weather today was fine.", "You are a reader of it, as they do in Lisbon."]
    for text, tokens in zip(texts, text_tokens(model, small_tokenizer, texts), strict=True):
        ids = small_tokenizer(text)["input_ids"]
        log_p, _, mean, _ = plain(model, ids, 1)
        assert tokens.ids == tuple(ids[1:])
        torch.testing.assert_close(tokens.log_p.double(), log_p, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.mean.double(), mean, rtol=1e-5, atol=1e-5)


def test_a_token_that_is_ruled_out_adds_nothing_to_the_moments() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [2.0, 2.0, -torch.inf]])
    log_p, hit, mean, sd = answers._reduce(logits, torch.tensor([0, 0]), True)
    torch.testing.assert_close(log_p, torch.full((2,), -0.6931472))
    torch.testing.assert_close(mean, log_p)
    torch.testing.assert_close(sd, torch.zeros(2))
    assert hit.all()


@pytest.mark.parametrize(
    ("items", "message"), [([("", "x")], "the prompt of"), ([("x", " ")], "the answer of ('x', ' ') has no tokens")]
)
def test_nothing_to_score_is_named(small_tokenizer, items: list[tuple[str, str]], message: str) -> None:
    model = tiny("llama", len(small_tokenizer))
    with pytest.raises(RequestError, match="no tokens") as caught:
        answer_tokens(model, small_tokenizer, items)
    assert message in str(caught.value)
    with pytest.raises(RequestError, match="at least two"):
        text_tokens(model, small_tokenizer, ["a"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_score_is_of_the_logits_that_the_model_itself_gives(small_tokenizer, side: str) -> None:
    model = tiny("gemma2", len(small_tokenizer))
    model.config.final_logit_softcapping = 2.0
    was, small_tokenizer.padding_side = small_tokenizer.padding_side, side
    try:
        found = score(model, small_tokenizer, ITEMS)
    finally:
        small_tokenizer.padding_side = was
    for (prompt, answer), scored in zip(ITEMS, found, strict=True):
        before, target = (small_tokenizer(t)["input_ids"] for t in (prompt, f" {answer}"))
        inputs = torch.tensor([before + target])
        with torch.no_grad():
            logits = model(input_ids=inputs).logits[0, len(before) - 1 : -1]
            uncapped = model.get_output_embeddings()(model.base_model(input_ids=inputs).last_hidden_state)
        p = logits.softmax(-1).gather(-1, torch.tensor(target)[:, None]).prod()
        assert scored.probability == pytest.approx(float(p), rel=1e-4, abs=0)
        assert scored.said == (logits.argmax(-1).tolist() == target)
        of_the_head = uncapped[0, len(before) - 1 : -1].softmax(-1).gather(-1, torch.tensor(target)[:, None]).prod()
        assert scored.probability != pytest.approx(float(of_the_head), rel=0.1, abs=0)


def test_logits_at_places_have_the_gradients_of_the_whole_pass(small_tokenizer) -> None:
    model = tiny("gemma2", len(small_tokenizer))
    ids, at = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[0, 1], [0, 3], [1, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    gradients = []
    for logits in (logits_at(model, ids, mask, at), model(input_ids=ids, attention_mask=mask).logits[at.T[0], at.T[1]]):
        [gradient] = torch.autograd.grad(logits.log_softmax(-1)[:, 3].sum(), weight)
        gradients.append(gradient)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)
