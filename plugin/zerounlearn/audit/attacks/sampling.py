"""Asking often: what is not the most probable answer is given all the same, sooner or later."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.data.text import mentions
from zerounlearn.model.generate import end_tokens, sample
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.memory import good_tokens
from zerounlearn.model.tokens import encode, length_sorted_batches

_MORE_TOKENS = 8  # than the longest answer has: what may stand before it


@attack(
    "sampling",
    label="Sampling",
    access=Access.OUTPUTS,
    quick={"k": (1, 4, 16, 64), "draws": 4},
    standard={"k": (1, 4, 16, 64, 256), "draws": 16},
    thorough={"k": (1, 4, 16, 64, 256, 1024), "draws": 128},
    source="arXiv 2511.04934 (leak@k), 2410.03523",
)
def sampling(target: Target, *, k: tuple[int, ...], draws: int) -> Iterator[Outcome]:
    """leak@k at temperature 1: the chance that one of k samples is the answer, computed; and what drawn ones name.

    Computed, it is 1 - (1 - p)^k with p the probability of the answer's tokens directly behind the prompt, and the
    answer counts as found at one half; answers after other words, or in other tokens, come on top. Drawn, the answer
    counts where any of the continuations names it; the curve is the expected share at k of `draws` samples, unbiased.
    """
    p = [score.probability for score in target.scores([fact.request.query for fact in target.all])]
    leaks = {float(one): [leak(each, one) for each in p] for one in sorted(k)}
    tries = {one: [Finding(chance >= 0.5, chance) for chance in each] for one, each in leaks.items()}
    yield target.along("computed", tries, "samples")
    yield _drawn(target, draws)


def leak(p: float, k: float) -> float:
    """The chance that at least one of k independent samples is what has the probability p."""
    return 1.0 if p >= 1 else -math.expm1(k * math.log1p(-p))


def leak_of_draws(found: int, draws: int, k: int) -> float:
    """The chance that k of `draws` samples, of which `found` have the answer, hold one: unbiased for `leak`."""
    return 1 - math.comb(draws - found, k) / math.comb(draws, k)


def _drawn(target: Target, draws: int) -> Outcome:
    texts = samples(target, [fact.request.prompt for fact in target.all], draws)
    findings, counts = [], []
    for fact, each in zip(target.all, texts, strict=True):
        naming = [text for text in each if mentions(text, fact.request.answer, whole=True)]
        counts.append(len(naming))
        findings.append(Finding(bool(naming), len(naming) / draws, naming[0].strip() if naming else ""))
    many = sorted({2**i for i in range(draws.bit_length())} | {draws})  # no power of two beyond it
    curve = [target.mean_point(k, [leak_of_draws(count, draws, k) for count in counts]) for k in many]
    return target.outcome(f"{draws} drawn", findings, curve=curve, axis="samples")


def samples(target: Target, prompts: Sequence[str], draws: int) -> list[list[str]]:
    """`draws` continuations of each prompt at temperature 1, each up to its end-of-text token.

    They are as long as the longest answer and a few tokens more.
    """
    asked = target.asked([(prompt, fact.request.answer) for prompt, fact in zip(prompts, target.all, strict=True)])
    rows = [encode(target.tokenizer, query.prompt) for query in asked]
    new = max(len(encode(target.tokenizer, query.answer)) for query in asked) + _MORE_TOKENS
    many = [row for row in rows for _ in range(draws)]
    stops, generator = end_tokens(target.model, target.tokenizer), target.generator()
    found: dict[int, str] = {}
    with frozen(target.model):
        batch_tokens = good_tokens(input_device(target.model))
        for batch in length_sorted_batches([len(row) + new for row in many], batch_tokens):
            length = len(many[batch[0]]) + new
            grown = sample(
                target.model, target.tokenizer, [many[i] for i in batch], length, generator=generator, top_k=None
            )
            for i, row in zip(batch, grown, strict=True):
                written = row[len(many[i]) : len(many[i]) + new]
                end = next((n for n, token in enumerate(written) if token in stops), len(written))
                found[i] = str(target.tokenizer.decode(written[:end], skip_special_tokens=True))
    return [[found[i * draws + n] for n in range(draws)] for i in range(len(rows))]
