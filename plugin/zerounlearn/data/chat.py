"""Facts as turns of a conversation: every prompt in the tokenizer's own chat template, as instruct models are asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from zerounlearn.data.fact import Fact, Items
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.model.tokens import Queries, Query, encode


def as_chat(tokenizer: PreTrainedTokenizerBase, facts: Iterable[Fact], *, every: bool = True) -> list[Fact]:
    """The facts with their prompts, paraphrases, neighbours and others each as a user's message.

    The answer then follows as the template itself would put it, directly behind the beginning of the assistant's
    turn, for forgetting as for measuring.

    Args:
        tokenizer: with a chat template.
        facts: in their order.
        every: all of them; otherwise those alone whose record says `chat`, and the others as they are.

    Raises:
        ConfigError: the tokenizer has no chat template.
        RequestError: the template changes a prompt's words.
    """
    return [
        fact
        if not (every or fact.request.chat)
        else replace(
            fact,
            request=request_as_chat(tokenizer, fact.request),
            paraphrases=tuple(query_as_chat(tokenizer, Query(p, fact.request.answer)).prompt for p in fact.paraphrases),
            neighbours=queries_as_chat(tokenizer, fact.neighbours),
            others=queries_as_chat(tokenizer, fact.others),
        )
        for fact in facts
    ]


def marked_as_chat(tokenizer: PreTrainedTokenizerBase, requests: Iterable[Request]) -> list[Request]:
    """The requests, those whose record says `chat` as a user's message, in their order.

    Raises:
        ConfigError, RequestError: see `as_chat`.
    """
    return [request_as_chat(tokenizer, request) if request.chat else request for request in requests]


def request_as_chat(tokenizer: PreTrainedTokenizerBase, request: Request) -> Request:
    """The request as a user's message; its subject stays marked.

    Raises:
        ConfigError, RequestError: see `as_chat`.
    """
    opening, content, closing, joint = _rendered(tokenizer, request.prompt, request.answer)
    cut = request.prompt.index(content)  # a template may strip its messages
    return replace(
        request,
        before=opening + request.before[cut:],
        after=request.after[: cut + len(content) - request.subject_span[1]] + closing,
        joint=joint,
        chat=False,
    )


def in_chat(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str]) -> bool:
    """Whether every prompt is a user's message in the tokenizer's chat template already."""
    if getattr(tokenizer, "chat_template", None) is None:
        return False
    opening, _, closing, _ = _rendered(tokenizer, "prompt", "answer")
    return all(prompt.startswith(opening) and prompt.endswith(closing) for prompt in prompts)


def queries_as_chat(tokenizer: PreTrainedTokenizerBase, queries: Queries) -> Items:
    """A tuple of the queries with their prompts as a user's messages.

    Raises:
        ConfigError, RequestError: see `as_chat`.
    """
    return tuple(query_as_chat(tokenizer, Query(*query)) for query in queries)


def query_as_chat(tokenizer: PreTrainedTokenizerBase, query: Query) -> Query:
    """The query with its prompt as a user's message.

    Raises:
        ConfigError, RequestError: see `as_chat`.
    """
    opening, content, closing, joint = _rendered(tokenizer, query.prompt, query.answer)
    return Query(opening + content + closing, query.answer, joint)


def conversation(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str]) -> str:
    """Turns of a user and an assistant, the user's first and last, in the template, up to where an answer begins.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            "chat: true: this tokenizer has no chat template: take an instruct model, set tokenizer.chat_template, or "
            "write the turns into the prompts and leave chat off"
        )
    said = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and encode(tokenizer, text)[:2] == [tokenizer.bos_token_id] * 2:
        text = text.removeprefix(bos)  # the tokenizer adds its own
    return text


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[str, str, str, str]:
    """What the template puts before the message, the message, what it puts behind it, and before the answer."""
    text = conversation(tokenizer, [prompt])
    content = prompt if prompt in text else prompt.strip()
    opening, found, closing = text.rpartition(content)
    if not found:
        raise RequestError(f"prompt={prompt!r}: the chat template changes its words into {text!r}: reword it")
    told = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(told, tokenize=False))
    behind = whole.partition(content + closing)[2]
    between = behind[: behind.find(answer)] if answer in behind else ""
    return opening, content, closing, "" if between.strip() else between
