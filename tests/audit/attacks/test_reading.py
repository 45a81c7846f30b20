"""Reading inside: states, the lens and the probe are those of the model, and tell what is known from what is not."""

from __future__ import annotations

import copy
import re

import torch

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks.reading import _probe, reading
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.states import Asked
from zerounlearn.audit.target import Target
from zerounlearn.model.tokens import encode

RANKS = (1, 3, 100)


def test_states_are_those_at_the_last_token_of_each_prompt(forgetful: Forgetful) -> None:
    target = forgetful.target()
    queries = [fact.request.query for fact in target.all]
    asked = Asked.of(target, queries)
    states = asked.lasts(asked.tape())
    model = copy.deepcopy(forgetful.model)  # transformers leaves hooks of its own where it is asked for hidden states
    for i, query in enumerate(queries):
        ids = torch.tensor([encode(target.tokenizer, query.prompt)])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[0, i], hidden[1][0, -1], rtol=1e-4, atol=1e-5)


def test_the_lens_finds_at_one_what_the_model_says_and_never_less_at_more(forgetful: Forgetful) -> None:
    with Pair.of(forgetful.model, forgetful.edit).as_base():
        [lens] = reading(forgetful.target(), ranks=RANKS, pairs=10, every=1)
    assert lens.curve[0].facts == 1  # the last layer is the model itself
    shares = [point.controls for point in lens.curve]
    assert shares == sorted(shares)
    assert all(one.how.startswith("first 1, layer ") for one in lens.facts)
    [edited] = reading(forgetful.target(), ranks=RANKS, pairs=10, every=1)
    assert edited.curve[0].facts < 1


def pairs(target: Target, count: int) -> Target:
    """With others and their strange prompts, as many as asked for."""
    subjects = [fact.request.subject for each in target.controls for fact in each][:count]
    others = tuple(target.others[0]._replace(prompt=f"The capital of {name} is") for name in subjects)
    strange = tuple(f"The capital of {name[::-1]} is" for name in subjects)
    return Target(target.model, target.tokenizer, target.facts, target.controls, others, target.texts, strange=strange)


def test_the_probe_needs_pairs_and_names_its_layer(forgetful: Forgetful) -> None:
    target = pairs(forgetful.target(), 12)
    lens, probe = reading(target, ranks=RANKS, pairs=12, every=1)
    assert (lens.variant, probe.variant) == ("logit lens", "linear probe")
    assert probe.note.startswith("layer ")
    assert [lens, probe] == list(reading(target, ranks=RANKS, pairs=12, every=1))
    assert len(list(reading(target, ranks=RANKS, pairs=9, every=1))) == 1


def test_a_probe_tells_what_states_hold_and_nothing_where_they_hold_nothing(forgetful: Forgetful) -> None:
    target = forgetful.target()
    generator = torch.Generator().manual_seed(0)
    count = len(target.all)
    others, states = torch.randn(2, 60, 16, generator=generator), torch.randn(2, count, 16, generator=generator)
    others[1, :30, 3] += 8  # only the second layer knows, by its fourth number
    states[1, : len(target.facts), 3] += 8
    told = _probe(target, others, states, 1)
    assert told.share == 1 and told.alarms <= 0.2
    assert re.fullmatch(r"layer 1: it tells (9\d|100)% of other subjects from made-up ones", told.note)
    nothing = _probe(target, others[:1], states[:1], 1)
    assert nothing.share < 1
