"""Bytes of the tensors that are alive at one time, counted while code runs; on fake tensors nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Within it, storages that operations make are counted until they are freed.

    Attributes:
        now: bytes alive.
        peak: the most of them at one time.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """`held`: tensors that are there already and do not count, e.g. weights."""
        super().__init__()
        self.now = self.peak = 0
        self._held = [tensor.untyped_storage() for tensor in held]  # kept, so that no other storage takes their place
        self._sizes = {storage._cdata: 0 for storage in self._held}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what is new in its result."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
