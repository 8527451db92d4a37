"""Decoding in buffers of fixed length, so that one token of all rows is always the same graph and can be compiled.

Prompts are read as ever (`models/decoding.py`) and copied into the buffers; from there on a step reads one token of every row.
Rows that have finished leave in halvings of the batch, so that few shapes exist: a row that finished before its halving
is computed and ignored. On CUDA the step is compiled with mode="reduce-overhead", which records a CUDA graph a shape.
The buffers stay between rollouts, because such a graph knows their addresses.

A layer with a window of attention has the full length too: transformers' mask hides what is outside of the window.
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
from gkd_rl.models.decoding import DecoderOnlyState, EncoderDecoderState, ReadSoFar
from gkd_rl.models.row_layout import takes_masks
from gkd_rl.types import PromptBatch

TAKES_NONE = ("longt5",)  # its attention is not written for a cache of fixed length
HALVINGS = 3  # of the batch: at most 4 shapes are compiled, where torch gives up beyond 8

Step = Callable[[nn.Module, Cache, dict[str, Tensor]], Tensor]


def compiler_for(device: torch.device) -> Callable[[Step], Step] | None:
    """How the step is compiled on a device; on a CPU, where that takes minutes, not at all."""
    if device.type != "cuda":
        return None
    return partial(torch.compile, mode="reduce-overhead", fullgraph=True, dynamic=False)  # pyright: ignore


def check_type(model_type: str) -> None:
    """Refuse models that take no cache of fixed length.

    Raises:
        ModelError: this is one of them.
    """
    if model_type in TAKES_NONE:
        raise ModelError(
            f"rollout.static_cache=true: attention of model_type={model_type} takes no cache of fixed length. "
            "Set rollout.static_cache=false, or choose another student."
        )


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a loaded model whose attention takes no cache of fixed length.

    Raises:
        ModelError: it does not.
    """
    check_type(model.config.model_type)
    if not takes_masks(model):
        raise ModelError(
            f"rollout.static_cache=true with attn_implementation={model.config._attn_implementation}: a cache of fixed "
            "length takes sdpa or eager attention. Set rollout.static_cache=false."
        )


class StaticDecoding:
    """Opens decoding states of one model in buffers that it keeps."""

    def __init__(
        self, longest_prompt: int, longest_completion: int, compiler: Callable[[Step], Step] | None = None
    ) -> None:
        """Buffers are made by the first rollout, and again by one of more rows.

        Args:
            longest_prompt: columns that prompts take at most.
            longest_completion: tokens of a completion at most.
            compiler: compiles the step; None runs it as it is.
        """
        self._longest = longest_prompt, longest_completion
        if compiler is not None:
            torch.compiler.reset()  # graphs of other models, of an earlier run in this process, count as shapes too
        self._step = _step if compiler is None else compiler(_step)
        self._buffers: _Buffers | None = None

    def start(
        self,
        model: HiddenStateModel,
        prompts: PromptBatch,
        per_prompt: int,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> StaticState:
        """As `HiddenStateModel.start`.

        Raises:
            ModelError: the model's attention is of an implementation that takes no cache of fixed length.
        """
        check_attention(model.model)
        state = model.start(prompts, per_prompt, groups)
        assert isinstance(state, EncoderDecoderState | DecoderOnlyState)
        read = state.read_so_far()
        if self._buffers is None or len(read.hidden_BD) > self._buffers.capacities[0]:
            self._buffers = _Buffers(read, *self._longest)
        self._buffers.fill(read)
        return StaticState(read, self._buffers, self._step)

    @property
    def held_bytes(self) -> int:
        """Bytes of the buffers, which stay."""
        return 0 if self._buffers is None else self._buffers.bytes


class StaticState:
    """Rows of the buffers that are still being written; a `DecodingState`.

    Attributes:
        hidden_BD: hidden states that predict the next token.
    """

    def __init__(self, read: ReadSoFar, buffers: _Buffers, step: Step) -> None:
        self.hidden_BD = read.hidden_BD
        self._decoder = read.decoder
        self._buffers = buffers
        self._step = step
        self._rows_B = torch.arange(len(read.hidden_BD), device=read.hidden_BD.device)  # where they are
        self._capacity = buffers.capacity_for(len(self._rows_B))

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        cache, inputs = self._buffers.part(self._capacity)
        inputs["input_ids"].index_copy_(0, self._rows_B, last_ids_B.unsqueeze(1))
        hidden_CD = self._step(self._decoder, cache, inputs)
        self._buffers.advance()
        self.hidden_BD = hidden_CD[self._rows_B]  # a copy: a CUDA graph writes its next result over this one
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices); the buffers are cut once half of their rows are gone."""
        self.hidden_BD, self._rows_B = self.hidden_BD[rows], self._rows_B[rows]
        capacity = self._buffers.capacity_for(len(rows))
        if capacity < self._capacity:
            self._buffers.compact(self._rows_B, self._capacity, capacity)
            self._rows_B, self._capacity = torch.arange(len(rows), device=rows.device), capacity


class _Buffers:
    """Keys, values and inputs of R rows; what fewer rows use are views of the first of them.

    Attributes:
        capacities: numbers of rows that a step may have, descending.
    """

    def __init__(self, read: ReadSoFar, longest_prompt: int, longest_completion: int) -> None:
        R = len(read.hidden_BD)
        self.capacities = sorted({-(-R // 2**i) for i in range(HALVINGS + 1)}, reverse=True)
        device = read.mask_BS.device
        self._inputs = {"input_ids": torch.zeros(R, 1, dtype=torch.long, device=device)}
        self._crossed: list[StaticLayer] = []
        if isinstance(read.cache, EncoderDecoderCache):
            self._written = _layers(read.cache.self_attention_cache, R, longest_completion)
            self._crossed = _layers(read.cache.cross_attention_cache, R, longest_prompt)
            self._inputs["encoder_attention_mask"] = read.mask_BS.new_ones(R, longest_prompt)
            # the keys and values are made of it already: its shape is all that is looked at
            self._inputs["encoder_hidden_states"] = read.hidden_BD.new_zeros(R, longest_prompt, 1)
        else:
            self._written = _layers(read.cache, R, longest_prompt + longest_completion)
            self._inputs["attention_mask"] = read.mask_BS.new_ones(R, longest_prompt + longest_completion)
            self._inputs["position_ids"] = torch.zeros(R, 1, dtype=torch.long, device=device)
        self._parts = {capacity: self._make_part(capacity) for capacity in self.capacities}

    @property
    def bytes(self) -> int:
        """Of keys, values and inputs."""
        tensors = (*self._keys_and_values(), *self._inputs.values())
        return sum(one.numel() * one.element_size() for one in tensors)

    def _keys_and_values(self) -> list[Tensor]:
        return [one for layer in (*self._written, *self._crossed) for one in _tensors(layer)]

    def capacity_for(self, rows: int) -> int:
        """The fewest rows of a step that hold so many."""
        return min(capacity for capacity in self.capacities if capacity >= rows)

    def part(self, capacity: int) -> tuple[Cache, dict[str, Tensor]]:
        """Cache and inputs of the first rows."""
        return self._parts[capacity]

    def fill(self, read: ReadSoFar) -> None:
        """Copy what was read into the first rows; everything else is zeros that no token sees."""
        mask_BS = read.mask_BS
        if isinstance(read.cache, EncoderDecoderCache):
            _fill(self._written, read.cache.self_attention_cache, read.cache.get_seq_length())
            _fill(self._crossed, read.cache.cross_attention_cache, mask_BS.shape[1])
            seen = self._inputs["encoder_attention_mask"]
            seen[: len(mask_BS), mask_BS.shape[1] :] = 0
        else:
            _fill(self._written, read.cache, mask_BS.shape[1])
            self._inputs["position_ids"][: len(mask_BS)] = mask_BS.sum(dim=1, keepdim=True)
            seen = self._inputs["attention_mask"].fill_(1)  # what is not written yet, causality hides
        seen[: len(mask_BS), : mask_BS.shape[1]] = mask_BS

    def advance(self) -> None:
        """One token more has been read; the layers have counted it."""
        if "position_ids" in self._inputs:
            self._inputs["position_ids"] += 1

    def compact(self, rows_B: Tensor, before: int, after: int) -> None:
        """Move these rows to the front; the rows behind them, up to `after`, are of no one."""
        taken = torch.cat([rows_B, rows_B[:1].expand(after - len(rows_B))])
        for one in (*self._keys_and_values(), *self._inputs.values()):
            one[:after] = one[:before].index_select(0, taken)

    def _make_part(self, rows: int) -> tuple[Cache, dict[str, Tensor]]:
        cache = Cache(layers=_views(self._written, rows))
        if self._crossed:
            cache = EncoderDecoderCache(cache, Cache(layers=_views(self._crossed, rows)))
            cache.is_updated = dict.fromkeys(range(len(self._crossed)), True)
        inputs = {name: one[:rows] for name, one in self._inputs.items()}
        for one in inputs.values():
            torch._dynamo.mark_static_address(one)
        return cache, inputs


def _step(decoder: nn.Module, cache: Cache, inputs: dict[str, Tensor]) -> Tensor:
    """Hidden states (C, D) of one more token of every row."""
    return decoder(**inputs, cache=cache, use_cache=True).last_hidden_state[:, -1]


def _layers(cache: Cache, rows: int, length: int) -> list[StaticLayer]:
    """Buffers of the shapes of a cache's layers."""
    made = []
    for layer in cache.layers:
        one = StaticLayer(length)
        one.lazy_initialization(*(filled.new_empty(rows, *filled.shape[1:]) for filled in _tensors(layer)))
        made.append(one)
    return made


def _views(layers: Sequence[StaticLayer], rows: int) -> list[Any]:
    """The first rows of the layers; they count their tokens together."""
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
    """Copy a cache of so many columns; a layer with a window has kept the last of them only."""
    for layer, filled in zip(layers, cache.layers, strict=True):
        for one, given in zip(_tensors(layer), _tensors(filled), strict=True):
            one.zero_()
            one[: len(given), :, columns - given.shape[2] : columns] = given
        layer.cumulative_length.fill_(columns)


def _tensors(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values
