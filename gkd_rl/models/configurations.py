"""Configurations of the checkpoints that conf/ names, so that a run can be planned where there is no Hub to ask.

Depth pruning: a model of some of a checkpoint's layers, so that any checkpoint has a student with its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gkd_rl.errors import ModelError


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
KNOWN_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{f"google/t5-{size}-lm-adapt": shape for size, shape in _T5.items()},
    **{f"google/flan-t5-{size}": shape for size, shape in _T5.items()},
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 151_936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 151_936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18944, 28, 28, 152_064, tied=False),
}


def known_config(path: str | None) -> PreTrainedConfig | None:
    """The configuration of a checkpoint of this table; None of any other."""
    shape = dict(KNOWN_CONFIGURATIONS.get(path or "", {}))
    return AutoConfig.for_model(shape.pop("model_type"), **shape) if shape else None


PER_LAYER = ("layer_types", "no_rope_layers")  # fields of a configuration with one entry for each layer
RELATIVE_BIAS = ("relative_attention_bias", "global_relative_attention_bias")
STACKS = {  # the field that tells the kinds apart -> fields with the number of layers of encoder and decoder
    "num_decoder_layers": ("num_layers", "num_decoder_layers"),
    "decoder_layers": ("encoder_layers", "decoder_layers"),
}


def check_layers(config: PreTrainedConfig, keep: Sequence[int], key: str) -> None:
    """Refuse layers that the model does not have; both stacks of an encoder-decoder must have them.

    Raises:
        ModelError: a layer out of range, repeated or out of order, or none at all.
    """
    count = min(getattr(config, name) for name in _counts(config))
    rising = all(one < other for one, other in pairwise(keep))
    if not keep or not rising or keep[0] < 0 or keep[-1] >= count:
        stacks = " in each stack" if config.is_encoder_decoder else ""
        raise ModelError(
            f"{key}={list(keep)}: the model has {count} layers{stacks}, so that {key} takes one or more of "
            f"0 to {count - 1}, each once and in rising order, e.g. {list(range(0, count, 2))}."
        )


def prune(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """Drop all layers but these, in place; the model then saves, loads and caches as one of its new depth.

    The relative position bias that the first layer of a T5 stack holds for all of them moves to the first that is kept.
    """
    config = model.config
    stacks: list[Any] = [model.get_encoder()] if config.is_encoder_decoder else []
    for stack in [*stacks, model.get_decoder()]:
        name = "block" if hasattr(stack, "block") else "layers"
        layers = getattr(stack, name)
        kept = [layers[i] for i in keep]
        _move_relative_bias(layers[0], kept[0])
        for place, layer in enumerate(kept):
            for module in layer.modules():
                if getattr(module, "layer_idx", None) is not None:
                    module.layer_idx = place  # the row of the key-value cache
        setattr(stack, name, nn.ModuleList(kept))
        _shorten(stack.config, keep)
    _shorten(config, keep)
    return model


def _counts(config: PreTrainedConfig) -> tuple[str, ...]:
    """The fields that hold the number of layers."""
    return next((names for one, names in STACKS.items() if hasattr(config, one)), ("num_hidden_layers",))


def _shorten(config: PreTrainedConfig, keep: Sequence[int]) -> None:
    """Write the new depth; a stack's configuration can be the model's own, then this happened already."""
    for name in PER_LAYER:
        values = getattr(config, name, None)
        if values is not None and len(values) > len(keep):
            setattr(config, name, [values[i] for i in keep])
    for name in _counts(config):
        setattr(config, name, len(keep))


def _move_relative_bias(first: nn.Module, kept: nn.Module) -> None:
    """Give the first kept layer the bias that the stack's first layer alone has."""
    source, target = _self_attention(first), _self_attention(kept)
    if source is None or target is None or target.has_relative_attention_bias:
        return
    for name in RELATIVE_BIAS:
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    target.has_relative_attention_bias = True


def _self_attention(layer: nn.Module) -> Any:
    """The first attention of a T5-like layer; None of any other, which has no relative bias."""
    return next((one for one in layer.modules() if hasattr(one, "has_relative_attention_bias")), None)
