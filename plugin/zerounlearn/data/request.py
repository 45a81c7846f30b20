"""Requests: facts to forget, checked before anything is computed."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from zerounlearn.data.text import is_blank, mentions, nfc, refused_character, shown
from zerounlearn.errors import RequestError
from zerounlearn.model.tokens import Query, continuation

EOS, PAD = "eos", "pad"
PLACE = "{}"
"""What stands for the subject in a prompt that does not name it."""


@dataclass(frozen=True)
class Request:
    """A fact to forget.

    The prompt is the user's, character by character: white space at its ends is part of it.

    Attributes:
        before: the prompt up to the subject.
        subject: the subject as it stands in the prompt.
        after: the rest of the prompt.
        answer: the sensitive answer, without surrounding space.
        neutral: the neutral target: `eos`, `pad`, or a text; None takes the run's.
        joint: what stands between prompt and answer; None finds it, see `zerounlearn.model.tokens`.
        chat: whether prompt and answer are to be rendered through the tokenizer's chat template.
    """

    before: str
    subject: str
    after: str
    answer: str
    neutral: str | None = None
    joint: str | None = None
    chat: bool = False

    @classmethod
    def of(
        cls,
        prompt: str,
        subject: str,
        answer: str,
        neutral: str | None = None,
        *,
        joint: str | None = None,
        chat: bool = False,
        template: bool = False,
        where: str = "request",
    ) -> Request:
        """Check and take apart a request whose prompt is filled in or has `{}` for its subject.

        `{}` stands for the subject in a prompt that does not name it; in one that does, it is text like any other.
        Where a filled-in prompt names its subject more than once, the last mention as a word of its own counts: only
        there has the model read the whole prompt up to the subject. Names are compared by canonical equivalence.

        Args:
            prompt: with its subject, or `{}` in its place.
            subject: white space around it is not part of it.
            answer: the sensitive answer; white space around it is not part of it.
            neutral: see `Request`.
            joint: see `Request`.
            chat: see `Request`.
            template: `{}` stands for the subject even in a prompt that names it elsewhere, as in CounterFact.
            where: what messages begin with.

        Raises:
            RequestError: a field is empty or of the wrong type or holds a character that no output can, the subject
                is not in the prompt, or the answer equals the neutral target.
        """
        for field, value in (("prompt", prompt), ("subject", subject), ("answer (ground_truth)", answer)):
            check_text(value, field, where)
        if neutral is not None:
            check_text(neutral, "neutral", where, expected="'eos', 'pad' or a text that is not empty")
        if joint is not None:
            check_text(joint, "joint", where, blank=True)
        if neutral is not None and nfc(neutral.strip()) == nfc(answer.strip()):
            raise RequestError(
                f"{where}: the sensitive answer {shown(answer)} equals the neutral target: nothing would be forgotten"
            )
        before, subject, after = _parts(prompt, subject.strip(), template, where)
        return cls(before, subject, after, answer.strip(), neutral, joint, chat)

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

    @property
    def key(self) -> str:
        """What two requests that ask the same have in common: the prompt, whatever its Unicode form."""
        return nfc(self.prompt)


def fact_digest(request: Request, key: bytes | None = None) -> str:
    """64 hexadecimal digits over prompt, subject and answer, whatever their Unicode form: HMAC-SHA256 under a key.

    Without a key, who guesses a fact can tell that it is this one.
    """
    said = [nfc(text) for text in (request.prompt, request.subject, request.answer)]
    return hmac.new(key or b"", json.dumps(said).encode(), "sha256").hexdigest()


def check_text(
    value: Any, field: str, where: str, *, blank: bool = False, expected: str = "a text that is not empty"
) -> None:
    """Refuse what is no text, or blank (unless it may be), or holds a character that no output can.

    Raises:
        RequestError: with `where`, field, value and remedy.
    """
    if not isinstance(value, str):
        remedy = ": put it in quotes" if isinstance(value, (int, float)) else ""
        raise RequestError(
            f"{where}: {field}={shown(value)}: expected {expected}, found {type(value).__name__}{remedy}"
        )
    if not blank and is_blank(value):
        raise RequestError(f"{where}: {field}={shown(value)} is empty: expected {expected}")
    if character := refused_character(value):
        raise RequestError(f"{where}: {field}={shown(value)} holds {character}: no report could show it, take it out")


def filled(prompt: str, subject: str, *, field: str, where: str) -> str:
    """A prompt beside a request's own, by the same rule: `{}` stands for the subject unless the prompt names it.

    Raises:
        RequestError: `{}` stands there more than once.
    """
    if PLACE not in prompt or mentions(prompt, subject, whole=True):
        return prompt
    if prompt.count(PLACE) > 1:
        raise RequestError(f"{where}: {field}={shown(prompt)} has more than one {{}}: fill in all but one")
    return prompt.replace(PLACE, subject)


def _parts(prompt: str, subject: str, template: bool, where: str) -> tuple[str, str, str]:
    """The prompt before its subject, the subject as it stands there, and the prompt after it."""
    named = mentions(prompt, subject, whole=True)
    if PLACE in prompt and (template or not named):
        if prompt.count(PLACE) > 1:
            raise RequestError(f"{where}: prompt={shown(prompt)} has more than one {{}}: fill in all but one")
        before, after = prompt.split(PLACE)
        return before, subject, after
    named = named or mentions(prompt, subject, whole=False)
    if not named:
        raise RequestError(
            f"{where}: subject={shown(subject)} does not occur in prompt={shown(prompt)}: write it as it stands "
            "there, or put {} in its place"
        )
    start, end = named[-1]
    return prompt[:start], prompt[start:end], prompt[end:]


def check_requests(requests: Iterable[Request], places: Sequence[str] = ()) -> list[Request]:
    """The requests as a list; refuses an empty one and duplicates.

    Args:
        requests: in their order.
        places: where each was read, for the message.

    Raises:
        RequestError: there is no request, or two ask the same prompt.
    """
    checked = list(requests)
    if not checked:
        raise RequestError("no requests: the forget set is empty")
    seen: dict[str, int] = {}
    for i, request in enumerate(checked):
        first = seen.setdefault(request.key, i)
        if first != i:
            who = f"{places[first]} and {places[i]}" if places else f"requests {first} and {i}"
            raise RequestError(f"{who} are duplicates, both ask {shown(request.prompt)}: drop one")
    return checked


def check_apart(requests: Iterable[Request], retain: Iterable[Request]) -> None:
    """Refuse a prompt that is in the forget set and in the retain set.

    Raises:
        RequestError: naming it.
    """
    both = {r.prompt for r in requests} & {r.prompt for r in retain}
    if both:
        raise RequestError(f"{min(both)!r} is both to be forgotten and to be kept: drop it from one of the sets")


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
    if nfc(neutral.strip()) == nfc(request.answer):
        raise RequestError(
            f"request {shown(request.prompt)}: the sensitive answer {request.answer!r} equals the neutral target"
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
        while isinstance(answer, (list, tuple)) and answer:  # KnowEdit's are lists, some of lists
            answer = answer[0]
        if answer is None or answer in ("<|endoftext|>", tokenizer.eos_token):
            raise RequestError(
                f"{where}: ground_truth={answer!r}: name the sensitive answer with EasyEdit's `ground_truth=` argument"
            )
        neutral = record.get("target_new")
        if neutral is None or not str(neutral).strip() or neutral in ("<|endoftext|>", tokenizer.eos_token):
            neutral = None
        joint = record.get("joint")
        requests.append(Request.of(record["prompt"], record["subject"], answer, neutral, joint=joint, where=where))
    return check_requests(requests)
