"""Decoder-only models of every kind that is served, by name."""

from __future__ import annotations

from typing import Any

WINDOW = {"sliding_window": 3, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
GEMMA2 = {"head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 2, "sliding_window": 3}

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True, "num_hidden_layers": 2},
    "smollm3": {"num_hidden_layers": 2, "no_rope_layers": [1, 0]},
    "smollm3, window": {**WINDOW, "use_sliding_window": True, "no_rope_layers": [0, 1]},
    "qwen2": {"num_hidden_layers": 2},
    "qwen2, window": {**WINDOW, "use_sliding_window": True},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "mistral, window": {"sliding_window": 3, "num_hidden_layers": 2},
    "ministral, window": {**WINDOW, "head_dim": 8},
    "phi3": {"num_hidden_layers": 2},
    "phi3, window": {"sliding_window": 3, "num_hidden_layers": 2},
    "gemma": {"head_dim": 8},
    "gemma2, window": {**GEMMA2, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    "gemma2, uncapped": {**GEMMA2, "final_logit_softcapping": None, "attn_logit_softcapping": None},
    "gemma3_text, window": {**WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text, capped": {**WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 1.5},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granite, tied": {"logits_scaling": 3.0, "tie_word_embeddings": True},
    "cohere": {"logit_scale": 0.3},
    "cohere, untied": {"logit_scale": 0.3, "tie_word_embeddings": False},
    "cohere2, window": {**WINDOW, "logit_scale": 0.3},
    "olmo2": {"num_hidden_layers": 2},
    "olmo3, window": WINDOW,
}
# every feature of the architectures at least once; the default run of the tests takes these
ESSENTIAL = (
    *("llama", "smollm3, window", "qwen2", "phi3", "gemma2, window", "gemma3_text, capped", "granite, tied"),
    "cohere2, window",
)
