"""What a reader makes of a model is what the model itself says, also where it caps or scales its logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from tests.helpers import FACTS, tiny
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import base as terms
from zerounlearn.method.gradient.descend import unlearn_by_gradient
from zerounlearn.method.gradient.sequences import Reader, Sample

KINDS = ("llama", "gemma2", "granite", "cohere")
RETAIN = [
    Request.of("The capital of {} is", "Germany", "Berlin"),
    Request.of("You are a reader of", "reader", "it"),
]


@pytest.fixture(params=KINDS)
def model(request, small_tokenizer):
    return tiny(request.param, len(small_tokenizer))


def samples_of(tokenizer, requests=FACTS) -> list[Sample]:
    return terms.answer_samples(tokenizer, requests, end=True)


def naive_logits(model, sample: Sample) -> torch.Tensor:
    """One unpadded row through the whole model: the logits that the answer is predicted by."""
    return model(input_ids=torch.tensor([sample.ids[:-1]])).logits[0, sample.start - 1 :]


def naive_log_p(model, samples: list[Sample]) -> torch.Tensor:
    found = []
    for sample in samples:
        log_p = naive_logits(model, sample).log_softmax(-1)
        found.append(sum(log_p[i, token] for i, token in enumerate(sample.ids[sample.start :])))
    return torch.stack(found)


def gradients(model, loss: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def test_the_models_cap_and_scale(small_tokenizer) -> None:
    """Else the tests below would show nothing."""
    for kind in ("gemma2", "granite", "cohere"):
        model = tiny(kind, len(small_tokenizer))
        ids = torch.tensor([samples_of(small_tokenizer)[0].ids])
        plain = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
        assert not torch.allclose(plain.log_softmax(-1), model(input_ids=ids).logits.log_softmax(-1))


def test_log_probabilities_and_their_gradients_are_the_models_own(model, small_tokenizer) -> None:
    reader, samples = Reader(model, small_tokenizer), samples_of(small_tokenizer)
    assert_close(reader.log_p(samples), naive_log_p(model, samples))
    ours = gradients(model, lambda: reader.log_p(samples).mean())
    for actual, expected in zip(ours, gradients(model, lambda: naive_log_p(model, samples).mean()), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("layers", [[1, 2], "all"])
def test_the_divergence_is_0_at_the_start_and_has_the_gradients_of_two_models(model, small_tokenizer, layers) -> None:
    before = tiny(model.config.model_type, len(small_tokenizer))
    samples = samples_of(small_tokenizer, RETAIN)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers == "all" or name.endswith("down_proj.weight"))
    hp = methods["NPO"](model_name="tiny", layers=layers, retain_loss="kl", minibatch_size=1)
    reader = Reader(model, small_tokenizer)
    term = hp.retain_term(reader, None, samples)
    assert term.of([0, 1]).item() == pytest.approx(0, abs=1e-14)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64))

    def naive() -> torch.Tensor:
        now = torch.cat([naive_logits(model, s) for s in samples]).log_softmax(-1)
        with torch.no_grad():
            then = torch.cat([naive_logits(before, s) for s in samples]).log_softmax(-1)
        return (then.exp() * (then - now)).sum(-1).mean()

    moved = [p for p in model.parameters() if p.requires_grad]
    assert naive().item() > 1e-6
    assert_close(term.of([0, 1]), naive())
    for actual, expected in zip(
        torch.autograd.grad(term.of([0, 1]), moved), torch.autograd.grad(naive(), moved), strict=True
    ):
        assert_close(actual, expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_rows_of_one_length_count_their_padding(small_tokenizer) -> None:
    """Against the published arithmetic: rows padded with the end-of-text token, all positions in the mean."""
    model, before = (tiny("llama", len(small_tokenizer)) for _ in range(2))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    hp = methods["NPO"](model_name="tiny", layers=[1], preset="paper_kl", row_length=24)
    samples = samples_of(small_tokenizer, RETAIN)
    reader = Reader(before, small_tokenizer)
    term = hp.retain_term(reader, None, samples)
    reader.model, reader.head = model, model.get_output_embeddings()  # as if `before` had been trained
    ids = torch.full((2, 24), small_tokenizer.eos_token_id)
    mask = torch.zeros(2, 24, dtype=torch.long)
    for i, sample in enumerate(samples):
        ids[i, : len(sample.ids)], mask[i, : len(sample.ids) - 1] = torch.tensor(sample.ids), 1
    now, then = (
        F.log_softmax(m(ids, attention_mask=mask).logits, -1).view(-1, len(small_tokenizer)) for m in (model, before)
    )
    expected = F.kl_div(now, then, reduction="batchmean", log_target=True)
    assert expected > 0
    assert_close(term.of([0, 1]), expected)
    short = hp.replace(row_length=4)
    with pytest.raises(ConfigError, match=r"row_length=4: a row to be kept has \d+ tokens"):
        unlearn_by_gradient(model, small_tokenizer, FACTS, short, retain=RETAIN)


def test_the_end_token_is_the_answers_last_once(small_tokenizer) -> None:
    end = small_tokenizer.eos_token_id
    plain = terms.answer_samples(small_tokenizer, FACTS)
    assert [(*s.ids, end) for s in plain] == [s.ids for s in samples_of(small_tokenizer)]
    assert Sample.of(small_tokenizer, "So", [end], end=True) == Sample.of(small_tokenizer, "So", [end])
