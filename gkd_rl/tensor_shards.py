"""Tensors on disk by name: a folder of safetensors files that are written whole, never changed, and shared by runs.

A shard is written beside and renamed, under a name of its own, so that any number of processes may add to a folder at
one time; what two of them add at once is there twice. A shard's metadata has a CRC-32 of every tensor, which is looked
at whenever the tensor is read.
"""

from __future__ import annotations

import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

HEADER_BYTES = 256  # at most, of one tensor's name, place and checksum in its shard


class TensorShards:
    """Reads tensors one at a time, and writes them some tens of MiB at a time."""

    def __init__(self, folder: Path, limit: int, buffer: int = 64 * 2**20) -> None:
        """Open a folder, which is made if need be.

        Args:
            folder: of the shards.
            limit: bytes of the folder beyond which nothing is added.
            buffer: bytes that are kept in memory before they are written as a shard.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._limit, self._buffer = limit, buffer
        self._places: dict[str, Path] = {}  # the shard of each tensor
        self._sizes: dict[Path, int] = {}  # bytes of the shards that were looked at
        self._damaged: set[Path] = set()
        self._fresh: dict[str, Tensor] = {}
        self._fresh_bytes = 0
        self._full = False
        self._look()

    def on_disk(self, name: str) -> bool:
        """Whether a shard has this tensor."""
        return name in self._places

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of the tensors that are there, on the CPU."""
        names = list(names)
        found, shards = {}, defaultdict(list)
        for name in names:
            if name in self._fresh:
                found[name] = self._fresh[name]
            elif name in self._places:
                shards[self._places[name]].append(name)
        for shard, wanted in shards.items():
            try:
                found |= _read(shard, wanted)
            except (OSError, SafetensorError) as error:
                self._pass_over(shard, error)
                self._places = {}  # what it held may stand in another
                self._sizes = {one: self._sizes.get(one, 0) for one in self._damaged}
                self._look()
                return self.read(names)
        return found

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a copy of a tensor, unless the folder is full."""
        size = tensor.numel() * tensor.element_size() + HEADER_BYTES
        if self._full or name in self._fresh or not self._has_room(self._fresh_bytes + size):
            return
        self._fresh[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._fresh_bytes += size
        if self._fresh_bytes >= self._buffer:
            self.write()

    def write(self) -> None:
        """Write what is in memory as a shard, but for what another process has written meanwhile."""
        self._look()
        fresh = {name: tensor for name, tensor in self._fresh.items() if name not in self._places}
        size = self._fresh_bytes
        self._fresh, self._fresh_bytes = {}, 0
        if not fresh or not self._has_room(size):
            return
        shard = self.folder / f"{uuid4().hex}.safetensors"
        beside = shard.with_suffix(".part")
        try:
            save_file(fresh, beside, {name: _checksum(tensor) for name, tensor in fresh.items()})
            beside.rename(shard)
        except (OSError, SafetensorError) as error:
            self._stop(str(error))
            return
        finally:
            beside.unlink(missing_ok=True)
        self._look()

    def _look(self) -> None:
        """Find the shards that are new in the folder."""
        for shard in sorted(set(self.folder.glob("*.safetensors")) - self._sizes.keys()):
            try:
                self._sizes[shard] = shard.stat().st_size
                with safe_open(shard, "pt") as file:
                    self._places |= dict.fromkeys(file.keys(), shard)
            except (OSError, SafetensorError) as error:
                self._pass_over(shard, error)

    def _has_room(self, size: int) -> bool:
        """Whether the folder, as it was last looked at, takes `size` bytes more."""
        held = sum(self._sizes.values())
        fits = held + size <= self._limit
        if not fits:
            self._stop(f"it holds {held / 2**30:.3g} GiB and may hold {self._limit / 2**30:.3g}")
        return fits

    def _pass_over(self, shard: Path, error: Exception) -> None:
        log.warning("%s cannot be read (%s): it is passed over. Delete it.", shard, error)
        self._damaged.add(shard)

    def _stop(self, why: str) -> None:
        """Say once that nothing is added from here on."""
        if not self._full:
            log.warning("%s: nothing is added to it from here on: %s.", self.folder, why)
        self._full = True


def _read(shard: Path, names: list[str]) -> dict[str, Tensor]:
    """Tensors of a shard.

    Raises:
        SafetensorError: a tensor is not what was written.
    """
    with safe_open(shard, "pt") as file:
        sums, found = file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    for name, tensor in found.items():
        if sums.get(name) != _checksum(tensor):
            raise SafetensorError(f"the checksum of {name} is another")
    return found


def _checksum(tensor: Tensor) -> str:
    return str(zlib.crc32(tensor.view(torch.uint8).numpy().data))
