"""The state of generation: hidden states that predict the next token, and a key-value cache with room to grow.

Encoder-decoders keep the encoder's output beside the cache; decoder-only models know which columns hold tokens.
transformers' cache copies all keys and values of a layer for each new token. Here a layer takes memory for `ROOM`
tokens more than it has, and stores new ones there.

    B rows    H heads of keys and values    N columns    D head width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from gkd_rl.errors import ModelError
from gkd_rl.types import PromptBatch

ROOM = 64


class RoomyLayer(DynamicLayer):
    """A layer whose keys and values are the filled part of longer tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._stores: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns to keys and values (B, H, N, D); returns all of both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, filled_BHND: Tensor | None, new_BHND: Tensor) -> Tensor:
        if filled_BHND is None or filled_BHND.numel() == 0:
            return new_BHND  # after a prompt's forward pass room is made when the first token follows
        (B, H, N, D), new = filled_BHND.shape, new_BHND.shape[2]
        store = self._stores.get(name)
        if store is None or not _shares_memory(store, filled_BHND) or store.shape[2] < N + new:
            store = self._stores[name] = filled_BHND.new_empty(B, H, N + new + ROOM, D)
            store[:, :, :N] = filled_BHND
        store[:, :, N : N + new] = new_BHND
        return store[:, :, : N + new]


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    """Also of tensors without data."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def empty_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache of a model's decoder; layers with a window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_join(cache: DynamicCache) -> bool:
    """Whether caches of this kind can be put together: no layer has a window."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)


def join(caches: Sequence[DynamicCache], rows: Sequence[Tensor], whole: DynamicCache) -> None:
    """Put the caches of groups of rows into one of all rows, whose columns end together.

    Args:
        caches: one of each group; they are emptied.
        rows: of each group, in the whole.
        whole: an empty cache.
    """
    count, longest = sum(len(one) for one in rows), max(cache.get_seq_length() for cache in caches)
    for number, layer in enumerate(whole.layers):
        both = []
        for name in ("keys", "values"):
            parts = [getattr(cache.layers[number], name) for cache in caches]
            both.append(parts[0].new_zeros(count, parts[0].shape[1], longest, parts[0].shape[3]))
            for cache, part, index in zip(caches, parts, rows, strict=True):
                both[-1][index, :, longest - part.shape[2] :] = part
                setattr(cache.layers[number], name, None)
        assert isinstance(layer, RoomyLayer)
        layer.update(*both)


class DecodingState(Protocol):
    """The rows of a batch that are still generated.

    Attributes:
        hidden_BD: hidden states that predict the next token; of a fresh state, the first token.
    """

    hidden_BD: Tensor

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        ...


@dataclass(frozen=True)
class CachedPrefix:
    """The content of a state, for one that goes on in a cache of another kind.

    Attributes:
        decoder: takes the tokens of completions.
        cache: its layers hold the last columns of what was processed; an `EncoderDecoderCache` for encoder-decoders.
        mask_BS: which columns hold tokens: of the encoder's prompt, or of the only sequence there is.
        hidden_BD: hidden states that predict the next token.
    """

    decoder: nn.Module
    cache: Cache
    mask_BS: Tensor
    hidden_BD: Tensor


class EncoderDecoderState:
    """Cross-attention inputs and the self-attention cache of the unfinished rows.

    All completions begin with the same token: its forward pass, and the cross-attention's keys and values, are
    computed once a prompt.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> None:
        self._decoder = decoder_of(model)
        self._mask_BS = prompts.mask_PS.long()
        self._encoded_BSD = _encoded(model, prompts.ids_PS, self._mask_BS, groups)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.step(prompts.ids_PS.new_full(prompts.ids_PS.shape[:1], start_id(model)))
        if per_prompt > 1:
            self._encoded_BSD = self._encoded_BSD.repeat_interleave(per_prompt, 0)
            self._mask_BS = self._mask_BS.repeat_interleave(per_prompt, 0)
            self.hidden_BD = self.hidden_BD.repeat_interleave(per_prompt, 0)
            self._cache.batch_repeat_interleave(per_prompt)

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        decoded = self._decoder(
            input_ids=last_ids_B.unsqueeze(1),
            encoder_hidden_states=self._encoded_BSD,
            encoder_attention_mask=self._mask_BS,
            cache=self._cache,
            use_cache=True,
        )
        self.hidden_BD = decoded.last_hidden_state[:, -1]
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Select rows of the hidden states, the encoder output, its mask and both caches."""
        self.hidden_BD = self.hidden_BD[rows]
        self._encoded_BSD = self._encoded_BSD[rows]
        self._mask_BS = self._mask_BS[rows]
        self._cache.batch_select_indices(rows)

    def cached_prefix(self) -> CachedPrefix:
        """The same rows, for `generation/static_decoding.py`."""
        return CachedPrefix(self._decoder, self._cache, self._mask_BS, self.hidden_BD)


class DecoderOnlyState:
    """The cache of the unfinished rows and which of its columns hold tokens.

    Prompts are padded on the left: a window of attention counts columns, so none may stand between two tokens. They are
    computed in groups, unless a layer has a window: the caches of two groups then do not fit together.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> None:
        self._decoder = decoder_of(model)
        order_PS = prompts.mask_PS.long().argsort(dim=1, stable=True)
        ids_PS, mask_PS = prompts.ids_PS.gather(1, order_PS), prompts.mask_PS.gather(1, order_PS).long()
        self._cache = empty_cache(model.config)
        if len(groups) == 1 or not can_join(self._cache):
            hidden_PD = self._read(ids_PS, mask_PS, self._cache)
        else:
            hidden_PD, mask_PS = self._read_apart(model, ids_PS, mask_PS, groups)
        self.hidden_BD = hidden_PD.repeat_interleave(per_prompt, 0)
        self._mask_BS = mask_PS.repeat_interleave(per_prompt, 0)
        self._cache.batch_repeat_interleave(per_prompt)

    def _read_apart(
        self, model: PreTrainedModel, ids_PS: Tensor, mask_PS: Tensor, groups: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Read groups of prompts, each as wide as its longest; returns hidden states and the mask of the cache."""
        rows = [torch.tensor(group, device=ids_PS.device) for group in groups]
        caches, hidden, widths = [], [], []
        for row in rows:
            widths.append(int(mask_PS[row].sum(dim=1).max()))
            caches.append(empty_cache(model.config))
            hidden.append(self._read(ids_PS[row, -widths[-1] :], mask_PS[row, -widths[-1] :], caches[-1]))
        join(caches, rows, self._cache)
        return torch.cat(hidden)[torch.cat(rows).argsort()], mask_PS[:, -max(widths) :]

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        self._mask_BS = torch.nn.functional.pad(self._mask_BS, (0, 1), value=1)
        self.hidden_BD = self._read(last_ids_B.unsqueeze(1), self._mask_BS, self._cache)
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Select rows of the hidden states, the mask and the cache."""
        self.hidden_BD = self.hidden_BD[rows]
        self._mask_BS = self._mask_BS[rows]
        self._cache.batch_select_indices(rows)

    def cached_prefix(self) -> CachedPrefix:
        """The same rows, for `generation/static_decoding.py`."""
        return CachedPrefix(self._decoder, self._cache, self._mask_BS, self.hidden_BD)

    def _read(self, ids_BN: Tensor, mask_BS: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, D) of the last of N new columns; the mask has these columns already."""
        positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        decoded = self._decoder(
            input_ids=ids_BN,
            attention_mask=mask_BS,
            position_ids=positions_BS[:, -ids_BN.shape[1] :],
            cache=cache,
            use_cache=True,
        )
        return decoded.last_hidden_state[:, -1]


def _encoded(model: PreTrainedModel, ids_PS: Tensor, mask_PS: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The encoder's states (P, S, D) of prompts that are padded on the right, computed in groups; zero on padding."""
    encoder, whole_PSD = encoder_of(model), None
    if len(groups) == 1:
        return encoder(input_ids=ids_PS, attention_mask=mask_PS).last_hidden_state
    for group in groups:
        rows = torch.tensor(group, device=ids_PS.device)
        width = int(mask_PS[rows].sum(dim=1).max())
        part = encoder(input_ids=ids_PS[rows, :width], attention_mask=mask_PS[rows, :width]).last_hidden_state
        if whole_PSD is None:
            whole_PSD = part.new_zeros(*ids_PS.shape, part.shape[-1])
        whole_PSD[rows, :width] = part
    assert whole_PSD is not None
    return whole_PSD


def start_id(model: PreTrainedModel) -> int:
    """The token that stands before a completion of an encoder-decoder."""
    start = model.config.decoder_start_token_id
    if start is None:
        raise ModelError("the model's config.decoder_start_token_id is null: set it to the padding id for T5.")
    return int(start)


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The encoder of an encoder-decoder."""
    return model.get_encoder()


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The decoder of completions.

    Raises:
        ModelError: there is none.
    """
    decoder = model.get_decoder()
    if not isinstance(decoder, nn.Module):
        raise ModelError(f"{type(model).__name__} has no decoder module.")
    return decoder
