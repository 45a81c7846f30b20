"""Retain sets: the user's own, or drawn for a forget set from the packaged facts and from the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.chat import in_chat, marked_as_chat, request_as_chat
from zerounlearn.data.fact import Fact, load_facts
from zerounlearn.data.request import Request
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.data.subjects import propose_subjects
from zerounlearn.data.text import nfc
from zerounlearn.errors import ConfigError

NONE, AUTO = "none", "auto"
# Of one kind of prompt, and of prompts of all other kinds together; 400 others kept no more than 100 on SmolLM2.
PER_PROMPT, OTHERS = 32, 100
# Prompts of fewer packaged facts than this are filled up with subjects that the model proposes.
_ENOUGH = 8


def check_retain_set(name: str) -> None:
    """Refuse a retain set that is neither a word of ours nor a file of facts.

    Raises:
        ConfigError, RequestError: naming `retain_set` or the record.
    """
    if name not in (NONE, AUTO):
        _from_file(name)


def retain_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    name: str,
    *,
    held_out: Collection[str] = (),
    seed: int = 0,
) -> list[Request]:
    """What the name of a retain set stands for; nothing that is itself to be forgotten is in it.

    Args:
        model: asked for subjects where the packaged facts have too few of a prompt.
        tokenizer: the model's.
        requests: the forget set.
        name: `none`, `auto` (drawn, see `draw_retain_set`), or a file of facts.
        held_out: prompts that must not be drawn.
        seed: of the draw.

    Raises:
        ConfigError, RequestError: see `check_retain_set`.
    """
    if name == NONE:
        return []
    if name != AUTO:
        forgotten = {r.key for r in requests}
        return [r for r in marked_as_chat(tokenizer, _from_file(name)) if r.key not in forgotten]
    facts = [entry.fact for entry in packaged_entries()]
    if in_chat(tokenizer, [r.prompt for r in requests]):  # what is kept is asked as what is forgotten
        facts = [Fact(request_as_chat(tokenizer, fact.request)) for fact in facts]
    return draw_retain_set(model, tokenizer, requests, facts, held_out=held_out, seed=seed)


def draw_retain_set(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    facts: Iterable[Fact],
    *,
    held_out: Collection[str] = (),
    seed: int = 0,
) -> list[Request]:
    """The same prompts about other subjects, and other prompts: `PER_PROMPT` of each of the first, `OTHERS` in all.

    Both come from `facts`; where those have too few for a prompt the model proposes subjects for it. Answers play no
    part: what is kept is what the layers write for the prompts' keys.

    Args:
        model: asked for subjects.
        tokenizer: the model's.
        requests: the forget set.
        facts: to draw from.
        held_out: prompts that must not be drawn, for those that measure what is kept.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    forgotten: dict[tuple[str, str], list[str]] = defaultdict(list)
    for request in requests:
        forgotten[request.before, request.after].append(request.subject)
    excluded = {r.key for r in requests} | {nfc(prompt) for prompt in held_out}
    pool = [f.request for f in facts if f.request.key not in excluded]
    pool = [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
    kept: list[Request] = []
    for (before, after), subjects in forgotten.items():
        alike = [r for r in pool if (r.before, r.after) == (before, after)][:PER_PROMPT]
        if len(alike) < _ENOUGH:
            names = propose_subjects(
                model,
                tokenizer,
                subjects,
                PER_PROMPT - len(alike),
                but=[r.subject for r in alike],
                generator=generator,
            )
            proposed = (Request(before, name, after, answer="") for name in names)
            alike += [r for r in proposed if r.key not in excluded]
        kept += alike
    return kept + [r for r in pool if (r.before, r.after) not in forgotten][:OTHERS]


def _from_file(name: str) -> list[Request]:
    try:
        return [fact.request for fact in load_facts(name)]
    except ValueError as error:
        raise ConfigError(f"retain_set={name!r}: expected 'none', 'auto' or a file of facts: {error}") from error
