"""On a real model: a planted edit is told by its spectrum and undone, and a probe tells known subjects from made-up."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.audit.attacks.reading import reading
from zerounlearn.audit.attacks.reversal import Top, guessed, reversal
from zerounlearn.audit.controls import never_known
from zerounlearn.audit.states import layout_of
from zerounlearn.audit.target import Target
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.model.weights import weight_of, with_weights

Real = tuple[PreTrainedModel, PreTrainedTokenizerBase]
LAYER = "model.layers.20.mlp.down_proj.weight"


@pytest.fixture
def target(smollm2: Real) -> Target:
    """Four facts of one relation that the model says, two controls each, and others of that relation."""
    entries = [entry.fact for entry in packaged_entries()]
    relation = entries[0].request.before, entries[0].request.after
    same = [fact for fact in entries if (fact.request.before, fact.request.after) == relation][:30]
    scores = Target(*smollm2, tuple(same), ((),) * len(same)).plain()
    said = [fact for fact, score in zip(same, scores, strict=True) if score.found]
    generator = torch.Generator().manual_seed(0)
    others = said[4:]
    strange = tuple(each[0].request.prompt for each in never_known(others, 1, generator))
    queries = tuple(fact.request.query for fact in others)
    return Target(*smollm2, tuple(said[:4]), never_known(said[:4], 2, generator), queries, strange=strange)


def test_a_planted_direction_is_found_and_taken_away(target: Target) -> None:
    W = weight_of(target.model, LAYER)
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, 1, generator=generator) for n in W.shape)
    planted = W + 30 * torch.linalg.matrix_norm(W, 2) * (u / u.norm()) @ (v / v.norm()).mT
    with with_weights(target.model, {LAYER: planted}):
        before = target.outcome("", target.plain())
        [each] = reversal(target, ranks=(1,), where=("one layer",), each=(1,))
        layout = layout_of(target, projections=True)
        tops = {i: Top.of(layout.read(i), 5, generator) for i in layout.projections}
    assert before.share < 0.5
    assert 20 in guessed(tops)
    assert each.share >= 3 / 4 and {one.how for one in each.facts if one.found} == {"directions 1, layer 20"}
    assert each.alarms < each.share


def test_states_tell_a_known_subject_from_a_made_up_one(target: Target) -> None:
    lens, probe = reading(target, ranks=(1, 10), pairs=24, every=6)
    assert lens.curve[0].facts == 1
    accuracy = int(probe.note.partition("tells ")[2].partition("%")[0])
    assert accuracy >= 75
    assert probe.share > probe.alarms
