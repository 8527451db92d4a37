"""Configurations of the checkpoints that conf/ names, so that a run can be planned where there is no Hub to ask."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


def _t5(d_model: int, d_ff: int, layers: int, heads: int) -> dict[str, Any]:
    """T5 v1.1 and what was trained from it."""
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }


def _qwen2(hidden: int, inner: int, layers: int, heads: int, vocabulary: int, *, tied: bool) -> dict[str, Any]:
    """Qwen2.5, with its two and four key-value heads."""
    return {
        "model_type": "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4 if hidden > 2000 else 2,
        "tie_word_embeddings": tied,
    }


_T5 = {
    "small": _t5(512, 1024, 8, 6),
    "base": _t5(768, 2048, 12, 12),
    "large": _t5(1024, 2816, 24, 16),
    "xl": _t5(2048, 5120, 24, 32),
}
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    **{f"google/t5-{size}-lm-adapt": shape for size, shape in _T5.items()},
    **{f"google/flan-t5-{size}": shape for size, shape in _T5.items()},
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 151_936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 151_936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 152_064, tied=False),
}


def known_config(path: str | None) -> PreTrainedConfig | None:
    """The configuration of a checkpoint of this table; None of any other."""
    shape = dict(KNOWN_SHAPES.get(path or "", {}))
    return AutoConfig.for_model(shape.pop("model_type"), **shape) if shape else None
