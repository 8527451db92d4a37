"""Decoding with a static cache: key and value buffers of fixed length, so that one decoding step can be compiled.

Prompts are computed as without a static cache (`models/decoding.py`) and copied into the buffers. Each step then
computes one token of every row, always with the same shapes. Finished rows leave the batch when half of the rows can
go, so that few shapes exist; until then they are computed and ignored. On CUDA the step is compiled with
mode="reduce-overhead", which records one CUDA graph per shape. The buffers are kept between rollouts, because a CUDA
graph depends on their addresses.

Layers with sliding-window attention have buffers of full length as well: transformers' mask covers the tokens outside
of the window.

    R rows of the buffers    C rows of one step, the capacity    B unfinished rows
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from gkd_rl.errors import ModelError
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.decoding import CachedPrefix, DecoderOnlyState, EncoderDecoderState
from gkd_rl.models.row_layout import takes_masks
from gkd_rl.types import PromptBatch

UNSUPPORTED_TYPES = ("longt5",)  # their attention does not support a static cache
HALVINGS = 3  # of the batch: at most 4 shapes are compiled; torch's limit is 8

# (decoder, cache, inputs) -> hidden states (C, D) of one more token of every row.
Step = Callable[[nn.Module, Cache, dict[str, Tensor]], Tensor]


def compiler_for(device: torch.device) -> Callable[[Step], Step] | None:
    """The compiler of the step; None on a CPU, where compilation takes minutes."""
    if device.type != "cuda":
        return None
    return partial(torch.compile, mode="reduce-overhead", fullgraph=True, dynamic=False)  # pyright: ignore


def check_type(model_type: str) -> None:
    """Refuse model types without support for a static cache.

    Raises:
        ModelError: this is one of them.
    """
    if model_type in UNSUPPORTED_TYPES:
        raise ModelError(
            f"rollout.static_cache=true: model_type={model_type} does not support a static cache. "
            "Set rollout.static_cache=false, or choose another student."
        )


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a loaded model whose attention implementation does not support a static cache.

    Raises:
        ModelError: of its type, or of its attention implementation.
    """
    check_type(model.config.model_type)
    if not takes_masks(model):
        raise ModelError(
            f"rollout.static_cache=true with attn_implementation={model.config._attn_implementation}: a static cache "
            "needs sdpa or eager attention. Set rollout.static_cache=false."
        )


class StaticDecoding:
    """Starts decoding states of one model in buffers that are kept between rollouts."""

    def __init__(
        self, max_prompt_tokens: int, max_completion_tokens: int, compiler: Callable[[Step], Step] | None = None
    ) -> None:
        """Buffers are made by the first rollout, and again by a rollout with more rows.

        Args:
            max_prompt_tokens: columns of prompts.
            max_completion_tokens: columns of completions.
            compiler: compiles the step; None runs it without compilation.
        """
        self._lengths = max_prompt_tokens, max_completion_tokens
        if compiler is not None:
            torch.compiler.reset()  # graphs of an earlier run's models in this process count towards the limit
        self._step = _step if compiler is None else compiler(_step)
        self._buffers: _Buffers | None = None

    def start(
        self,
        model: HiddenStateModel,
        prompts: PromptBatch,
        per_prompt: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> StaticState:
        """Compute the prompts and return a decoding state; arguments as `HiddenStateModel.start`.

        Raises:
            ModelError: the model does not support a static cache.
        """
        check_attention(model.model)
        state = model.start(prompts, per_prompt, groups)
        assert isinstance(state, EncoderDecoderState | DecoderOnlyState)
        prefix = state.cached_prefix()
        if self._buffers is None or len(prefix.hidden_BD) > self._buffers.capacities[0]:
            self._buffers = _Buffers(prefix, *self._lengths)
        self._buffers.fill(prefix)
        return StaticState(prefix, self._buffers, self._step)

    @property
    def held_bytes(self) -> int:
        """Bytes of the buffers."""
        return 0 if self._buffers is None else self._buffers.bytes


class StaticState:
    """The unfinished rows of a batch in the buffers; a `DecodingState`.

    Attributes:
        hidden_BD: hidden states that predict the next token.
    """

    def __init__(self, prefix: CachedPrefix, buffers: _Buffers, step: Step) -> None:
        self.hidden_BD = prefix.hidden_BD
        self._decoder = prefix.decoder
        self._buffers = buffers
        self._step = step
        self._rows_B = torch.arange(len(prefix.hidden_BD), device=prefix.hidden_BD.device)  # their rows in the buffers
        self._capacity = buffers.capacity_for(len(self._rows_B))

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Compute one more token of every row; returns the new `hidden_BD`.

        Args:
            last_ids_B: the tokens that were sampled last.
        """
        cache, inputs = self._buffers.part(self._capacity)
        inputs["input_ids"].index_copy_(0, self._rows_B, last_ids_B.unsqueeze(1))
        hidden_CD = self._step(self._decoder, cache, inputs)
        self._buffers.advance()
        self.hidden_BD = hidden_CD[self._rows_B]  # a copy: a CUDA graph overwrites its result in the next step
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (indices) and drop all others; the step gets smaller once a smaller capacity holds them."""
        self.hidden_BD, self._rows_B = self.hidden_BD[rows], self._rows_B[rows]
        capacity = self._buffers.capacity_for(len(rows))
        if capacity < self._capacity:
            self._buffers.compact(self._rows_B, self._capacity, capacity)
            self._rows_B, self._capacity = torch.arange(len(rows), device=rows.device), capacity


class _Buffers:
    """Keys, values and inputs of R rows; a step of fewer rows uses views of the first ones.

    Attributes:
        capacities: numbers of rows that a step can have, descending.
    """

    def __init__(self, prefix: CachedPrefix, max_prompt_tokens: int, max_completion_tokens: int) -> None:
        R = len(prefix.hidden_BD)
        self.capacities = sorted({-(-R // 2**i) for i in range(HALVINGS + 1)}, reverse=True)
        device = prefix.mask_BS.device
        self._inputs = {"input_ids": torch.zeros(R, 1, dtype=torch.long, device=device)}
        self._cross_attention: list[StaticLayer] = []
        if isinstance(prefix.cache, EncoderDecoderCache):
            self._self_attention = _layers(prefix.cache.self_attention_cache, R, max_completion_tokens)
            self._cross_attention = _layers(prefix.cache.cross_attention_cache, R, max_prompt_tokens)
            self._inputs["encoder_attention_mask"] = prefix.mask_BS.new_ones(R, max_prompt_tokens)
            # only its shape is used: its keys and values are in the cross-attention cache
            self._inputs["encoder_hidden_states"] = prefix.hidden_BD.new_zeros(R, max_prompt_tokens, 1)
        else:
            self._self_attention = _layers(prefix.cache, R, max_prompt_tokens + max_completion_tokens)
            self._inputs["attention_mask"] = prefix.mask_BS.new_ones(R, max_prompt_tokens + max_completion_tokens)
            self._inputs["position_ids"] = torch.zeros(R, 1, dtype=torch.long, device=device)
        self._parts = {capacity: self._make_part(capacity) for capacity in self.capacities}

    @property
    def bytes(self) -> int:
        """Bytes of keys, values and inputs."""
        tensors = (*self._keys_and_values(), *self._inputs.values())
        return sum(one.numel() * one.element_size() for one in tensors)

    def _keys_and_values(self) -> list[Tensor]:
        return [one for layer in (*self._self_attention, *self._cross_attention) for one in _tensors(layer)]

    def capacity_for(self, rows: int) -> int:
        """The smallest capacity that holds so many rows."""
        return min(capacity for capacity in self.capacities if capacity >= rows)

    def part(self, capacity: int) -> tuple[Cache, dict[str, Tensor]]:
        """Cache and inputs of a step with `capacity` rows."""
        return self._parts[capacity]

    def fill(self, prefix: CachedPrefix) -> None:
        """Copy the cache of the prompts into the first rows; all other columns are zeros and masked."""
        mask_BS = prefix.mask_BS
        if isinstance(prefix.cache, EncoderDecoderCache):
            _fill(self._self_attention, prefix.cache.self_attention_cache, prefix.cache.get_seq_length())
            _fill(self._cross_attention, prefix.cache.cross_attention_cache, mask_BS.shape[1])
            mask_RS = self._inputs["encoder_attention_mask"]
            mask_RS[: len(mask_BS), mask_BS.shape[1] :] = 0
        else:
            _fill(self._self_attention, prefix.cache, mask_BS.shape[1])
            self._inputs["position_ids"][: len(mask_BS)] = mask_BS.sum(dim=1, keepdim=True)
            mask_RS = self._inputs["attention_mask"].fill_(1)  # future columns are hidden by the causal mask
        mask_RS[: len(mask_BS), : mask_BS.shape[1]] = mask_BS

    def advance(self) -> None:
        """Move to the next position; the layers count their tokens themselves."""
        if "position_ids" in self._inputs:
            self._inputs["position_ids"] += 1

    def compact(self, rows_B: Tensor, before: int, after: int) -> None:
        """Move rows to the front.

        Args:
            rows_B: the rows that are kept.
            before: capacity until now.
            after: new capacity; rows behind the kept ones are filled with copies of the first, and ignored.
        """
        source_C = torch.cat([rows_B, rows_B[:1].expand(after - len(rows_B))])
        for one in (*self._keys_and_values(), *self._inputs.values()):
            one[:after] = one[:before].index_select(0, source_C)

    def _make_part(self, rows: int) -> tuple[Cache, dict[str, Tensor]]:
        """Views of the first rows, as a cache and inputs whose addresses stay the same."""
        cache = Cache(layers=_views(self._self_attention, rows))
        if self._cross_attention:
            cache = EncoderDecoderCache(cache, Cache(layers=_views(self._cross_attention, rows)))
            cache.is_updated = dict.fromkeys(range(len(self._cross_attention)), True)
        inputs = {name: one[:rows] for name, one in self._inputs.items()}
        for one in inputs.values():
            torch._dynamo.mark_static_address(one)
        return cache, inputs


def _step(decoder: nn.Module, cache: Cache, inputs: dict[str, Tensor]) -> Tensor:
    """Hidden states (C, D) of one more token of every row."""
    return decoder(**inputs, cache=cache, use_cache=True).last_hidden_state[:, -1]


def _layers(cache: Cache, rows: int, length: int) -> list[StaticLayer]:
    """Buffers for the layers of a cache, with `rows` rows and `length` columns."""
    made = []
    for layer in cache.layers:
        one = StaticLayer(length)
        one.lazy_initialization(*(filled.new_empty(rows, *filled.shape[1:]) for filled in _tensors(layer)))
        made.append(one)
    return made


def _views(layers: Sequence[StaticLayer], rows: int) -> list[Any]:
    """Views of the first rows of the layers; all views of a layer share its token count."""
    views = []
    for layer in layers:
        view = copy.copy(layer)
        view.batch_size = rows
        view.keys, view.values = (one[:rows] for one in _tensors(layer))
        for one in _tensors(view):
            torch._dynamo.mark_static_address(one)
        views.append(view)
    return views


def _fill(layers: Sequence[StaticLayer], cache: Cache, columns: int) -> None:
    """Copy a cache of so many columns; a sliding-window layer holds only the last of them."""
    for layer, filled in zip(layers, cache.layers, strict=True):
        for one, given in zip(_tensors(layer), _tensors(filled), strict=True):
            one.zero_()
            one[: len(given), :, columns - given.shape[2] : columns] = given
        layer.cumulative_length.fill_(columns)


def _tensors(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values
