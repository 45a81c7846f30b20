"""Small random models and the layouts over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from zerounlearn.data.request import Request
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.model.families import families

FACTS = [
    Request.of("The capital of {} is", "France", "Paris"),
    Request.of("{} was written by", "War and Peace", "Leo Tolstoy"),
    Request.of("People in Rio de Janeiro speak", "Rio de Janeiro", "Portuguese"),
]
PREFIXES = ["The weather today was fine. ", "Because I said so. "]
GPT2 = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
}


def hparams_for(layers: list[int], **changes: object) -> ZeroUnlearn:
    """Few steps, no corpus file, everything else as published."""
    templates = families["llama"].to_dict()  # spelled out, for the reference reads them
    return ZeroUnlearn(**(templates | {"model_name": "tiny", "layers": layers, "v_num_grad_steps": 8} | changes))


def tiny(kind: str, vocabulary: int, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random decoder of four layers, far from the near-zero initialisation where everything is linear."""
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8,
    }  # fmt: skip
    config = {
        "llama": lambda: LlamaConfig(**shape),
        "qwen3": lambda: Qwen3Config(**shape),
        "mistral": lambda: MistralConfig(**shape, sliding_window=6),
        "gemma": lambda: GemmaConfig(**shape),
        "gemma2": lambda: Gemma2Config(**shape),
        "granite": lambda: GraniteConfig(**{k: v for k, v in shape.items() if k != "head_dim"}, logits_scaling=4.0),
        "cohere": lambda: CohereConfig(**{k: v for k, v in shape.items() if k != "head_dim"}, logit_scale=0.25),
        "gemma3_text": lambda: Gemma3TextConfig(**shape),
        "olmo2": lambda: Olmo2Config(**{k: v for k, v in shape.items() if k != "head_dim"}),
        "gpt2": lambda: GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=4, n_head=4, n_positions=64),
    }[kind]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Gemma 2 caps its attention scores, which PyTorch's fused attention cannot.
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "gemma2" else attention)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            parameter.data.mul_(8.0)
    return model.to(dtype).eval()


def memorised(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], steps: int = 200) -> PreTrainedModel:
    """A small decoder that has been trained until it says each text by heart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).train()
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = torch.stack([model(input_ids=row, labels=row).loss for row in rows]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int) -> list[int]:
    """Greedy token ids by one forward pass a token, without a cache."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return ids[start:]
