"""Which facts a run forgets: the same for a seed, nested in n, never one that is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import Fact
from zerounlearn.data.protocol import split
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError


def fact(i: int) -> Fact:
    return Fact(Request.of("The number after {} is", f"number {i}", str(i + 1)))


ENTRIES = [Entry((fact(i),)) for i in range(101)]


@given(st.integers(1, 51), st.integers(1, 51), st.integers(0, 2**31))
def test_the_draw_is_nested_and_comes_from_the_second_half(n: int, m: int, seed: int) -> None:
    states = torch.get_rng_state()
    (small, keep), (large, keep_too) = split(ENTRIES, min(n, m), seed), split(ENTRIES, max(n, m), seed)
    assert large[: len(small)] == small
    assert keep == keep_too == ENTRIES[:50]
    assert len({e.fact.request.prompt for e in large}) == max(n, m)
    assert all(e in ENTRIES[50:] for e in large)
    assert torch.equal(torch.get_rng_state(), states)


def test_seeds_draw_differently_and_repeat_themselves() -> None:
    draws = [tuple(e.fact.request.subject for e in split(ENTRIES, 10, seed)[0]) for seed in (0, 1, 2, 0)]
    assert len(set(draws)) == 3
    assert draws[0] == draws[3]
    assert len({subject for draw in draws for subject in draw}) > 20


def test_what_is_forgotten_is_not_kept() -> None:
    def case(number: int, *facts: int) -> Entry:
        return Entry(tuple(map(fact, facts)), case_id=number)

    cases = [case(0, 1, 2), case(1, 3), case(2, 2, 4), case(3, 5)]
    forget, keep = split(cases, 2, seed=0)
    assert {c.case_id for c in forget} == {2, 3}
    assert [c.case_id for c in keep] == [1]


@pytest.mark.parametrize("n", [0, -1, 52])
def test_a_size_out_of_range_is_named(n: int) -> None:
    with pytest.raises(ConfigError, match=f"n={n}: expected 1 to 51, the forget half of 101 entries"):
        split(ENTRIES, n, seed=0)
