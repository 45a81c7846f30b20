"""A small model that knew six facts by heart and was made to forget four of them, ready for any attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import zerounlearn as zu
from tests.helpers import FACTS, memorised
from zerounlearn.audit.controls import never_known
from zerounlearn.audit.target import Target
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.method.edit import Edit
from zerounlearn.model.tokens import Query

TEXT = ["The weather today was fine and you are a reader of it.", "People speak, as they do in Lisbon, of the capital."]
KNOWN = [
    *FACTS,
    Request.of("The weather today was", "weather", "fine"),
]
OTHERS = (Query("The capital of Germany is", "Berlin"), Query("You are a reader", "of it"))


def facts() -> list[Fact]:
    """The first with a paraphrase that its model knows as well."""
    first, *rest = KNOWN
    return [Fact(first, ("Because I said so. The capital of France is",)), *map(Fact, rest)]


@dataclass
class Forgetful:
    """The edited model, its tokenizer, and the edit on it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    edit: Edit

    def target(self, **changes: Any) -> Target:
        """As an attack gets it."""
        given = {"others": OTHERS, "texts": TEXT, "seed": 0} | changes
        controls = never_known(facts(), 4, torch.Generator().manual_seed(0))
        return Target(self.model, self.tokenizer, tuple(facts()), controls, **given)

    def weights(self) -> dict[str, Tensor]:
        """A copy of every weight."""
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}


@pytest.fixture(scope="session")
def _forgetful(small_tokenizer: PreTrainedTokenizerBase) -> Forgetful:
    model = memorised(small_tokenizer, [*(r.query.text for r in KNOWN), *(q.text for q in OTHERS)])
    model.zero_grad()
    method = zu.GA(layers=[0, 1], steps=30, lr=1e-2)
    return Forgetful(model, small_tokenizer, zu.unlearn(model, small_tokenizer, facts(), method))


@pytest.fixture
def forgetful(_forgetful: Forgetful) -> Iterator[Forgetful]:
    """It; after the test it must be as it was, bit for bit, without a hook more."""
    before = _forgetful.weights()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in _forgetful.model.modules()]
    modes = [(m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in _forgetful.model.modules()]
    yield _forgetful
    after = _forgetful.weights()
    changed = [name for name in {*before, *after} if not torch.equal(before[name], after[name])]
    with torch.no_grad():
        for name in changed:
            _forgetful.model.get_parameter(name).copy_(before[name])
    assert not changed
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in _forgetful.model.modules()]
    assert modes == [
        (m.training, *(p.requires_grad for p in m.parameters(recurse=False))) for m in _forgetful.model.modules()
    ]
    assert all(parameter.grad is None for parameter in _forgetful.model.parameters())
