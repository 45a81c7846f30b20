"""Significance: the tests are the textbook's, corrected, and silent where they would mean nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tests.report.made_cells import cell
from zerounlearn.report.frame import Frames
from zerounlearn.report.significance import compare, corrected
from zerounlearn.report.summary import tables
from zerounlearn.report.table import Table


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


A = by_seed([0.30, 0.42, 0.35, 0.50, 0.28, 0.44])
B = by_seed([0.20, 0.31, 0.36, 0.30, 0.22, 0.25])


def test_the_paired_t_is_the_textbooks() -> None:
    d = np.array([A[s] - B[s] for s in A])
    t = d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
    found = compare("eff", "a", "b", A, B)
    assert found.test == "paired t"
    assert found.p_t == pytest.approx(2 * stats.t.sf(abs(t), len(d) - 1), rel=1e-9)
    assert found.difference == pytest.approx(d.mean())


def test_wilcoxon_is_the_share_of_all_sign_patterns_at_least_as_far_out() -> None:
    d = np.array([A[s] - B[s] for s in A])
    ranks = stats.rankdata(np.abs(d))
    sums = [ranks @ np.array(signs) for signs in itertools.product([-1, 1], repeat=len(d))]
    own = abs(ranks @ np.sign(d))
    assert compare("eff", "a", "b", A, B).p_wilcoxon == pytest.approx(np.mean([abs(s) >= own - 1e-9 for s in sums]))


def test_pairs_are_matched_by_seed_not_by_order() -> None:
    shuffled = {s: A[s] for s in (3, 0, 5, 1, 4, 2)}
    # As text, where two NaN are alike.
    assert str(compare("eff", "a", "b", shuffled, B | {99: 1.0})) == str(compare("eff", "a", "b", A, B))
    holed = compare("eff", "a", "b", A, {s: v for s, v in B.items() if s != 2})
    assert str(holed) == str(compare("eff", "a", "b", {s: v for s, v in A.items() if s != 2}, B))
    assert holed.pairs == 5


def test_holm_by_hand() -> None:
    family = [compare("eff", str(i), "b", {s: B[s] + d[s] for s in B}, B) for i, d in enumerate(DIFFERENCES)]
    raw = [c.p_t for c in family]
    order = np.argsort(raw)
    expected, running = [0.0] * len(raw), 0.0
    for k, i in enumerate(order):
        running = max(running, min(1.0, (len(raw) - k) * raw[i]))
        expected[i] = running
    assert [c.p_holm for c in corrected(family)] == pytest.approx(expected)


DIFFERENCES = [
    by_seed([0.1, 0.11, 0.09, 0.1, 0.12, 0.1]),
    by_seed([0.1, 0.0, 0.2, 0.1, -0.1, 0.3]),
    by_seed([0.02, 0.01, 0.03, 0.02, 0.04, 0.01]),
]


def test_equal_differences_fall_back_on_wilcoxon_and_are_no_certainty() -> None:
    found = compare("eff", "a", "b", by_seed([0.3, 0.4, 0.5]), by_seed([0.2, 0.3, 0.4]))
    assert (found.test, found.p_wilcoxon) == ("Wilcoxon", 0.25)
    assert math.isnan(found.p_t)
    (only,) = corrected([found])
    assert only.p_holm == 0.25 and not only.mark


def test_no_difference_has_p_one() -> None:
    (found,) = corrected([compare("eff", "a", "b", A, {s: v + 1e-17 for s, v in A.items()})])
    assert (found.p_holm, found.mark) == (1.0, "")


@pytest.mark.parametrize(
    ("values", "reason"),
    [(by_seed([0.1, 0.9]), "2 paired seeds"), ({}, "0 paired seeds"), (by_seed([1.0, math.inf, 2.0]), "not finite")],
)
def test_there_is_no_test_where_it_would_mean_nothing(values: dict[int, float], reason: str) -> None:
    (found,) = corrected([compare("ppl", "a", "b", values, by_seed([0.5, 0.4, 0.3]))])
    assert reason in found.why_not
    assert not found.test and not found.mark and math.isnan(found.p_holm)


def studied(shift: dict[str, float], seeds: int = 8, reference: str | None = None) -> Table:
    rng = np.random.default_rng(3)
    cells = [
        cell(method, seed, after={"eff": 0.3 + by + 0.02 * float(rng.standard_normal())})
        for method, by in shift.items()
        for seed in range(seeds)
    ]
    for made in cells:
        made["after"] = {"eff": made["after"]["eff"]}
    return tables(Frames.of(cells), reference)[0]


def test_a_real_difference_from_the_best_is_marked_and_the_best_is_not() -> None:
    table = studied({"best": 0.0, "far": 0.3, "near": 0.004})
    marks = {row.label: row.entries[0].mark for row in table.rows if row.entries[0]}
    assert marks == {"best": "", "far": "‡", "near": ""}
    assert {c.reference for c in table.comparisons} == {"best"}
    assert any("corrected by Holm for the 2 tests" in note for note in table.notes)


def test_a_named_reference_is_what_the_others_are_tested_against() -> None:
    table = studied({"best": 0.0, "far": 0.3, "named": 0.1}, reference="named")
    marks = {row.label: row.entries[0].mark for row in table.rows if row.entries[0]}
    assert marks == {"best": "‡", "far": "‡", "named": ""}
    assert any("differs from named" in note for note in table.notes)


def test_few_seeds_are_said_to_be_few() -> None:
    assert any("3 seeds these tests have little power" in note for note in studied({"a": 0, "b": 0.3}, seeds=3).notes)
    assert not any("little power" in note for note in studied({"a": 0, "b": 0.3}, seeds=8).notes)


@pytest.mark.slow
def test_under_the_null_a_table_has_false_marks_as_rarely_as_promised() -> None:
    """And without the correction more often than not: the test could see a missing one."""
    rng = np.random.default_rng(0)
    tables_with_mark, uncorrected = 0, 0
    for _ in range(40):
        reference = by_seed(list(rng.standard_normal(6)))
        family = [compare("x", str(i), "r", by_seed(list(rng.standard_normal(6))), reference) for i in range(14)]
        tables_with_mark += any(c.mark for c in corrected(family))
        uncorrected += any(c.p_t < 0.05 for c in family)
    assert tables_with_mark <= 6  # 40 tables at 5 %: more than 6 has a chance of 0.3 %
    assert uncorrected > 12
