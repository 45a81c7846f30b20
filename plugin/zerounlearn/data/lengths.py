"""Whether facts fit into a model's context, told before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from zerounlearn.data.fact import Fact
from zerounlearn.data.text import shown
from zerounlearn.errors import RequestError
from zerounlearn.model.tokens import Query, encode


def check_lengths(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, facts: Iterable[Fact]) -> None:
    """Refuse a prompt that with its answer has more tokens than the model has places for.

    Args:
        config: the model's; nothing is checked where it names no `max_position_embeddings`.
        tokenizer: the model's.
        facts: with all their prompts, as the model is asked (in the chat template, if it is).

    Raises:
        RequestError: naming the fact, the prompt, and both numbers.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not most:
        return
    for fact in facts:
        answer = fact.request.answer
        own = [("prompt", fact.request.query), *(("paraphrases", Query(p, answer)) for p in fact.paraphrases)]
        beside = [(name, Query(*q)) for name in ("neighbours", "others") for q in getattr(fact, name)]
        for field, query in (*own, *beside):
            count = len(encode(tokenizer, query.text))
            if count > most:
                raise RequestError(
                    f"{shown(fact.request.prompt)}: {field}: {shown(query.prompt)} with its answer has {count} tokens, "
                    f"the model has places for {most}: shorten it"
                )
