"""Retain sets that are drawn: like the forget set, without it, and without what is measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny
from zerounlearn.data.chat import request_as_chat
from zerounlearn.data.request import Request
from zerounlearn.data.retain import OTHERS, PER_PROMPT, check_retain_set, draw_retain_set, retain_set
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.errors import ConfigError


def test_drawn_from_the_packaged_facts(smollm2) -> None:
    model, tokenizer = smollm2
    entries = packaged_entries()
    facts = [entry.fact for entry in entries]
    capitals = [entry.fact.request for entry in entries if entry.topic == "capital"]
    requests = capitals[:3]
    template = (requests[0].before, requests[0].after)
    held_out = {r.prompt for r in capitals} - {r.prompt for r in requests}
    held_out = set(sorted(held_out)[:5])
    kept = draw_retain_set(model, tokenizer, requests, facts, held_out=held_out, seed=1)
    prompts = {r.prompt for r in kept}
    assert len(prompts) == len(kept)
    assert not prompts & ({r.prompt for r in requests} | held_out)
    alike = [r for r in kept if (r.before, r.after) == template]
    assert 8 <= len(alike) <= PER_PROMPT
    assert len(kept) - len(alike) == OTHERS
    assert kept == draw_retain_set(model, tokenizer, requests, facts, held_out=held_out, seed=1)
    assert kept != draw_retain_set(model, tokenizer, requests, facts, held_out=held_out, seed=2)


def test_the_model_proposes_subjects_where_no_fact_has_the_prompt(smollm2) -> None:
    """Of a prompt that is not packaged: other countries, and never the one to be forgotten."""
    model, tokenizer = smollm2
    state = torch.get_rng_state()
    requests = [Request.of("The national anthem of {} is", s, "x") for s in ("France", "Germany", "Italy")]
    kept = draw_retain_set(model, tokenizer, requests, [], seed=0)
    subjects = {r.subject for r in kept}
    assert len(subjects) >= 8
    assert len(subjects & {"Spain", "Japan", "England", "China", "Russia", "Sweden", "Poland", "Portugal"}) >= 3
    assert not {s.casefold() for s in subjects} & {"france", "germany", "italy"}
    assert all(r.prompt == f"The national anthem of {r.subject} is" for r in kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_for_a_chat_it_is_of_the_same_turns(smollm2) -> None:
    model, tokenizer = smollm2
    entries = [entry for entry in packaged_entries() if entry.topic == "capital"]
    asked = [request_as_chat(tokenizer, entry.fact.request) for entry in entries]
    kept = retain_set(model, tokenizer, asked[:2], "auto", held_out={r.prompt for r in asked[2:6]})
    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert len(kept) == len({r.prompt for r in kept}) == PER_PROMPT + OTHERS
    assert all(before in r.before and r.after.endswith(after) for r in kept)
    assert sum((r.before, r.after) == (asked[0].before, asked[0].after) for r in kept) == PER_PROMPT
    assert not {r.prompt for r in kept} & {r.prompt for r in asked[:6]}
    plain = retain_set(model, tokenizer, [entries[0].fact.request], "auto")
    assert not any(before in r.before for r in plain)


def test_by_name(smollm2, tmp_path: Path) -> None:
    model, tokenizer = smollm2
    forget = [Request.of("The capital of {} is", "France", "Paris")]
    assert retain_set(model, tokenizer, forget, "none") == []
    file = tmp_path / "kept.jsonl"
    rows = [{"prompt": "The capital of {} is", "subject": s, "answer": "x"} for s in ("France", "Spain")]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    kept = retain_set(model, tokenizer, forget, str(file))
    assert [r.prompt for r in kept] == ["The capital of Spain is"], "what is forgotten is not kept"
    assert len(retain_set(model, tokenizer, forget, "auto")) > OTHERS
    with pytest.raises(ConfigError, match=r"retain_set='nowhere.jsonl': expected 'none', 'auto' or a file"):
        check_retain_set("nowhere.jsonl")


def test_a_file_may_want_the_chat_template(tmp_path: Path, small_tokenizer) -> None:
    tokenizer = copy.deepcopy(small_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    file = tmp_path / "kept.jsonl"
    rows = [{"prompt": "Of {}?", "subject": s, "answer": "x", "chat": True} for s in ("France", "Spain")]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    forget = [Request.of("<user>Of {}?<assistant>", "France", "Paris")]
    (kept,) = retain_set(tiny("llama", len(tokenizer)), tokenizer, forget, str(file))
    assert (kept.prompt, kept.subject, kept.chat) == ("<user>Of Spain?<assistant>", "Spain", False)
