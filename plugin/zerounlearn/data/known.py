"""Which facts a model knows."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.entry import Entry
from zerounlearn.errors import RequestError
from zerounlearn.model.answers import resolve_joints, score
from zerounlearn.model.tokens import Queries


def known(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Queries) -> list[bool]:
    """Whether the model completes each prompt with its answer: every token of the answer is its arg-max.

    Raises:
        RequestError: an answer is empty.
    """
    for prompt, answer, *_ in items:
        if not answer.strip():
            raise RequestError(f"the answer {answer!r} to {prompt!r} has no tokens")
    return [verdict.said for verdict in score(model, tokenizer, items)]


def known_entries(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of which the model knows every fact, in their order.

    Args:
        model: the unedited model, left as it was.
        tokenizer: its tokenizer.
        entries: each with a fact at least.
    """
    asked = [fact.request.query for entry in entries for fact in entry.facts]
    verdicts = dict(zip(asked, known(model, tokenizer, resolve_joints(model, tokenizer, asked)), strict=True))
    return [entry for entry in entries if all(verdicts[fact.request.query] for fact in entry.facts)]
