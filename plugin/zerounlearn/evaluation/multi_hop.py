"""Questions that take several facts (MQuAKE, Zhong et al. 2023): whether forgetting the facts reaches them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from zerounlearn.data.entry import MultiHop
from zerounlearn.data.fact import QUESTION_WORDING
from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.model.tokens import Query

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked


def hop_queries(cases: Sequence[MultiHop]) -> list[list[Query]]:
    """Of each case every wording of its question with every name of its answer, worded as a question of no chat."""
    before, after = QUESTION_WORDING
    prompts = [[f"{before}{question}{after}" for question in case.questions] for case in cases]
    names = [(case.answer, *case.aliases) for case in cases]
    return [[Query(*pair) for pair in product(*case)] for case in zip(prompts, names, strict=True)]


@metric("multi_hop", label="Multi-hop", goal=Goal.LOWER, unit="%", group=Group.CORE, source="arXiv 2305.14795")
def _multi_hop(asked: Asked) -> float | None:
    """Questions of several hops that are still answered, in one of their wordings, by one of the answer's names."""
    cases = hop_queries(asked.multi_hop)
    if not cases:
        return None
    queries = list(dict.fromkeys(query for case in cases for query in case))
    scores = asked.scores(asked.joined(queries))
    said = {query for query, scored in zip(queries, scores, strict=True) if scored.said}
    return sum(not said.isdisjoint(case) for case in cases) / len(cases)
