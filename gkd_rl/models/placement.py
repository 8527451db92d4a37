"""A frozen model in fewer bits (bitsandbytes), on another device, or offloaded to the CPU.

Quantisation is LLM.int8() (Dettmers et al. 2022, outlier threshold 6) or NF4 (Dettmers et al. 2023, blocks of 64).
Matrices that transformers leaves at full precision stay so: embeddings, the output head (whose weight the fused head
uses) and T5's `wo`. A model is quantised after it is loaded, from whatever source (a folder, the Hub, GGUF, a
supervised stage): it passes through CPU memory at full precision, and never through the device's.

A model on another device keeps the architecture's contract: prompts and rollouts go to the weights, hidden states come
back. The output head is applied chunk by chunk beside the student's (`losses/fused_head.py`), so a copy of its weight
is moved to the student's device once: the largest matrix of a small model, and the only one there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_rl.config.choices import Quantization
from gkd_rl.errors import ModelError
from gkd_rl.models.architecture import Architecture, HiddenStateModel
from gkd_rl.models.decoding import DecodingState
from gkd_rl.types import OutputHead, PromptBatch, Rollout

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


class PlacedModel(HiddenStateModel):
    """Reads and gives tensors on `here`.

    `offload`: the weights stay in CPU memory and each layer's visit `there` while it is computed (accelerate).
    """

    def __init__(self, model: PreTrainedModel, there: torch.device, here: torch.device, *, offload: bool) -> None:
        super().__init__(model)
        model.requires_grad_(False).eval()
        if not offload:
            model.to(there)  # pyright: ignore[reportArgumentType]
        head = _moved_head(self.architecture.output_head(model), here)  # before offloading hides the weights
        if offload:
            cpu_offload(model, there)
        self.architecture = _PlacedArchitecture(self.architecture, head, there, here)
        self._here = here

    @property
    def device(self) -> torch.device:
        """The device of its inputs and outputs."""
        return self._here


class _PlacedArchitecture:
    """An architecture that moves what goes in and what comes out."""

    def __init__(self, inner: Architecture, head: OutputHead, there: torch.device, here: torch.device) -> None:
        self.decoder_only = inner.decoder_only
        self._inner, self._head, self._there, self._here = inner, head, there, here

    def lay_out(self, model: PreTrainedModel, rollout: Rollout) -> Any:
        """The text on that device, in the form that `read` takes."""
        moved = replace(
            rollout,
            prompts=_moved_prompts(rollout.prompts, self._there),
            prompt_index_B=rollout.prompt_index_B.to(self._there),
            ids_BT=rollout.ids_BT.to(self._there),
            mask_BT=rollout.mask_BT.to(self._there),
        )
        return self._inner.lay_out(model, moved)

    def read(self, model: PreTrainedModel, text: Any) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        return self._inner.read(model, text).to(self._here)

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """The head's copy."""
        return self._head

    def prompt_batches(self, model: PreTrainedModel, prompts: PromptBatch) -> list[list[int]]:
        """Prompts in groups of similar length, by the cost of their forward pass."""
        return self._inner.prompt_batches(model, prompts)

    def start(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> DecodingState:
        """Read the prompts there and open `per_prompt` empty completions of each."""
        state = self._inner.start(model, _moved_prompts(prompts, self._there), per_prompt, groups)
        return _PlacedState(state, self._there, self._here)


class _PlacedState:
    """A decoding state that is kept on the other device and driven from this one."""

    def __init__(self, inner: DecodingState, there: torch.device, here: torch.device) -> None:
        self._inner, self._there, self._here = inner, there, here
        self.hidden_BD = inner.hidden_BD.to(here)

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        self.hidden_BD = self._inner.step(last_ids_B.to(self._there)).to(self._here)
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        self._inner.keep(rows.to(self._there))
        self.hidden_BD = self.hidden_BD[rows]


def _moved_prompts(prompts: PromptBatch, device: torch.device) -> PromptBatch:
    return replace(prompts, ids_PS=prompts.ids_PS.to(device), mask_PS=prompts.mask_PS.to(device))


def _moved_head(head: OutputHead, device: torch.device) -> OutputHead:
    bias = None if head.bias_V is None else head.bias_V.to(device)
    return replace(head, weight_VD=head.weight_VD.detach().to(device), bias_V=bias)
