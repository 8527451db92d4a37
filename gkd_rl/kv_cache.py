"""The keys and values of completions that are being written, with room for the tokens that follow.

transformers' cache copies all keys and values of a layer for each new token. Here a layer takes memory for `ROOM`
tokens more than it has, and writes new ones there.

    B rows    H heads of keys and values    N columns    D head width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

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
            return new_BHND  # a prompt that is read at once has its room made when the first token follows
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
