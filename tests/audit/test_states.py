"""Facts and controls block by block: the same as through the model itself, and a change reaches what comes after."""

from __future__ import annotations

import pytest
import torch

from tests.audit.conftest import Forgetful
from tests.helpers import tiny
from zerounlearn.audit.states import Asked
from zerounlearn.audit.target import Target
from zerounlearn.errors import AuditError
from zerounlearn.model.answers import Score


def test_what_goes_block_by_block_is_what_the_model_says(forgetful: Forgetful) -> None:
    target = forgetful.target()
    queries = [fact.request.query for fact in target.all]
    asked = Asked.of(target, queries)
    tape = asked.tape()
    expected = target.scores(queries)
    for layer in range(asked.depth):
        found = [Score.of(tokens) for tokens in asked.onwards(tape, layer, tape.outputs[layer])]
        assert [one.said for one in found] == [one.said for one in expected]
        assert [one.probability for one in found] == pytest.approx([one.probability for one in expected], rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "falcon", "phi", "opt", "mixtral"])
def test_it_goes_through_models_of_other_layouts(forgetful: Forgetful, kind: str) -> None:
    model = tiny(kind, len(forgetful.tokenizer), dtype=torch.float32)
    given = forgetful.target()
    target = Target(model, forgetful.tokenizer, given.facts, given.controls)
    queries = [fact.request.query for fact in target.all]
    asked = Asked.of(target, queries)
    tape = asked.tape()
    found = asked.onwards(tape, 1, tape.outputs[1])
    for mine, own in zip(found, target.answers(queries), strict=True):
        assert mine.ids == own.ids
        torch.testing.assert_close(mine.log_p, own.log_p, rtol=1e-3, atol=1e-3)


def test_what_is_put_in_changes_only_its_own_query(forgetful: Forgetful) -> None:
    target = forgetful.target()
    asked = Asked.of(target, [fact.request.query for fact in target.all])
    tape = asked.tape()
    states = asked.at(tape.outputs[0]).clone()
    states[: asked.sizes[0]] += 10
    before, after = (asked.onwards(tape, 0, asked.put(tape.outputs[0], s)) for s in (asked.at(tape.outputs[0]), states))
    assert not torch.equal(before[0].log_p, after[0].log_p)
    for one, same in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(one.log_p, same.log_p)
    torch.testing.assert_close(asked.at(asked.put(tape.outputs[0], states)), states)


def test_a_model_whose_blocks_are_not_found_says_so(forgetful: Forgetful) -> None:
    model = tiny("llama", 400)
    model.config.model_type = "unheard_of"
    model.model.layers2 = torch.nn.ModuleList(
        [torch.nn.Linear(4, model.config.hidden_size) for _ in range(len(model.model.layers))]
    )
    target = Target(model, forgetful.tokenizer, forgetful.target().facts, forgetful.target().controls)
    with pytest.raises(AuditError, match="layer_module_tmp"):
        Asked.of(target, [fact.request.query for fact in target.all])
