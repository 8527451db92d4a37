"""Tensors on disk by name: a folder of safetensors files that are written whole, never changed, and shared by runs.

A shard is written beside and renamed, under a name of its own, so that any number of processes may add to a folder at
one time; what two of them add at once is there twice. A shard's metadata has a CRC-32 of every tensor, which is looked
at whenever the tensor is read.

What the teacher says of fixed text (references, its own samples), kept on disk: it is computed once.

Kept are the hidden states of a completion before the output head, (T, D) in the teacher's dtype, so that any
divergence, temperature and scale reads them. A completion goes by the hash of its own ids and of its prompt's as the
teacher reads them; the folder by the hash of all that decides the teacher (`build_teacher.build_teacher_output_cache`).

One completion of the teacher for every training prompt (SeqKD, f-distill): written once, kept on disk, resumable.

The rows are cut into chunks, each a file. The random numbers of a chunk depend on (seed, chunk) alone, so a job that
was killed and started again gives the samples of one that was not. Several processes of a run take a chunk each at a
time; of several runs, one writes while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gkd_rl.config.launch import is_main_process, processes, rank
from gkd_rl.errors import ModelError
from gkd_rl.generation.sampler import Sampler
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.outputs.json_files import write_json
from gkd_rl.training.processes import gather_objects
from gkd_rl.types import Example, Rollout
from reward_models.guard import entry_lock

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


@dataclass
class TeacherOutputCache:
    """A teacher's hidden states by completion; those that are missing are computed and added.

    Attributes:
        shards: where they are.
        tolerance: how far stored states may be from computed ones, as a share of these ones' norm: what rounding does.
        checked: the first micro-batch with states from the disk has been computed again and compared.
    """

    shards: TensorShards
    tolerance: float
    checked: bool = False

    def __call__(
        self, teacher: HiddenStateModel, micro: Rollout, compute: Callable[[Rollout], Tensor]
    ) -> tuple[Tensor, int]:
        """The teacher's hidden states of a micro-batch.

        Args:
            teacher: whose they are.
            micro: the text.
            compute: the teacher's forward, of the completions that are missing.

        Returns:
            States (B, T, D), 0 on padding, and how many of the B completions were there already.

        Raises:
            ModelError: what is stored is not what this teacher says.
        """
        keys, lengths = completion_keys(teacher, micro), micro.mask_BT.sum(dim=1).tolist()
        found = self.shards.read(keys)
        check = not self.checked and any(self.shards.on_disk(key) for key in found)
        rows = [row for row, key in enumerate(keys) if check or key not in found]
        parts = {row: found[key] for row, key in enumerate(keys) if key in found}
        if rows:
            computed_BTD = compute(micro.rows(torch.tensor(rows, device=micro.ids_BT.device)))
            for row, computed_TD in zip(rows, computed_BTD, strict=True):
                computed = computed_TD[: lengths[row]]
                if row in parts:
                    self._compare(parts[row], computed)
                else:
                    self.shards.add(keys[row], computed)
                parts[row] = computed
        self.checked |= check
        any_TD = parts[0]
        hidden_BTD = torch.zeros(*micro.ids_BT.shape, any_TD.shape[1], dtype=any_TD.dtype, device=micro.ids_BT.device)
        for row, part_TD in parts.items():
            hidden_BTD[row, : lengths[row]] = part_TD
        return hidden_BTD, sum(key in found for key in keys)

    def _compare(self, stored_TD: Tensor, computed_TD: Tensor) -> None:
        """Refuse stored states that rounding does not explain."""
        stored, computed = stored_TD.float(), computed_TD.float().cpu()
        same = stored.shape == computed.shape
        away = float((stored - computed).norm() / computed.norm()) if same else float("inf")
        if not away <= self.tolerance:
            raise ModelError(
                f"teacher.output_cache_gib: {self.shards.folder} does not hold what this teacher says: the states "
                f"of a completion are {away:.2g} of their norm away, and rounding explains {self.tolerance:g}. Delete "
                "that folder, or set teacher.output_cache_gib=null."
            )


def completion_keys(teacher: HiddenStateModel, micro: Rollout) -> list[str]:
    """The hash of each completion and of its prompt as the teacher reads it; padding is no part of it."""
    prompts = teacher.own(micro.prompts)
    read = [ids[mask] for ids, mask in zip(prompts.ids_PS.cpu(), prompts.mask_PS.cpu(), strict=True)]
    keys = []
    for prompt, ids, mask in zip(micro.prompt_index_B.tolist(), micro.ids_BT.cpu(), micro.mask_BT.cpu(), strict=True):
        digest = hashlib.sha256(len(read[prompt]).to_bytes(8, "little"))
        digest.update(read[prompt].numpy().tobytes())
        digest.update(ids[mask].numpy().tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys


@dataclass(frozen=True)
class TeacherSamples:
    """Who wrote them, and the token ids of one completion for each training row."""

    author: HiddenStateModel
    ids: list[list[int]]


def write_samples(
    folder: Path,
    teacher: HiddenStateModel,
    sampler: Sampler,
    examples: Sequence[Example],
    seed: int,
    chunk_size: int = 500,
    after_chunk: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The teacher's completion of every example: read from `folder` where it is there, sampled and written where not.

    Args:
        folder: named by all that decides the samples (`checkpoint.cache_key`), `seed` and `chunk_size` among them.
        teacher: sampled in evaluation mode.
        sampler: the task's codec and how tokens are drawn.
        examples: training rows, in the order of the result.
        seed: of the samples.
        chunk_size: rows of one file, which are also one batch of the sampler.
        after_chunk: called with the number of rows done after every chunk, read or sampled.

    Returns:
        Token ids without padding, the end-of-sequence token included; a truncated completion has none.
    """
    samples: list[list[int]] = []
    chunks = [examples[start : start + chunk_size] for start in range(0, len(examples), chunk_size)]
    whole = all((folder / _name(chunk)).is_file() for chunk in range(len(chunks)))
    with nullcontext() if whole or not is_main_process() else entry_lock(folder):
        for first in range(0, len(chunks), processes()):
            mine = first + rank()
            written, fresh = None, []
            if mine < len(chunks):
                written = _read_samples(folder / _name(mine), len(chunks[mine]))
                fresh = [] if written is not None else _sample(teacher, sampler, chunks[mine], seed, mine)
            for chunk, (old, new) in enumerate(gather_objects((written, fresh)), start=first):
                if new and is_main_process():
                    write_json(folder / _name(chunk), new)
                samples += old or new
            if after_chunk is not None:
                after_chunk(len(samples))
    return samples


def _name(chunk: int) -> str:
    """File of a chunk."""
    return f"{chunk:05d}.json"


def _sample(
    teacher: HiddenStateModel, sampler: Sampler, rows: Sequence[Example], seed: int, chunk: int
) -> list[list[int]]:
    """Token ids of one chunk, decided by (seed, chunk)."""
    generator = torch.Generator(teacher.device)
    generator.manual_seed(random.Random(f"teacher samples {seed} {chunk}").getrandbits(63))
    rollout = sampler.sample(teacher, sampler.codec.prompts(rows), 1, generator)
    return [ids[mask].tolist() for ids, mask in zip(rollout.ids_BT.cpu(), rollout.mask_BT.cpu(), strict=True)]


def _read_samples(path: Path, count: int) -> list[list[int]] | None:
    """Token ids of a finished chunk; None where there is none, or a file that does not hold `count` of them."""
    if not path.exists():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): its samples are written again.", path, error)
        return None
    if not isinstance(ids, list) or len(ids) != count or not all(map(_is_completion, ids)):
        log.warning("%s does not hold %d lists of token ids: its samples are written again.", path, count)
        return None
    return ids


def _is_completion(row: object) -> bool:
    """At least one token id; `True` is none."""
    return isinstance(row, list) and bool(row) and all(type(one) is int and one >= 0 for one in row)
