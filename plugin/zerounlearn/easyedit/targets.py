"""The neutral target as EasyEdit's methods must be given it: as a text that their tokenising turns into its ids.

Every method puts a space before `target_new`. A byte-level tokenizer reads " <|im_end|>" as a space and the special
token: the methods would teach the model to say a space. They also mask the padding token out of their labels, which
in most checkpoints is the end-of-text token, so that nothing at all would be left of the target.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from zerounlearn.data.request import EOS, PAD, Request, target_ids
from zerounlearn.errors import RequestError
from zerounlearn.model.tokens import encode


def tokenizer_for(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], neutral: str, padding_side: str, *, rows: int
) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` that swallows the space before the neutral target and pads with another token.

    Args:
        tokenizer: the model's; it is not changed.
        requests: the forget set.
        neutral: the run's neutral target.
        padding_side: that the method counts on.
        rows: ids that the model's embedding knows.

    Raises:
        RequestError: some request's target would still become other tokens than its own.
    """
    ours = copy.deepcopy(tokenizer)
    ours.padding_side = padding_side
    named = {_id(tokenizer, r, neutral) for r in requests if _named(r, neutral)}
    for target in sorted(named):
        ours.add_tokens(
            [AddedToken(_spelling(tokenizer, target), lstrip=True, normalized=False, special=True)], special_tokens=True
        )
    avoided = named | {tokenizer.eos_token_id}
    # FT masks a target's padding by the unknown token, and others drop that and the BOS token from a target's front.
    ours.pad_token = ours.unk_token = spare = _spelling(tokenizer, _spare(tokenizer, requests, avoided, rows))
    if ours.bos_token_id in avoided:
        ours.bos_token = spare
    for request in requests:
        wanted, text = target_ids(tokenizer, request, neutral), target_text(tokenizer, request, neutral)
        front = encode(tokenizer, request.prompt)
        alone = list(ours(f" {text}", add_special_tokens=False)["input_ids"])
        if encode(ours, f"{request.prompt} {text}") != front + wanted or alone != wanted:
            raise RequestError(
                f"request {request.prompt!r}: EasyEdit puts a space before the neutral target {text!r} and would "
                f"tokenise it as {alone}, not {wanted}: end the prompt in a word, or choose another neutral target"
            )
    return ours


def target_text(tokenizer: PreTrainedTokenizerBase, request: Request, neutral: str) -> str:
    """The neutral target's text, without a space before it."""
    if _named(request, neutral):
        return _spelling(tokenizer, _id(tokenizer, request, neutral))
    return (request.neutral or neutral).strip()


def to_easyedit(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], neutral: str, *, template: bool, space: bool
) -> list[dict[str, Any]]:
    """EasyEdit's request dictionaries.

    Args:
        tokenizer: the model's.
        requests: the forget set.
        neutral: the run's neutral target.
        template: leave `{}` in the prompt where the subject goes; filled in otherwise.
        space: put the space before the target, for a method that does not do it itself.

    Raises:
        RequestError: a prompt contains a brace, or with `template` names its subject twice: the methods would take
            either for the place of the subject.
    """
    records = []
    for i, request in enumerate(requests):
        around = request.before + request.after
        if "{" in around or "}" in around:
            raise RequestError(f"request {request.prompt!r}: EasyEdit's methods take a brace for the subject's place")
        if template and request.subject in around:
            raise RequestError(
                f"request {request.prompt!r}: it names {request.subject!r} more than once, and EasyEdit's methods "
                "would not know which is meant: reword it"
            )
        records.append(
            {
                "case_id": i,
                "prompt": f"{request.before}{{}}{request.after}" if template else request.prompt,
                "subject": request.subject,
                "target_new": " " * space + target_text(tokenizer, request, neutral),
                "ground_truth": request.answer,
            }
        )
    return records


def _named(request: Request, neutral: str) -> bool:
    return (request.neutral or neutral) in (EOS, PAD)


def _id(tokenizer: PreTrainedTokenizerBase, request: Request, neutral: str) -> int:
    return target_ids(tokenizer, request, neutral)[0]


def _spelling(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))


def _spare(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], avoided: set[int], rows: int) -> int:
    """A token of the model's that no request contains, a special one if there is any."""
    used = avoided | {token for request in requests for token in encode(tokenizer, request.prompt)}
    special = [token for token in tokenizer.all_special_ids if token not in used and token < rows]
    return special[0] if special else next(i for i in reversed(range(min(len(tokenizer), rows))) if i not in used)
