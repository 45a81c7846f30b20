"""The matrices of a model: all linear layers but the head, rows as outputs, and put back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.audit.conftest import Forgetful
from tests.helpers import tiny
from zerounlearn.audit.attacks.rounding import round_symmetric
from zerounlearn.audit.matrices import changed, matrices
from zerounlearn.errors import AuditError


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_embeddings_and_heads_are_left_as_they_are(kind: str) -> None:
    model = tiny(kind, 400)
    head = model.get_output_embeddings()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with changed(model, matrices(model), lambda _, W: round_symmetric(W, 4, 32)):
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(matrices(model)) and moved
    assert not any(model.get_parameter(name) is head.weight for name in moved)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_rows_are_outputs_whatever_way_a_model_stores_them() -> None:
    model = tiny("gpt2", 400)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, W: Tensor) -> Tensor:
        shapes[name] = tuple(W.shape)
        return W

    with changed(model, matrices(model), note):
        pass
    assert shapes["transformer.h.0.mlp.c_proj.weight"] == (32, 128)


def test_a_failure_midway_puts_back_what_was_changed(forgetful: Forgetful) -> None:
    names = list(matrices(forgetful.model))

    def fails(name: str, W: Tensor) -> Tensor:
        if name == names[3]:
            raise KeyboardInterrupt
        return torch.zeros_like(W)

    with pytest.raises(KeyboardInterrupt), changed(forgetful.model, names, fails):
        pass  # the fixture looks at the weights


def test_a_model_without_linear_layers_says_so() -> None:
    class Bare(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(AuditError, match="Bare has no linear layers"):
        matrices(Bare())  # type: ignore[arg-type]
