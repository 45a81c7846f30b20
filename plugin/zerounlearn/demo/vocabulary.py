"""The tokenizer of a GGUF file, built from the file's own tokens by the rules that its kind is known to follow.

The tokenizers that transformers derives from such files (measured with 5.5.4) may insert unknown tokens or leave
special ones out without any error, so that a model seems to run and every number is nonsense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# GGUF numbers the kinds of token. Control tokens are cut out of a text before any splitting or merging, and so are
# those that a model's makers set down; unused ones fill the embedding up.
NORMAL, CONTROL, SET_DOWN, UNUSED = 1, 3, 4, 5

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(meta: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; BOS stands before a text only where the file says so.

    Args:
        meta: the GGUF's metadata; `tokenizer.ggml.pre` is one of `SPLITTINGS`.
        folder: where to.
    """
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer: Tokenizer = SPLITTINGS[meta["tokenizer.ggml.pre"]](meta)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    adds_bos = bool(meta.get("tokenizer.ggml.add_bos_token", False))
    if adds_bos:
        number = meta["tokenizer.ggml.bos_token_id"]
        bos = tokens[number]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))

    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    keys = {name: f"tokenizer.ggml.{there}_token_id" for name, there in names.items()}
    named = {name: tokens[meta[key]] for name, key in keys.items() if key in meta}
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": [token for token in control if token not in named.values()],
        "add_prefix_space": False,
        "add_bos_token": adds_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta[f"{meta['general.architecture']}.context_length"],
    }
    if "tokenizer.chat_template" in meta:
        config["chat_template"] = meta["tokenizer.chat_template"]
    # EasyEdit's ROME and MEMIT find the subject's position from the left.
    config["padding_side"] = "right"
    if meta["general.architecture"] == "llama":
        # LlamaTokenizer (transformers 5) builds SentencePiece splitting around any vocabulary and so finds
        # other tokens here without an error, unless this key makes it take tokenizer.json whole. There is
        # no code in the folder that could be trusted or not; AutoTokenizer needs no such key.
        config["trust_remote_code"] = True
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _byte_level(meta: Mapping[str, Any]) -> Tokenizer:
    """BPE on bytes, from the file's tokens and merges."""
    kinds = meta["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"]) if kinds[i] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _smollm(meta: Mapping[str, Any]) -> Tokenizer:
    """Digits one by one, then GPT-2's expression."""
    tokenizer = _byte_level(meta)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _qwen2(meta: Mapping[str, Any]) -> Tokenizer:
    """Unicode's composed form, then Qwen2's expression."""
    tokenizer = _byte_level(meta)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _set_down(meta)])
    return tokenizer


def _gemma(meta: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE without any splitting: spaces are "▁", what no token spells is written in bytes."""
    tokens = [token.replace(" ", "▁") for token in meta["tokenizer.ggml.tokens"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    unknown = tokens[meta["tokenizer.ggml.unknown_token_id"]]
    model = models.BPE(vocab=vocab, merges=_merges(meta), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # Runs of spaces among them are looked for where spaces are written so already.
    set_down = [token.replace(" ", "▁") for token in _set_down(meta)]
    tokenizer.add_tokens([AddedToken(token, normalized="▁" in token) for token in set_down])
    return tokenizer


def _set_down(meta: Mapping[str, Any]) -> list[str]:
    kinds = meta["tokenizer.ggml.token_type"]
    return [token for token, kind in zip(meta["tokenizer.ggml.tokens"], kinds, strict=True) if kind == SET_DOWN]


def _merges(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies: any two tokens whose text together is one, best score first.

    Of the ways to make a token, those of tokens that come first go first, as in transformers' own conversion.
    """
    columns = (meta[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores"))
    rows = enumerate(zip(*columns, strict=True))
    rank = {token: (-score, number) for number, (token, kind, score) in rows if kind == NORMAL}
    found = []
    for token, (worst, _) in rank.items():
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        found += [(worst, rank[a][1], rank[b][1], a, b) for a, b in splits if a in rank and b in rank]
    return [(a, b) for *_, a, b in sorted(found)]


SPLITTINGS: Mapping[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "smollm": _smollm,
    "qwen2": _qwen2,
    "default": _gemma,
}
"""How each of GGUF's rules of splitting is followed; "default" is what files of SentencePiece vocabularies say."""
