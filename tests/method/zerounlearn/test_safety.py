"""What an edit must never do: touch a block that it does not understand, run away, or leave weights when it failed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.data.fact import Fact
from zerounlearn.errors import IllPosedError, LayoutError
from zerounlearn.method.edit import LayerOutcome
from zerounlearn.method.zerounlearn import method as module
from zerounlearn.model.families import families
from zerounlearn.model.hooks import restored, uninterrupted
from zerounlearn.model.lineage import Lineage

PACKAGE = str(Path(zu.__file__).parent)
TEMPLATES = families["llama"].to_dict()


def state(model: Any) -> dict[str, Any]:
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    return {
        "weights": {name: value.detach().clone() for name, value in model.named_parameters()},
        "flags": {name: value.requires_grad for name, value in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "hooks": hooks,
        "gradients": torch.is_grad_enabled(),
        "attention": model.config._attn_implementation,
        "traces": {name: len(traces) for name, traces in Lineage.of(model).traces.items() if traces},
    }


def assert_as_before(model: Any, before: dict[str, Any]) -> None:
    now = state(model)
    assert all(torch.equal(value, before["weights"][name]) for name, value in now.pop("weights").items())
    assert now == {name: value for name, value in before.items() if name != "weights"}


def run(preset: str = "paper", **changes: Any) -> Any:
    fixed = {"layers": [1, 2], "mom2_adjustment": False, "v_num_grad_steps": 2, "n_contexts": 1, "retain_set": "none"}
    return zu.ZeroUnlearn(**(TEMPLATES | fixed | {"preset": preset} | changes))


@pytest.mark.parametrize("preset", ["paper", "specific"])
def test_a_block_that_depends_on_more_than_its_arguments_is_refused(preset: str, small_tokenizer: Any) -> None:
    """BLOOM's blocks are called with one tensor for the heads of all rows."""
    model = tiny("bloom", len(small_tokenizer), dtype=torch.float32)
    before = state(model)
    with pytest.raises(LayoutError, match="replaying its blocks does not give its own outputs"):
        zu.unlearn(model, small_tokenizer, [Fact(FACTS[0])], run(preset, **dict.fromkeys(TEMPLATES)))
    assert_as_before(model, before)


def test_an_edit_that_runs_away_is_stopped_and_undone(small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap that grows from layer to layer: here because every residual is written reversed and 30 times as long."""
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    before = state(model)
    real = module._Run._edit_layer

    def reversed_step(*args: Any) -> LayerOutcome:
        *before_gap, gap, remaining, V, hparams = args
        outcome = real(*before_gap, -30 * gap, remaining, V, hparams)
        return replace(outcome, distance=float(gap.norm(dim=1).mean()))

    monkeypatch.setattr(module._Run, "_edit_layer", reversed_step)
    with pytest.raises(IllPosedError, match="moves away from its target"):
        zu.unlearn(
            model, small_tokenizer, [Fact(FACTS[0])], run("specific", z_objective="neutral", regularization_lam=1e-3)
        )
    assert_as_before(model, before)


class _Fault:
    """Raises at the n-th line that this package executes; counts them all where `at` is None."""

    def __init__(self, at: int | None, error: type[BaseException]) -> None:
        self.at, self.error, self.lines = at, error, 0
        self.handler = signal.getsignal(signal.SIGINT)

    def held_back(self) -> bool:
        """Whether Ctrl-C has to wait; memory may run out all the same."""
        return self.error is KeyboardInterrupt and signal.getsignal(signal.SIGINT) is not self.handler

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name == "uninterrupted":
            return None
        if event == "line" and not self.held_back():
            self.lines += 1
            if self.lines == self.at:
                raise self.error
        return self


def traced(fault: _Fault, call: Any) -> None:
    before = sys.gettrace()
    sys.settrace(fault)
    try:
        call()
    finally:
        sys.settrace(before)


@pytest.mark.integration
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_failure_at_any_line_leaves_the_model_as_it_was(error: type[BaseException], small_tokenizer: Any) -> None:
    """Of all lines that a run executes, thirty spread over it, and the last ones, where the report is made."""
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32).train()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    before = state(model)
    hp = run("specific", z_objective="neutral", layers=[1])

    def go() -> None:
        zu.unlearn_and_report(model, small_tokenizer, [Fact(FACTS[0])], hp, text=None)

    name = "model.layers.1.mlp.down_proj.weight"
    totals = []
    for _ in range(2):  # the first run fills caches, and so has lines of its own
        count = _Fault(None, error)
        traced(count, go)
        totals.append(count.lines)
        assert not torch.equal(model.get_parameter(name), before["weights"][name])  # else nothing could be left
        with torch.no_grad():
            for other, value in before["weights"].items():
                model.get_parameter(other).copy_(value)
        model._zerounlearn_lineage = Lineage()
    total = min(totals)
    places = sorted({*range(total // 30, total, total // 30), *range(total - 40, total - 1, 8)})
    if error is MemoryError:
        places = places[::3]
    for at in places:
        fault = _Fault(at, error)
        with pytest.raises(error):
            traced(fault, go)
        assert_as_before(model, before)
        model._zerounlearn_lineage = Lineage()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As at a terminal; what a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_waits_until_the_weights_are_back() -> None:
    layers = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    seen = []

    class Slow(torch.nn.Parameter):
        pass

    with pytest.raises(KeyboardInterrupt), restored(layers):
        for layer in layers:
            layer.data.fill_(1.0)
        raise KeyboardInterrupt
    assert all(not layer.any() for layer in layers)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        seen.append("the body went on")
    assert seen == ["the body went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
