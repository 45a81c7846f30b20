"""Batched replay against the plain implementation: the same vectors, on small models of several layouts."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests import reference as plain
from tests.helpers import FACTS, GPT2, PREFIXES, hparams_for, tiny
from zerounlearn.errors import IllPosedError, LayoutError
from zerounlearn.method.zerounlearn import vectors as module
from zerounlearn.method.zerounlearn.batches import distinct
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.method.zerounlearn.vectors import Problem, optimise
from zerounlearn.model import tape as tapes
from zerounlearn.model.replay import Suffix
from zerounlearn.model.tokens import continuation, locate


def problems_for(tokenizer, layers: list[int]) -> list[Problem]:
    eos = (tokenizer.eos_token_id,)
    found = [Problem(r, eos, layers[-1], "block") for r in FACTS]
    for layer in layers:
        found += [Problem(r, tuple(continuation(tokenizer, r.prompt, r.answer)), layer, "projection") for r in FACTS]
    return found


def reference(model, tokenizer, problems, hp, prefixes=PREFIXES) -> torch.Tensor:
    return torch.stack([
        plain.compute_z(
            model, tokenizer, p.request.prompt, p.request.subject, p.target, prefixes, p.layer, hp,
            at_projection=p.at == "projection",
        )
        for p in problems
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("qwen3", "sdpa"), ("mistral", "sdpa"), ("gemma", "sdpa")],
)
def test_batched_replay_equals_the_plain_way(kind: str, attention: str, small_tokenizer) -> None:
    model = tiny(kind, len(small_tokenizer), attention)
    hp = hparams_for([1, 2], z_batch_size=4)
    problems = problems_for(small_tokenizer, hp.layers)
    found = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    expected = reference(model, small_tokenizer, problems, hp)
    moved = (expected - expected.mean()).norm()
    assert (found.vectors - expected).norm() < 1e-6 * moved
    assert found.final.mean() < found.initial.mean()


@pytest.mark.parametrize(("kind", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa")])
def test_a_recording_in_batches_is_that_of_all_rows(
    kind: str, attention: str, small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(kind, len(small_tokenizer), attention)
    hp = hparams_for([1, 2])
    problems = problems_for(small_tokenizer, hp.layers)
    layout = find_layout(model, hp)
    batches: list[tuple[int, ...]] = []
    run = tapes._record

    def spy(layout, ids, mask, **wanted):
        batches.append(tuple(ids.shape))
        return run(layout, ids, mask, **wanted)

    monkeypatch.setattr(tapes, "_record", spy)
    at_once = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    most = max(rows for rows, _ in batches)
    batches.clear()
    monkeypatch.setattr(tapes, "good_tokens", lambda _: 24)
    in_batches = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    assert max(rows for rows, _ in batches) < most
    assert len({length for _, length in batches}) > 2, "each batch is as long as its own longest row"
    # norms are taken in float32 whatever the model's dtype, in batches of other shapes
    assert_close(in_batches.vectors, at_once.vectors, rtol=1e-5, atol=1e-6)


def test_it_replays_suffixes_and_whole_rows_alike(small_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", len(small_tokenizer))
    hp = hparams_for([1, 2])
    problems = problems_for(small_tokenizer, hp.layers)
    seen: list[float] = []
    original = Suffix.run

    def spy(self, layer, hidden, n):
        seen.append(len(hidden) / n)
        return original(self, layer, hidden, n)

    monkeypatch.setattr(Suffix, "run", spy)
    short = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    tokens_a_row = max(seen)
    seen.clear()
    monkeypatch.setattr("zerounlearn.model.replay.supports_suffix", lambda tape: False)
    whole = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    assert tokens_a_row < min(seen)
    assert_close(short.vectors, whole.vectors, rtol=1e-9, atol=1e-9)


def test_little_memory_makes_small_passes_and_the_same_vectors(
    small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", len(small_tokenizer))
    hp = hparams_for([1, 2])
    problems = problems_for(small_tokenizer, hp.layers)
    tokens: list[int] = []
    tapes: list[int] = []
    run, recorded = Suffix.run, module.record

    def count(self, layer, hidden, n):
        tokens.append(len(hidden))
        return run(self, layer, hidden, n)

    def note(*args, **kwargs):
        tapes.extend([1] * kwargs.get("attention", False))
        return recorded(*args, **kwargs)

    monkeypatch.setattr(Suffix, "run", count)
    monkeypatch.setattr(module, "record", note)
    much = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    most, one = max(tokens), len(tapes)
    tokens.clear()
    monkeypatch.setattr("zerounlearn.method.zerounlearn.batches.free_memory", lambda _: 300_000)
    hp = hp.replace(z_batch_size=None)  # as many as memory allows
    little = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    assert one == 1
    assert len(tapes) > 2
    assert max(tokens) < most / 4
    assert_close(little.vectors, much.vectors, rtol=1e-9, atol=1e-9)


def test_a_sequence_that_begins_another_is_not_run_again() -> None:
    rows = [(1, 2), (1, 2, 3), (4,), (1, 2, 3), (1, 5), (4, 1, 2)]
    kept, found = distinct(rows)
    assert sorted(kept) == [(1, 2, 3), (1, 5), (4, 1, 2)]
    assert all(kept[found[row]][: len(row)] == row for row in rows)


def test_gpt2_with_its_conv1d_and_learned_positions(small_tokenizer) -> None:
    model = tiny("gpt2", len(small_tokenizer))
    hp = hparams_for([1, 2], **GPT2)
    problems = problems_for(small_tokenizer, hp.layers)
    found = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    alone = [optimise(find_layout(model, hp), small_tokenizer, [p], PREFIXES, hp, progress=None) for p in problems]
    assert_close(found.vectors, torch.cat([a.vectors for a in alone]), rtol=1e-7, atol=1e-7)
    assert (found.final < found.initial).all()


def test_each_vector_stops_by_itself(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    model.lm_head.weight.data.mul_(20.0)  # the arg-max then has all the probability: such a target is done at once
    hp = hparams_for([1, 2])
    problems = problems_for(small_tokenizer, hp.layers)
    ids = torch.tensor([small_tokenizer(FACTS[1].prompt)["input_ids"]])
    said = int(model(input_ids=ids).logits[0, -1].argmax())
    problems[1] = Problem(FACTS[1], (said,), 2, "block")
    found = optimise(find_layout(model, hp), small_tokenizer, problems, [], hp, progress=None)
    assert found.steps[1] == 0
    assert (found.steps > 0).sum() >= len(problems) - 2
    expected = reference(model, small_tokenizer, problems, hp, prefixes=[])
    assert (found.vectors - expected).norm() < 1e-6 * expected.norm()


def test_each_vector_is_clamped_by_itself(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    hp = hparams_for([1, 2], v_lr=0.5, clamp_norm_factor=0.2)
    problems = problems_for(small_tokenizer, hp.layers)
    layout = find_layout(model, hp)
    found = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    expected = reference(model, small_tokenizer, problems, hp)
    assert (found.vectors - expected).norm() < 1e-6 * expected.norm()
    free = optimise(layout, small_tokenizer, problems, PREFIXES, hparams_for([1, 2], v_lr=0.5), progress=None)
    assert (free.vectors - found.vectors).norm() > 1e-2 * expected.norm(), "the clamp did nothing"


def test_a_loss_layer_below_the_last(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    hp, deep = hparams_for([0, 1], v_loss_layer=2), hparams_for([0, 1])
    problems = problems_for(small_tokenizer, hp.layers)
    shallow = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    cut = tiny("llama", len(small_tokenizer))
    cut.model.layers = cut.model.layers[:3]
    assert (shallow.vectors - optimise(
        find_layout(model, deep), small_tokenizer, problems, PREFIXES, deep, progress=None
    ).vectors).norm() > 1e-3  # fmt: skip
    hp, deep = (
        hp.replace(kl_factor=0.0),
        deep.replace(kl_factor=0.0),
    )  # the KL term is read from the model's own end in either case
    left = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)
    right = optimise(find_layout(cut, deep), small_tokenizer, problems, PREFIXES, deep, progress=None)
    assert_close(left.vectors, right.vectors, rtol=1e-7, atol=1e-7)


def test_a_loss_that_is_not_finite_is_named(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    model.model.layers[3].mlp.down_proj.weight.data[0, 0] = float("nan")
    hp = hparams_for([1])
    with pytest.raises((IllPosedError, LayoutError)):
        optimise(find_layout(model, hp), small_tokenizer, problems_for(small_tokenizer, [1]), PREFIXES, hp)


def test_the_model_is_left_as_it_was(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer)).train()
    model.model.layers[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hp = hparams_for([1])
    optimise(find_layout(model, hp), small_tokenizer, problems_for(small_tokenizer, [1]), PREFIXES, hp)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    assert not model.model.layers[0].training
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_an_unlikely_target_has_the_loss_that_is_said_and_becomes_unlikely(small_tokenizer) -> None:
    """The token that the model would say, mixed with a likely target in one batch; the loss computed by hand."""
    model = tiny("llama", len(small_tokenizer))
    hp = hparams_for([1], v_num_grad_steps=15, fact_token="last")
    request = FACTS[0]
    texts = [prefix + request.prompt for prefix in ("", *PREFIXES)]
    rows = [torch.tensor([small_tokenizer(text)["input_ids"]]) for text in texts]
    with torch.no_grad():
        token = int(model(input_ids=rows[0]).logits[0, -1].argmax())
    problems = [Problem(request, (token,), 1, "block", 20.0), Problem(request, (token,), 1, "block")]
    found = optimise(find_layout(model, hp), small_tokenizer, problems, PREFIXES, hp, progress=None)

    def losses(delta: torch.Tensor) -> float:
        def add(_, __, output):
            moved = output.clone()
            moved[0, -1] += delta
            return moved

        handle = model.model.layers[1].register_forward_hook(add)
        with torch.no_grad():
            p = torch.stack([model(input_ids=ids).logits[0, -1].softmax(-1)[token] for ids in rows])
        handle.remove()
        return float(-20.0 * (1.0 - p).log().mean())

    origin = []
    handle = model.model.layers[1].register_forward_hook(lambda _, __, output: origin.append(output[0, -1].detach()))
    model(input_ids=rows[0])
    handle.remove()
    assert float(found.initial[0]) == pytest.approx(losses(torch.zeros(32, dtype=torch.float64)), rel=1e-9)
    assert float(found.final[0]) == pytest.approx(losses(found.vectors[0] - origin[0]), rel=1e-6)
    assert found.final[0] < 0.3 * found.initial[0]
    assert found.final[1] < found.initial[1], "a likely target in the same batch"


def by_polyak(hp, **changes):
    return hp.replace(reproduce="fast", **changes)


def test_few_of_polyaks_steps_come_as_far_as_the_published_ones(small_tokenizer, monkeypatch) -> None:
    """In less than a third of the passes."""
    model = tiny("llama", len(small_tokenizer))
    hp = hparams_for([1, 2], v_num_grad_steps=25, v_lr=0.3, clamp_norm_factor=4.0)
    layout, problems = find_layout(model, hp), problems_for(small_tokenizer, hp.layers)
    looked: list[int] = []
    losses = module._Search.losses

    def counted(self, **how):
        looked.append(len(self.active) * (1 + how["slopes"]))
        return losses(self, **how)

    monkeypatch.setattr(module._Search, "losses", counted)
    adam = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    passes = sum(looked)
    looked.clear()
    found = optimise(layout, small_tokenizer, problems, PREFIXES, by_polyak(hp), progress=None)
    assert sum(looked) < passes / 3
    assert int(found.steps.max()) <= hp.v_steps
    assert found.final.mean() < 1.1 * adam.final.mean() < found.initial.mean()


@pytest.mark.parametrize("clamp", [0.2, 0.75])
def test_a_step_is_as_long_as_polyaks_within_the_bound(clamp: float, small_tokenizer) -> None:
    """One step, computed by hand from the loss and its slope."""
    model = tiny("llama", len(small_tokenizer))
    hp = by_polyak(hparams_for([2], clamp_norm_factor=clamp, kl_factor=0.0), v_steps=1)
    problem = Problem(FACTS[0], (7,), 2, "block")
    found = optimise(find_layout(model, hp), small_tokenizer, [problem], [], hp, progress=None)
    delta = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    origin = []

    def add(_, __, output):
        origin.append(output[0, position].detach())
        moved = output.clone()
        moved[0, position] = moved[0, position] + delta
        return moved

    ids, position = locate(small_tokenizer, FACTS[0].prompt, *FACTS[0].subject_span, hp.fact_token)
    handle = model.model.layers[2].register_forward_hook(add)
    loss = -model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[7]
    handle.remove()
    [slope] = torch.autograd.grad(loss, delta)
    bound = clamp * origin[0].norm()
    length = min(loss.item() / slope.norm().item(), 0.2 * bound.item())
    assert_close(found.vectors[0], origin[0] - length * slope / slope.norm(), rtol=1e-6, atol=1e-7)


def test_a_step_that_gains_nothing_is_taken_back_and_each_vector_is_found_by_itself(
    small_tokenizer, monkeypatch
) -> None:
    model = tiny("llama", len(small_tokenizer))
    model.lm_head.weight.data.mul_(8.0)  # so steep that steps overshoot
    hp = by_polyak(hparams_for([1, 2], clamp_norm_factor=5.0), v_steps=12)
    layout, problems = find_layout(model, hp), problems_for(small_tokenizer, hp.layers)
    seen: list[torch.Tensor] = []
    losses = module._Search.losses

    def kept(self, **how):
        found = losses(self, **how)
        seen.append(found[1])
        return found

    monkeypatch.setattr(module._Search, "losses", kept)
    found = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    totals = torch.stack(seen)
    assert (totals[1:] > totals[:-1]).any(), "no step gained nothing"
    assert (totals.cummin(0).values[-1] <= 0.9 * totals[0]).all(), "where one was taken back, the next gained"
    alone = [optimise(layout, small_tokenizer, [p], PREFIXES, hp, progress=None) for p in problems]
    assert_close(found.vectors, torch.cat([a.vectors for a in alone]), rtol=1e-6, atol=1e-6)
    assert_close(found.final, torch.cat([a.final for a in alone]), rtol=1e-6, atol=1e-6)


def test_polyaks_steps_stay_within_the_bound(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    hp = by_polyak(hparams_for([1, 2], clamp_norm_factor=0.1), v_steps=12)
    layout, problems = find_layout(model, hp), problems_for(small_tokenizer, hp.layers)
    origins = optimise(layout, small_tokenizer, problems, PREFIXES, hp.replace(clamp_norm_factor=1e-9), progress=None)
    found = optimise(layout, small_tokenizer, problems, PREFIXES, hp, progress=None)
    share = (found.vectors - origins.vectors).norm(dim=1) / origins.vectors.norm(dim=1)
    assert (share <= 0.1 * (1 + 1e-6)).all()
    assert (share > 0.099).any(), "nothing reached it"
