"""Every baseline on small float64 models: what it lowers, what it leaves alone, and when things go wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import FACTS, GPT2, tiny
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, IllPosedError, LayoutError, RequestError
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import base as terms
from zerounlearn.method.gradient.base import GradientMethod
from zerounlearn.method.gradient.descend import unlearn_by_gradient
from zerounlearn.method.gradient.sequences import Reader, Sample, text_samples
from zerounlearn.model.tokens import continuation

RETAIN = [
    Request.of("The capital of {} is", "Germany", "Berlin"),
    Request.of("You are a reader of", "reader", "it"),
    Request.of("{} was fine", "The weather", "today"),
]
TEXTS = ["In the year 3 the weather of France was fine and people in Lisbon said so.", "x"]
# What trains adapters instead of weights has tests of its own: test_npo_lora.py.
METHODS = {name: kind for name, kind in methods.items() if issubclass(kind, GradientMethod) and name != "NPO-LoRA"}
RETAINING = [name for name in METHODS if name != "GA"]
LR = {"RMU": 3e-2}


def run_of(name: str, **changes: object) -> GradientMethod:
    """Twelve steps on two of the four layers; fewer retain terms than the default where `changes` say so."""
    own = {"RMU": {"retain_weight": 1.0}}.get(name, {})
    fixed = {"model_name": "tiny", "layers": [1, 2], "steps": 12, "lr": LR.get(name, 1e-2)}
    return METHODS[name].from_mapping(fixed | own | changes)


def go(model, tokenizer, name: str, requests=FACTS, retain=RETAIN, **changes: object):
    hp = run_of(name, **changes)
    kept = {} if name == "GA" or not getattr(hp, "retain_weight", 0) else {"retain": retain}
    return unlearn_by_gradient(model, tokenizer, requests, hp, **kept)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@torch.no_grad()
def log_p(model, tokenizer, prompt: str, answer: list[int]) -> float:
    """Independent of the package: one unpadded row, full logits."""
    ids = tokenizer(prompt)["input_ids"]
    logits = model(input_ids=torch.tensor([ids + answer])).logits[0].log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(answer))


def answers(model, tokenizer, requests) -> torch.Tensor:
    found = [log_p(model, tokenizer, r.prompt, continuation(tokenizer, r.prompt, r.answer)) for r in requests]
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture
def model(small_tokenizer):
    """A random model that has learnt the answers: there is something to forget, and something to keep."""
    return taught(tiny("llama", len(small_tokenizer)), small_tokenizer)


def taught(model, tokenizer):
    """Forty plain steps on every answer."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    reader = Reader(model, tokenizer)
    samples = terms.answer_samples(tokenizer, [*FACTS, *RETAIN])
    for _ in range(40):
        optimiser.zero_grad()
        (-reader.log_p(samples).mean()).backward()
        optimiser.step()
    model.zero_grad(set_to_none=True)
    return model


def test_log_probabilities_equal_those_of_single_rows(small_tokenizer, model) -> None:
    reader = Reader(model, small_tokenizer)
    samples = terms.answer_samples(small_tokenizer, FACTS)
    assert len({len(sample.ids) for sample in samples}) > 1, "else nothing is padded"
    assert any(sample.size > 1 for sample in samples)
    with torch.no_grad():
        assert_close(reader.log_p(samples), answers(model, small_tokenizer, FACTS))
        hidden = reader.output_of(model.model.layers[1], samples)
        single = [model(input_ids=torch.tensor([s.ids[:-1]]), output_hidden_states=True) for s in samples]
    assert_close(hidden, torch.cat([output.hidden_states[2][0] for output in single]))


def test_texts_are_answers_to_their_first_token(small_tokenizer) -> None:
    samples = text_samples(small_tokenizer, TEXTS, 7)
    assert samples == [Sample(tuple(small_tokenizer(TEXTS[0])["input_ids"][:7]), 1)], "one token predicts nothing"
    assert samples[0].size == 6


@pytest.mark.parametrize("name", METHODS)
def test_the_answers_become_less_likely_and_only_the_chosen_weights_change(small_tokenizer, model, name: str) -> None:
    before, known = weights(model), answers(model, small_tokenizer, FACTS)
    assert known.exp().min() > 0.5, "the model must know what it is to forget"
    outcome = go(model, small_tokenizer, name)
    names = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    assert changed(model, before) == names == set(outcome.before)
    assert all(torch.equal(outcome.before[name], before[name]) for name in names)
    assert (answers(model, small_tokenizer, FACTS) < known - 0.5).all()
    assert set(outcome.losses) == ({"forget"} if name == "GA" else {"forget", "retain"})
    assert all(len(values) == 12 for values in outcome.losses.values())
    assert outcome.losses["forget"][-1] < outcome.losses["forget"][0]
    assert {"reference", "descent"} == set(outcome.seconds)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "own"),
    [("RMU", {}), *((name, {"retain_loss": loss}) for name in RETAINING if name != "RMU" for loss in ("nll", "kl"))],
)
def test_the_retain_term_keeps_the_retain_answers(small_tokenizer, name: str, own: dict) -> None:
    kept = []
    for weight in (0.0, 5.0):
        model = taught(tiny("llama", len(small_tokenizer)), small_tokenizer)
        go(model, small_tokenizer, name, retain_weight=weight, **own)
        kept.append(answers(model, small_tokenizer, RETAIN).mean())
    assert kept[1] > kept[0] + 0.05


@pytest.mark.integration
@pytest.mark.parametrize("name", RETAINING)
def test_texts_can_be_what_is_kept(small_tokenizer, name: str) -> None:
    """By what each method keeps: RMU the hidden states, the others the NLL."""
    text = text_samples(small_tokenizer, TEXTS[:1], 40)
    lost = []
    for weight in (0.0, 50.0):
        model = taught(tiny("llama", len(small_tokenizer)), small_tokenizer)
        reader = Reader(model, small_tokenizer)
        with torch.no_grad():
            hidden = reader.output_of(model.model.layers[2], text)
        unlearn_by_gradient(model, small_tokenizer, FACTS, run_of(name, retain_weight=weight), texts=TEXTS)
        with torch.no_grad():
            moved = (reader.output_of(model.model.layers[2], text) - hidden).norm().item()
            lost.append(moved if name == "RMU" else -reader.log_p(text).item())
    assert lost[1] < lost[0]


def test_the_first_losses_are_those_of_the_formulas(small_tokenizer, model) -> None:
    """One batch holds the whole set, so the first loss is known from the model's own probabilities."""
    known, kept = answers(model, small_tokenizer, FACTS), answers(model, small_tokenizer, RETAIN)
    sizes = torch.tensor([float(s.size) for s in terms.answer_samples(small_tokenizer, RETAIN)])
    first = {}
    for name in METHODS:
        outcome = go(tiny_copy(model), small_tokenizer, name, steps=1)
        first[name] = {term: values[0] for term, values in outcome.losses.items()}
    assert first["GA"]["forget"] == first["GradDiff"]["forget"] == pytest.approx(known.mean().item())
    assert first["NPO"]["forget"] == pytest.approx(2 / 0.1 * torch.tensor(2.0).log().item())
    for name in ("DPO-Unlearn", "IdkPO"):
        assert first[name]["forget"] == pytest.approx(torch.tensor(2.0).log().item()), name
    for name in ("GradDiff", "NPO", "SimNPO", "DPO-Unlearn", "IdkPO"):
        assert first[name]["retain"] == pytest.approx(-(kept / sizes).mean().item()), name
    assert first["RMU"]["retain"] == pytest.approx(0, abs=1e-20)
    kl = go(tiny_copy(model), small_tokenizer, "NPO", steps=2, retain_loss="kl").losses["retain"]
    assert abs(kl[0]) < 1e-12 < kl[1]


def tiny_copy(model):
    copy = tiny("llama", model.config.vocab_size)
    copy.load_state_dict(model.state_dict())
    return copy


def test_each_preference_raises_its_own_answer(small_tokenizer, model) -> None:
    idk = continuation(small_tokenizer, FACTS[0].prompt, "I don't know.")
    neutral = continuation(small_tokenizer, FACTS[0].prompt, "something else")
    own = [dataclasses.replace(FACTS[0], neutral="something else")]
    targets = {"eos": [small_tokenizer.eos_token_id], "own": neutral, "idk": idk}
    rises = {}
    for label, name, requests in (
        ("eos", "DPO-Unlearn", FACTS[:1]),
        ("own", "DPO-Unlearn", own),
        ("idk", "IdkPO", own),
    ):
        other = tiny_copy(model)
        go(other, small_tokenizer, name, requests=requests, beta=1.0)
        rises[label] = {
            target: log_p(other, small_tokenizer, FACTS[0].prompt, ids)
            - log_p(model, small_tokenizer, FACTS[0].prompt, ids)
            for target, ids in targets.items()
        }
    for target in targets:
        assert max(rises, key=lambda label, target=target: rises[label][target]) == target
        assert rises[target][target] > 0


def test_rmu_moves_the_hidden_states_towards_its_direction(small_tokenizer, model) -> None:
    samples = terms.answer_samples(small_tokenizer, FACTS)
    hp = run_of("RMU", layers=[0, 1], rmu_layer=2, steering_coefficient=4, steps=60, retain_weight=0)
    before = weights(model)
    unlearn_by_gradient(model, small_tokenizer, FACTS, hp)
    u = terms.objectives.random_direction(32, generator=torch.Generator().manual_seed(0)).double()
    other = tiny_copy(model)
    other.load_state_dict(before, strict=False)
    with torch.no_grad():
        after, earlier = (
            (Reader(m, small_tokenizer).output_of(m.model.layers[2], samples) - 4 * u).square().sum(-1).mean()
            for m in (model, other)
        )
    assert after < 0.5 * earlier


def test_every_parameter(small_tokenizer, model) -> None:
    before = weights(model)
    outcome = go(model, small_tokenizer, "NPO", layers="all", lr=1e-3)
    assert set(outcome.before) == set(before) == changed(model, before)


def test_kl_is_from_the_model_as_it_was_though_its_head_is_trained(small_tokenizer, model) -> None:
    original, once = tiny_copy(model), tiny_copy(model)
    go(once, small_tokenizer, "NPO", layers="all", steps=1, retain_loss="kl")
    reported = go(model, small_tokenizer, "NPO", layers="all", steps=2, retain_loss="kl").losses["retain"][1]
    expected = []
    for r in RETAIN:
        ids = small_tokenizer(r.prompt)["input_ids"]
        answer = continuation(small_tokenizer, r.prompt, r.answer)
        row = torch.tensor([ids + answer[:-1]])
        with torch.no_grad():
            p, q = (m(input_ids=row).logits[0, len(ids) - 1 :].log_softmax(-1) for m in (original, once))
        expected.append((p.exp() * (p - q)).sum(-1))
    assert reported > 0
    assert reported == pytest.approx(torch.cat(expected).mean().item(), rel=1e-6)


def test_gpt2s_layout(small_tokenizer) -> None:
    model = taught(tiny("gpt2", len(small_tokenizer)), small_tokenizer)
    before, known = weights(model), answers(model, small_tokenizer, FACTS)
    go(model, small_tokenizer, "SimNPO", **GPT2)
    assert changed(model, before) == {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (1, 2)}
    assert answers(model, small_tokenizer, FACTS).sum() < known.sum()


@pytest.mark.parametrize("name", ["GradDiff", "RMU"])
def test_the_seed_decides_the_order_and_no_global_state_moves(small_tokenizer, name: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    results = []
    for seed in (1, 1, 2):
        model = tiny("llama", len(small_tokenizer))
        go(model, small_tokenizer, name, seed=seed, minibatch_size=1)
        results.append(model.model.layers[2].mlp.down_proj.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_hold_every_item_once_before_any_again() -> None:
    batches = terms.Term(5, lambda batch: torch.zeros(())).batches(2, generator=torch.Generator().manual_seed(0))
    rounds = [[next(batches) for _ in range(3)] for _ in range(2)]
    assert [[len(batch) for batch in found] for found in rounds] == [[2, 2, 1]] * 2
    assert all(sorted(i for batch in found for i in batch) == list(range(5)) for found in rounds)
    assert rounds[0] != rounds[1]


@pytest.mark.parametrize("name", METHODS)
def test_padding_side_does_not_matter(small_tokenizer, name: str) -> None:
    results = []
    for side in ("left", "right"):
        small_tokenizer.padding_side = side
        model = tiny("llama", len(small_tokenizer))
        go(model, small_tokenizer, name, steps=3)
        results.append(model.model.layers[2].mlp.down_proj.weight.detach())
    assert torch.equal(*results)


def test_half_precision_weights_accumulate_steps_below_their_own(small_tokenizer) -> None:
    """Two hundred steps of 2e-5 are lost one by one in bfloat16, whose spacing at 0.5 is 2e-3."""
    model = tiny("llama", len(small_tokenizer), dtype=torch.bfloat16)
    name = "model.layers.2.mlp.down_proj.weight"
    before = model.get_parameter(name).detach().clone()
    direct = before.clone()
    for _ in range(200):
        direct += 2e-5
    large = before.abs() > 0.25
    assert large.any() and torch.equal(direct[large], before[large])
    go(model, small_tokenizer, "GA", layers=[2], lr=2e-5, steps=200)
    after = model.get_parameter(name).detach()
    assert after.dtype == torch.bfloat16
    assert (after != before)[large].float().mean() > 0.1


def test_clipping_cuts_the_norm_and_0_leaves_it(small_tokenizer, model) -> None:
    """AdamW does not feel the gradient's scale, but it feels that two steps are cut differently."""
    results = []
    for norm in (0.0, 1e9, 1e-3):
        other = tiny_copy(model)
        go(other, small_tokenizer, "GA", steps=3, max_grad_norm=norm)
        results.append(other.model.layers[2].mlp.down_proj.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Marked(BaseException):
    """Nobody handles it on the way, like KeyboardInterrupt."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, Marked])
def test_an_interrupted_run_leaves_everything_as_it_was(small_tokenizer, name: str, error, monkeypatch) -> None:
    model = tiny("llama", len(small_tokenizer)).train()
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    gradient = torch.ones_like(model.model.layers[1].mlp.down_proj.weight)
    model.model.layers[1].mlp.down_proj.weight.grad = gradient
    before = weights(model)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    steps, step = [], torch.optim.AdamW.step

    def failing(self, *args, **kwargs):
        step(self, *args, **kwargs)
        steps.append(changed(model, before))
        if len(steps) == 3:
            raise error("by the test")

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(error, match="by the test"):
        go(model, small_tokenizer, name)
    assert steps[-1], "weights had been changed"
    assert not changed(model, before)
    assert modes == [module.training for module in model.modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.model.layers[1].mlp.down_proj.weight.grad is gradient and (gradient == 1).all()


def test_a_loss_that_is_not_finite_is_named(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    before = weights(model)
    with pytest.raises(IllPosedError, match=r"GA: the \w+ loss is nan at step [1-9]\d* of 12: lower lr=1e\+200"):
        go(model, small_tokenizer, "GA", lr=1e200)
    assert not changed(model, before)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(IllPosedError, match=r"at step 0 of 12: .*reload the checkpoint"):
        go(model, small_tokenizer, "GA")


def test_weights_that_leave_half_precision_are_named(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float16)
    before = weights(model)
    with pytest.raises(IllPosedError, match=r"GA: model.layers.1.mlp.down_proj.weight does not fit torch.float16"):
        go(model, small_tokenizer, "GA", lr=1e6, steps=1)
    assert not changed(model, before)


@pytest.mark.parametrize("name", RETAINING)
def test_a_missing_retain_set_is_named(small_tokenizer, name: str) -> None:
    model = tiny("llama", len(small_tokenizer))
    with pytest.raises(ConfigError, match=rf"retain_weight=\d+: {name} needs a retain set: .*retain_path.*to 0"):
        unlearn_by_gradient(model, small_tokenizer, FACTS, run_of(name))


def test_requests_that_cannot_be_met(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    before = weights(model)
    for error, message, name, changes in [
        (RequestError, "the forget set is empty", "GA", {"requests": []}),
        (RequestError, "both to be forgotten and to be kept", "NPO", {"retain": FACTS}),
        (RequestError, "equals the neutral target", "DPO-Unlearn", {"neutral_target": "Paris"}),
        (RequestError, "equals the neutral target", "IdkPO", {"idk_text": "Paris"}),
        (LayoutError, "layers=.3, 4.: .4. is outside", "GA", {"layers": [3, 4]}),
        (ConfigError, "rmu_layer=4: this model's layers are numbered 0 to 3", "RMU", {"rmu_layer": 4}),
    ]:
        with pytest.raises(error, match=message):
            go(model, small_tokenizer, name, **changes)
    with pytest.raises(ConfigError, match="GA has no retain term"):
        unlearn_by_gradient(model, small_tokenizer, FACTS, run_of("GA"), retain=RETAIN)
    with pytest.raises(ConfigError, match="none of the 1 retain texts has two tokens"):
        unlearn_by_gradient(model, small_tokenizer, FACTS, run_of("NPO"), texts=["x"])
    assert not changed(model, before)


def test_weights_that_cannot_be_trained(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    weight = torch.nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    model.model.layers[0].mlp.down_proj.weight = weight
    for layers in ("all", [0, 1]):
        with pytest.raises(LayoutError, match="quantised"):
            go(model, small_tokenizer, "GA", layers=layers)
    model.model.layers[0].mlp.down_proj.to("meta")
    with pytest.raises(LayoutError):
        go(model, small_tokenizer, "GA", layers="all")
