"""Greedy coordinate gradient: tokens before the prompt that are exchanged until the answer is said, by nanogcg."""

from __future__ import annotations

import copy
import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

from tqdm import tqdm

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.data.fact import Fact
from zerounlearn.errors import AuditError, reason_of
from zerounlearn.model.device import seeded
from zerounlearn.model.hooks import frozen
from zerounlearn.model.tokens import Query

_PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_START = "x x x x x x x x x x"


@attack(
    "gcg",
    label="GCG",
    access=Access.ACTIVATIONS,
    thorough={"steps": 50, "width": 64},
    source="arXiv 2307.15043; nanogcg",
)
def gcg(target: Target, *, steps: int, width: int) -> Iterator[Outcome]:
    """Ten tokens before the prompt, exchanged by their gradients until the answer is said.

    Each fact and its first control; what counts is whether the answer is said behind the tokens that were found.

    Args:
        target: what to attack.
        steps: exchanges; a search ends sooner where the answer is said.
        width: candidates in each.
    """
    nanogcg = _nanogcg()
    fewer = replace(target, controls=tuple(each[:1] for each in target.controls))
    tokenizer = copy.deepcopy(target.tokenizer)  # nanogcg gives it a template where it has none
    if not target.chat:
        tokenizer.chat_template = _PLAIN
    config = nanogcg.GCGConfig(
        num_steps=steps,
        search_width=width,
        optim_str_init=_START,
        early_stop=True,
        use_prefix_cache=False,  # transformers 5 has another kind of cache
        verbosity="ERROR",
    )
    findings = []
    for fact in tqdm(fewer.all, desc="gcg", unit="prompt", disable=None):
        with frozen(target.model), _little_garbage(), seeded(target.model.device, target.seed):
            findings.append(_searched(fewer, fact, nanogcg, tokenizer, config))
    yield fewer.outcome("", findings, note="the first control of each fact alone")


def _searched(target: Target, fact: Fact, nanogcg: ModuleType, tokenizer: object, config: object) -> Finding:
    [query] = target.asked([fact.request.query])
    messages = [{"role": "user", "content": f"{{optim_str}} {fact.request.prompt}"}]
    try:
        result = nanogcg.run(target.model, tokenizer, messages, f"{query.joint or ''}{query.answer}", config)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise AuditError(f"nanogcg does not work on this model: {reason_of(error)}") from error
    prompts = dict.fromkeys([*result.strings, _START])
    tries = [Query(f"{found} {fact.request.prompt}", *fact.request.query[1:]) for found in prompts]
    scores = target.scores(tries)
    return Finding.best(Finding.of(score, one.prompt) for one, score in zip(tries, scores, strict=True))


@contextmanager
def _little_garbage() -> Iterator[None]:
    """What is alive is not looked through: nanogcg collects garbage after each batch, up to a second every time."""
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _nanogcg() -> ModuleType:
    """The package.

    Raises:
        AuditError: it cannot be imported.
    """
    try:
        return importlib.import_module("nanogcg")
    except ImportError as error:
        raise AuditError(
            f"nanogcg cannot be imported ({reason_of(error)}): pip install --no-deps nanogcg==0.3.0, which asks for an "
            "older transformers than it needs"
        ) from None
