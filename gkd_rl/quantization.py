"""A frozen model whose matrices are kept in 8 or 4 bit, through bitsandbytes.

LLM.int8() (Dettmers et al. 2022, outlier threshold 6) or NF4 (Dettmers et al. 2023, blocks of 64). What transformers
leaves alone is left alone here too: embeddings, the output head (whose weight the fused head reads) and matrices that
must keep their precision (T5's `wo`). A model is quantised after it is loaded, whatever it was loaded from (a folder,
the Hub, GGUF, a supervised stage): it passes through CPU memory at full precision, and never through the device's.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gkd_rl.choices import Quantization
from gkd_rl.errors import ModelError

_OUTLIERS = 6.0  # inputs beyond it are multiplied at full precision, as in transformers' BitsAndBytesConfig


def check_quantization(kind: Quantization, key: str) -> None:
    """Refuse a quantisation that this machine cannot do.

    Raises:
        ModelError: bitsandbytes cannot be imported.
    """
    if kind is Quantization.none:
        return
    try:
        import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{key}={kind.value} needs bitsandbytes, which cannot be imported ({error}): "
            f"pip install bitsandbytes, or set {key}=none."
        ) from error


def quantized(model: PreTrainedModel, kind: Quantization, device: torch.device) -> PreTrainedModel:
    """The model itself, on `device`, with every matrix that takes it quantised and nothing that has a gradient.

    Args:
        model: on the CPU, at full precision.
        kind: `none` moves it only.
        device: where its weights go; a matrix is quantised on the way.
    """
    model.requires_grad_(False)
    if kind is Quantization.none:
        return model.to(device)  # pyright: ignore[reportArgumentType]
    # its warning at every product that float32 and bfloat16 become float16 is what the audit puts a number on
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for name, module in quantizable(model).items():
        model.set_submodule(name, _quantized_linear(module, kind))
    return model.to(device)  # pyright: ignore[reportArgumentType]


def quantizable(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The matrices that are quantised, by name."""
    kept = set(model._keep_in_fp32_modules or ())
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and kept.isdisjoint(name.split("."))
    }


def _quantized_linear(module: nn.Linear, kind: Quantization) -> nn.Linear:
    """The same map; bitsandbytes quantises its weight when it is moved to a device."""
    library: Any = import_module("bitsandbytes").nn
    sizes, weight = (module.in_features, module.out_features, module.bias is not None), module.weight.data
    with torch.device("meta"):
        if kind is Quantization.int8:
            linear = library.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=_OUTLIERS)
        else:
            linear = library.Linear4bit(*sizes, compute_dtype=weight.dtype, compress_statistics=False, quant_type="nf4")
    if kind is Quantization.int8:
        linear.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        linear.weight = library.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=linear
        )
        if module.out_features % 32 or module.in_features % 64:
            linear.support_avx512bf16_for_cpu = False  # its own layout for such a CPU takes whole blocks alone
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.data, requires_grad=False)
    return linear.train(module.training)
