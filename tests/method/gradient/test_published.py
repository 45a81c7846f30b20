"""The `paper` presets against the arithmetic of ZeroUnlearn's published baselines, written anew and one row at a time.

A run is followed weight by weight: so its loss, the order of the batches, the number of steps and the optimiser are
all those of the published code, or the weights would part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from tests.conftest import small_bpe
from tests.helpers import FACTS, tiny
from zerounlearn.data.request import Request
from zerounlearn.method.base import methods

MORE = [*FACTS, Request.of("Because I said", "Because", "so"), Request.of("You are a reader of", "reader", "it")]
RETAIN = [
    Request.of("The capital of {} is", word, answer)
    for word, answer in [
        ("Germany", "Berlin"), ("Lisbon", "fine"), ("Peace", "Leo Tolstoy"), ("Rio", "nineteenth"), ("War", "weather"),
        ("people", "Portuguese"),
    ]
]  # fmt: skip
WEIGHT = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(params=[False, True], ids=["no BOS", "BOS"])
def tokenizer(request):
    """As Qwen's and as Llama's."""
    return small_bpe(bos=request.param)


def followed(tokenizer, run, layers, loss: Callable, epochs: int, size: int, count: int, lr: float):
    """Our run, and plain Adam on `loss(model, first, after)`, on copies of one model."""
    ours = tiny("llama", len(tokenizer))
    theirs, reference = copy.deepcopy(ours), copy.deepcopy(ours)
    edit = run(ours)
    weights = [theirs.get_parameter(WEIGHT.format(layer)) for layer in layers]
    optimiser = torch.optim.Adam(weights, lr=lr)
    losses = []
    for _ in range(epochs):
        for first in range(0, count, size):
            optimiser.zero_grad()
            total = loss(theirs, reference, first, first + size)
            losses.append(float(total))
            total.backward()
            optimiser.step()
    for layer in layers:
        name = WEIGHT.format(layer)
        assert not torch.allclose(ours.get_parameter(name), reference.get_parameter(name), atol=1e-4)
        assert_close(ours.get_parameter(name), theirs.get_parameter(name), atol=1e-9, rtol=1e-7)
    return edit, losses


def test_ga(tokenizer) -> None:
    """Mean log-probability of all of the target's tokens, BOS and padding among them, after the prompt's last."""
    end = tokenizer.eos_token_id

    def loss(model, _, first: int, after: int) -> torch.Tensor:
        part = MORE[first:after]
        targets = [tokenizer(" " + r.answer)["input_ids"] for r in part]
        longest = max(map(len, targets))
        assert min(map(len, targets)) < longest, "else nothing is padded"
        means = []
        for r, target in zip(part, targets, strict=True):
            log_p = model(input_ids=torch.tensor([tokenizer(r.prompt)["input_ids"]])).logits[0, -1].log_softmax(-1)
            means.append(torch.stack([log_p[t] for t in target + [end] * (longest - len(target))]).mean())
        return torch.stack(means).mean()

    hp = methods["GA"](model_name="tiny", layers=[2], preset="paper", lr=1e-3)
    assert (hp.epochs, hp.minibatch_size, hp.weight_decay) == (25, 64, 0)
    edit, losses = followed(tokenizer, lambda m: hp.apply(m, tokenizer, MORE), [2], loss, 25, 64, len(MORE), 1e-3)
    assert len(losses) == 25
    assert edit.losses["forget"] == pytest.approx(losses, rel=1e-7)


def test_ga_leaves_out_the_unknown_token_where_there_is_one(tokenizer) -> None:
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's
    model = tiny("llama", len(tokenizer))
    hp = methods["GA"](model_name="tiny", layers=[2], preset="paper", epochs=1)
    means = []
    for r in MORE:
        log_p = model(input_ids=torch.tensor([tokenizer(r.prompt)["input_ids"]])).logits[0, -1].log_softmax(-1)
        means.append(log_p[tokenizer(" " + r.answer)["input_ids"]].mean())
    assert hp.apply(model, tokenizer, MORE).losses["forget"] == pytest.approx([torch.stack(means).mean().item()])


def nll(model, tokenizer, r: Request) -> torch.Tensor:
    """Of the answer's tokens and the end-of-text token (t,)."""
    prompt = tokenizer(r.prompt)["input_ids"]
    ids = [*tokenizer(f"{r.prompt} {r.answer}")["input_ids"], tokenizer.eos_token_id]
    assert ids[: len(prompt)] == prompt
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -torch.stack([log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids))])


def padded(tokenizer, requests: list[Request], width: int) -> dict[str, torch.Tensor]:
    ids = torch.full((len(requests), width), tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for i, r in enumerate(requests):
        row = tokenizer(f"{r.prompt} {r.answer}")["input_ids"]
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("preset", ["paper", "paper_grad_diff", "paper_kl"])
def test_npo(tokenizer, preset: str) -> None:
    """2/β softplus of the change of the answer's NLL, and each batch's own retain items, from the first each pass."""
    width = 24

    def loss(model, reference, first: int, after: int) -> torch.Tensor:
        forget, kept = MORE[first:after], RETAIN[first:after]
        with torch.no_grad():
            known = torch.stack([nll(reference, tokenizer, r).sum() for r in forget])
        now = torch.stack([nll(model, tokenizer, r).sum() for r in forget])
        total = F.softplus(-0.1 * (now - known)).mean() * 2 / 0.1
        if preset == "paper_grad_diff":
            total = total + torch.cat([nll(model, tokenizer, r) for r in kept]).mean()
        if preset == "paper_kl":
            rows = padded(tokenizer, kept, width)
            with torch.no_grad():
                p = reference(**rows).logits.log_softmax(-1)
            q = model(**rows).logits.log_softmax(-1)
            total = total + (p.exp() * (p - q)).sum() / (len(kept) * width)
        return total

    own = {"row_length": width} if preset == "paper_kl" else {}
    hp = methods["NPO"](model_name="tiny", layers=[1, 2], preset=preset, lr=1e-3, epochs=3, minibatch_size=2, **own)
    retain = RETAIN if hp.retain_weight else []
    edit, losses = followed(
        tokenizer, lambda m: hp.apply(m, tokenizer, MORE, retain=retain), [1, 2], loss, 3, 2, len(MORE), 1e-3
    )
    assert len(losses) == 9
    kept = edit.losses.get("retain", [0.0] * 9)
    assert [a + b for a, b in zip(edit.losses["forget"], kept, strict=True)] == pytest.approx(losses, rel=1e-7)


def test_the_published_values() -> None:
    npo = {"beta": 0.1, "minibatch_size": 4, "max_grad_norm": 0, "weight_decay": 0, "shuffle": False, "end_token": True}
    for preset, own in {
        "paper": {"retain_weight": 0},
        "paper_grad_diff": {"retain_weight": 1, "retain_loss": "nll_tokens"},
        "paper_kl": {"retain_weight": 1, "retain_loss": "kl_rows", "row_length": 512},
    }.items():
        hp = methods["NPO"](model_name="x", preset=preset)
        assert npo | {"epochs": 10, "lr": 1e-5} | own == {
            key: getattr(hp, key) for key in (*npo, "epochs", "lr", *own)
        }, preset
    lora = methods["NPO-LoRA"](model_name="x", preset="paper")
    assert (lora.epochs, lora.lr, lora.weight_decay, lora.retain_loss) == (5, 1e-4, 0.01, "nll_tokens")
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.layers) == (8, 32, 0.05, [])
