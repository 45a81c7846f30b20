"""Requests: facts to forget, checked before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from zerounlearn.errors import RequestError
from zerounlearn.model.tokens import Query, continuation

EOS, PAD = "eos", "pad"


@dataclass(frozen=True)
class Request:
    """A fact to forget.

    Attributes:
        before: the prompt up to the subject.
        subject: the subject as it stands in the prompt.
        after: the rest of the prompt.
        answer: the sensitive answer, without surrounding space.
        neutral: the neutral target: `eos`, `pad`, or a text; None takes the run's.
        joint: what stands between prompt and answer; None for `joint_of`.
    """

    before: str
    subject: str
    after: str
    answer: str
    neutral: str | None = None
    joint: str | None = None

    @classmethod
    def of(
        cls, prompt: str, subject: str, answer: str, neutral: str | None = None, *, where: str = "request"
    ) -> Request:
        """Check and take apart a request whose prompt is filled in or has `{}` for its subject.

        Where a filled-in prompt names its subject more than once, the last mention as a word of its own
        counts: only there has the model read the whole prompt up to the subject.

        Raises:
            RequestError: a field is empty or of the wrong type, the subject is not in the prompt, or the
                answer equals the neutral target.
        """
        for field, value in (("prompt", prompt), ("subject", subject), ("answer (ground_truth)", answer)):
            if not isinstance(value, str):
                raise RequestError(f"{where}: {field}={value!r} must be a text, not {type(value).__name__}")
            if not value.strip():
                raise RequestError(f"{where}: {field}={value!r} is empty")
        subject = subject.strip()
        if neutral is not None and (not isinstance(neutral, str) or not neutral.strip()):
            raise RequestError(f"{where}: neutral={neutral!r}: expected 'eos', 'pad' or a text")
        if neutral is not None and neutral.strip() == answer.strip():
            raise RequestError(
                f"{where}: the sensitive answer {answer!r} equals the neutral target: nothing would be forgotten"
            )
        if "{}" in prompt:
            if prompt.count("{}") > 1:
                raise RequestError(f"{where}: prompt={prompt!r} has more than one {{}}")
            before, after = prompt.split("{}")
        else:
            mentions = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
            if not mentions:
                mentions = list(re.finditer(re.escape(subject), prompt))
            if not mentions:
                raise RequestError(
                    f"{where}: subject={subject!r} does not occur in prompt={prompt!r}: write it as it stands "
                    "there, or put {} in its place"
                )
            before, after = prompt[: mentions[-1].start()], prompt[mentions[-1].end() :]
        return cls(before.lstrip(), subject, after.rstrip(), answer.strip(), neutral)

    @property
    def prompt(self) -> str:
        """The prompt with its subject filled in."""
        return f"{self.before}{self.subject}{self.after}"

    @property
    def query(self) -> Query:
        """The prompt with the sensitive answer."""
        return Query(self.prompt, self.answer, self.joint)

    @property
    def subject_span(self) -> tuple[int, int]:
        """Character offsets of the subject in `prompt`."""
        return len(self.before), len(self.before) + len(self.subject)


def check_requests(requests: Iterable[Request]) -> list[Request]:
    """The requests as a list; refuses an empty one and duplicates.

    Raises:
        RequestError: there is no request, or two ask the same prompt.
    """
    checked = list(requests)
    if not checked:
        raise RequestError("no requests: the forget set is empty")
    seen: dict[str, int] = {}
    for i, request in enumerate(checked):
        if request.prompt in seen:
            raise RequestError(
                f"requests {seen[request.prompt]} and {i} are duplicates, both ask {request.prompt!r}: drop one"
            )
        seen[request.prompt] = i
    return checked


def target_ids(tokenizer: PreTrainedTokenizerBase, request: Request, neutral_target: str) -> list[int]:
    """Token ids of the neutral target; `eos` and `pad` are the tokenizer's own ids, never their spelling.

    Raises:
        RequestError: the tokenizer has no such token, or the target equals the sensitive answer.
    """
    neutral = request.neutral if request.neutral is not None else neutral_target
    named = {EOS: tokenizer.eos_token_id, PAD: tokenizer.pad_token_id}
    if neutral in named:
        if named[neutral] is None:
            raise RequestError(
                f"neutral target {neutral!r}: this tokenizer has no {neutral} token; give a text instead"
            )
        return [int(named[neutral])]
    if neutral.strip() == request.answer:
        raise RequestError(
            f"request {request.prompt!r}: the sensitive answer {request.answer!r} equals the neutral target"
        )
    return continuation(tokenizer, request.prompt, neutral.strip(), request.joint)


def from_easyedit(records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Request]:
    """EasyEdit's request dictionaries: `ground_truth` is the sensitive answer, `target_new` the neutral target.

    An empty or absent `target_new`, or the spelling of any end-of-text token, takes the run's neutral target.

    Raises:
        RequestError: see `Request.of` and `check_requests`.
    """
    requests = []
    for i, record in enumerate(records):
        where = f"request {i}"
        for field in ("prompt", "subject"):
            if field not in record:
                raise RequestError(f"{where}: the field {field!r} is missing; EasyEdit's `{field}=` argument sets it")
        answer: Any = record.get("ground_truth")
        answer = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
        if answer is None or answer in ("<|endoftext|>", tokenizer.eos_token):
            raise RequestError(
                f"{where}: ground_truth={answer!r}: name the sensitive answer with EasyEdit's `ground_truth=` argument"
            )
        neutral = record.get("target_new")
        if neutral is None or not str(neutral).strip() or neutral in ("<|endoftext|>", tokenizer.eos_token):
            neutral = None
        requests.append(Request.of(record["prompt"], record["subject"], answer, neutral, where=where))
    return check_requests(requests)
