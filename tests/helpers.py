"""Small random models and the layouts over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
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
EAGER = ("gemma2", "gptj", "bloom", "mpt", "mamba")
"""Gemma 2 caps its attention scores, which PyTorch's fused attention cannot; the others know no other."""
GPT2 = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
}


def hparams_for(layers: list[int], **changes: object) -> ZeroUnlearn:
    """Few steps, no corpus file, everything else as published."""
    templates = families["llama"].to_dict()  # spelled out, for the reference reads them
    few = {"model_name": "tiny", "layers": layers, "reproduce": "exact", "v_num_grad_steps": 8}
    return ZeroUnlearn(**(templates | few | changes))


def tiny(kind: str, vocabulary: int, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random decoder of four layers, far from the near-zero initialisation where everything is linear."""
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8,
    }  # fmt: skip
    plain = {name: value for name, value in shape.items() if name != "head_dim"}
    alone = {name: value for name, value in plain.items() if name != "num_key_value_heads"}
    old = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
    capped = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    own = {
        "mistral": shape | {"sliding_window": 6},
        "qwen2": plain,
        "gemma2": shape | capped,
        "gemma3_text": shape | capped | {"sliding_window": 6},
        "granite": plain | {"logits_scaling": 4.0, "residual_multiplier": 0.3},
        "cohere": plain | {"logit_scale": 0.25},
        "phi": plain,
        "phi3": plain | {"pad_token_id": 0},
        "gpt2": old,
        "gptj": old | {"rotary_dim": 4},
        "gpt_neox": alone,
        "olmo": plain,
        "olmo2": plain,
        "olmo3": plain | {"sliding_window": 6},
        "falcon": alone | {"ffn_hidden_size": 48, "alibi": False},
        "starcoder2": plain | {"sliding_window": 6},
        "glm": shape | {"pad_token_id": 0},
        "glm4": shape | {"pad_token_id": 0},
        "mixtral": shape | experts,
        "qwen3_moe": shape | experts,
        "opt": alone | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "bloom": {"vocab_size": vocabulary, "hidden_size": 32, "n_layer": 4, "n_head": 4},
        "mpt": {"vocab_size": vocabulary, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
        "mamba": {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4},
    }
    config = CONFIG_MAPPING[kind](**own.get(kind, shape))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = "eager" if kind in EAGER else attention
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            parameter.data.mul_(8.0)
    return model.to(dtype).eval()


def memorised(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], steps: int = 200, config: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """A small decoder, a llama unless said, that has been trained until it says each text by heart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = config or LlamaConfig(
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
