"""What an attack gives: tries of rising strength as one outcome."""

from __future__ import annotations

from tests.audit.conftest import Forgetful
from zerounlearn.audit.target import Finding


def test_of_tries_of_rising_strength_the_first_that_found_it_counts(forgetful: Forgetful) -> None:
    target = forgetful.target()
    count = len(target.all)
    weak = [Finding(i == 0, 0.1) for i in range(count)]
    strong = [Finding(i < 2, 0.9, "layer 3") for i in range(count)]
    outcome = target.along("x", {0.5: weak, 2.0: strong}, "scale", note="n")
    assert [(one.found, one.score) for one in outcome.facts] == [(True, 0.1), (True, 0.9), (False, 0.9), (False, 0.9)]
    assert [one.how for one in outcome.facts[:2]] == ["scale 0.5", "scale 2, layer 3"]
    assert [(point.x, point.facts) for point in outcome.curve] == [(0.5, 0.25), (2.0, 0.5)]
    assert (outcome.axis, outcome.note) == ("scale", "n")
    assert outcome.share == max(point.facts for point in outcome.curve)
