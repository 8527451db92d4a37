"""What the teacher computes on fixed data, kept on disk and shared by runs: samples and hidden states.

`TeacherSamples` has one completion of the teacher for every training prompt (SeqKD, f-distill). The rows are split into
chunks, each a file. The random numbers of a chunk depend on (seed, chunk) only, so an interrupted run continues with
the same samples. Several processes of a run generate a chunk each at a time; of several runs, one generates while the
others wait.

`TeacherOutputCache` has the teacher's forward pass on completions that do not change (references, teacher samples). It
keeps the hidden states before the output head, (T, D) in the teacher's dtype, so they serve any divergence, temperature
and scale. The key of a completion is the hash of its ids and of its prompt's ids as the teacher tokenises it; the
folder is named by the hash of all that decides the teacher's outputs.

`TensorShards` stores tensors by name in safetensors files that never change. A shard is written under a temporary name
and renamed, so any number of processes can add to a folder at one time; a tensor that two of them add is stored twice.
A CRC-32 of every tensor is verified when it is read.
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

HEADER_BYTES = 256  # upper bound of one tensor's name, offset and checksum in its shard


@dataclass(frozen=True)
class TeacherSamples:
    """Samples of a teacher.

    Attributes:
        teacher: the model that generated them.
        ids: token ids of one completion for each training row.
    """

    teacher: HiddenStateModel
    ids: list[list[int]]


def generate_teacher_samples(
    folder: Path,
    teacher: HiddenStateModel,
    sampler: Sampler,
    examples: Sequence[Example],
    seed: int,
    chunk_size: int = 500,
    after_chunk: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """One completion of the teacher for every example: read from `folder`, or sampled and written to it.

    Args:
        folder: named by the hash of all that decides the samples, `seed` and `chunk_size` included.
        teacher: sampled in evaluation mode.
        sampler: with the task's codec.
        examples: training rows, in the order of the result.
        seed: of the samples.
        chunk_size: rows of one file; also the batch of the sampler.
        after_chunk: called after every chunk with the number of rows done.

    Returns:
        Token ids without padding, the end-of-sequence token included; a truncated completion has none.
    """
    samples: list[list[int]] = []
    chunks = [examples[start : start + chunk_size] for start in range(0, len(examples), chunk_size)]
    complete = all((folder / _file_name(chunk)).is_file() for chunk in range(len(chunks)))
    with nullcontext() if complete or not is_main_process() else entry_lock(folder):
        for first in range(0, len(chunks), processes()):
            own = first + rank()
            stored, sampled = None, []
            if own < len(chunks):
                stored = _read_samples(folder / _file_name(own), len(chunks[own]))
                sampled = [] if stored is not None else _sample(teacher, sampler, chunks[own], seed, own)
            for chunk, (old, new) in enumerate(gather_objects((stored, sampled)), start=first):
                if new and is_main_process():
                    write_json(folder / _file_name(chunk), new)
                samples += old or new
            if after_chunk is not None:
                after_chunk(len(samples))
    return samples


def _file_name(chunk: int) -> str:
    return f"{chunk:05d}.json"


def _sample(
    teacher: HiddenStateModel, sampler: Sampler, rows: Sequence[Example], seed: int, chunk: int
) -> list[list[int]]:
    """Token ids of one chunk; its random numbers depend on (seed, chunk) only."""
    generator = torch.Generator(teacher.device)
    generator.manual_seed(random.Random(f"teacher samples {seed} {chunk}").getrandbits(63))
    rollout = sampler.sample(teacher, sampler.codec.prompts(rows), 1, generator)
    return [ids[mask].tolist() for ids, mask in zip(rollout.ids_BT.cpu(), rollout.mask_BT.cpu(), strict=True)]


def _read_samples(path: Path, count: int) -> list[list[int]] | None:
    """Token ids of a stored chunk; None where the file is missing, or is not a list of `count` completions."""
    if not path.exists():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): its samples are generated again.", path, error)
        return None
    if not isinstance(ids, list) or len(ids) != count or not all(map(_is_completion, ids)):
        log.warning("%s does not hold %d lists of token ids: its samples are generated again.", path, count)
        return None
    return ids


def _is_completion(row: object) -> bool:
    """Whether a row is a non-empty list of token ids; booleans are not ids."""
    return isinstance(row, list) and bool(row) and all(type(one) is int and one >= 0 for one in row)


@dataclass
class TeacherOutputCache:
    """A teacher's hidden states by completion; missing ones are computed and added.

    Attributes:
        shards: where they are stored.
        tolerance: largest difference of stored and computed states due to rounding, relative to the computed norm.
        checked: the first micro-batch with stored states has been computed again and compared.
    """

    shards: TensorShards
    tolerance: float
    checked: bool = False

    def __call__(
        self, teacher: HiddenStateModel, micro: Rollout, compute: Callable[[Rollout], Tensor]
    ) -> tuple[Tensor, int]:
        """The teacher's hidden states on a micro-batch.

        Args:
            teacher: the model.
            micro: the micro-batch.
            compute: the teacher's forward pass, called with the missing completions.

        Returns:
            Hidden states (B, T, D), 0 on padding, and how many of the B completions were stored.

        Raises:
            ModelError: stored states are not those of this teacher.
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
        width, dtype = parts[0].shape[1], parts[0].dtype
        hidden_BTD = torch.zeros(*micro.ids_BT.shape, width, dtype=dtype, device=micro.ids_BT.device)
        for row, part_TD in parts.items():
            hidden_BTD[row, : lengths[row]] = part_TD
        return hidden_BTD, sum(key in found for key in keys)

    def _compare(self, stored_TD: Tensor, computed_TD: Tensor) -> None:
        """Refuse stored states that differ by more than rounding."""
        stored, computed = stored_TD.float(), computed_TD.float().cpu()
        same_shape = stored.shape == computed.shape
        distance = float((stored - computed).norm() / computed.norm()) if same_shape else float("inf")
        if not distance <= self.tolerance:
            raise ModelError(
                f"teacher.output_cache_gib: {self.shards.folder} does not hold the outputs of this teacher: the hidden "
                f"states of a completion differ by {distance:.2g} of their norm; rounding explains {self.tolerance:g}. "
                "Delete that folder, or set teacher.output_cache_gib=null."
            )


def completion_keys(teacher: HiddenStateModel, micro: Rollout) -> list[str]:
    """Hash of each completion's ids and of its prompt's ids as the teacher tokenises it, without padding."""
    prompts = teacher.own(micro.prompts)
    prompt_ids = [ids[mask] for ids, mask in zip(prompts.ids_PS.cpu(), prompts.mask_PS.cpu(), strict=True)]
    keys = []
    for prompt, ids, mask in zip(micro.prompt_index_B.tolist(), micro.ids_BT.cpu(), micro.mask_BT.cpu(), strict=True):
        digest = hashlib.sha256(len(prompt_ids[prompt]).to_bytes(8, "little"))
        digest.update(prompt_ids[prompt].numpy().tobytes())
        digest.update(ids[mask].numpy().tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys


class TensorShards:
    """Tensors by name in a folder; read one at a time, written in shards of some tens of MiB."""

    def __init__(self, folder: Path, limit: int, buffer: int = 64 * 2**20) -> None:
        """Open a folder, creating it if needed.

        Args:
            folder: of the shards.
            limit: size of the folder in bytes beyond which nothing is added.
            buffer: bytes that are kept in memory before they are written as a shard.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._limit, self._buffer = limit, buffer
        self._shard_of: dict[str, Path] = {}  # by name of the tensor
        self._sizes: dict[Path, int] = {}  # bytes of the shards that were scanned
        self._damaged: set[Path] = set()
        self._buffered: dict[str, Tensor] = {}
        self._buffered_bytes = 0
        self._full = False
        self._scan()

    def on_disk(self, name: str) -> bool:
        """Whether a shard has this tensor."""
        return name in self._shard_of

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names that are stored, on the CPU."""
        names = list(names)
        found, shards = {}, defaultdict(list)
        for name in names:
            if name in self._buffered:
                found[name] = self._buffered[name]
            elif name in self._shard_of:
                shards[self._shard_of[name]].append(name)
        for shard, wanted in shards.items():
            try:
                found |= _read(shard, wanted)
            except (OSError, SafetensorError) as error:
                self._skip_damaged(shard, error)
                self._shard_of = {}  # its tensors may be in another shard as well
                self._sizes = {one: self._sizes.get(one, 0) for one in self._damaged}
                self._scan()
                return self.read(names)
        return found

    def add(self, name: str, tensor: Tensor) -> None:
        """Store a copy of a tensor, unless the folder is full."""
        size = tensor.numel() * tensor.element_size() + HEADER_BYTES
        if self._full or name in self._buffered or not self._has_room(self._buffered_bytes + size):
            return
        self._buffered[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._buffered_bytes += size
        if self._buffered_bytes >= self._buffer:
            self.write()

    def write(self) -> None:
        """Write the buffered tensors as a shard, except those that another process has written meanwhile."""
        self._scan()
        fresh = {name: tensor for name, tensor in self._buffered.items() if name not in self._shard_of}
        size = self._buffered_bytes
        self._buffered, self._buffered_bytes = {}, 0
        if not fresh or not self._has_room(size):
            return
        shard = self.folder / f"{uuid4().hex}.safetensors"
        temporary = shard.with_suffix(".part")
        try:
            save_file(fresh, temporary, {name: _checksum(tensor) for name, tensor in fresh.items()})
            temporary.rename(shard)
        except (OSError, SafetensorError) as error:
            self._close(str(error))
            return
        finally:
            temporary.unlink(missing_ok=True)
        self._scan()

    def _scan(self) -> None:
        """Read the names in new shards of the folder."""
        for shard in sorted(set(self.folder.glob("*.safetensors")) - self._sizes.keys()):
            try:
                self._sizes[shard] = shard.stat().st_size
                with safe_open(shard, "pt") as file:
                    self._shard_of |= dict.fromkeys(file.keys(), shard)
            except (OSError, SafetensorError) as error:
                self._skip_damaged(shard, error)

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit into the folder, as of the last scan."""
        stored = sum(self._sizes.values())
        fits = stored + size <= self._limit
        if not fits:
            self._close(f"it has {stored / 2**30:.3g} GiB of at most {self._limit / 2**30:.3g}")
        return fits

    def _skip_damaged(self, shard: Path, error: Exception) -> None:
        log.warning("%s cannot be read (%s): it is ignored. Delete it.", shard, error)
        self._damaged.add(shard)

    def _close(self, reason: str) -> None:
        """Add nothing from now on, with one warning."""
        if not self._full:
            log.warning("%s: nothing more is added to it: %s.", self.folder, reason)
        self._full = True


def _read(shard: Path, names: list[str]) -> dict[str, Tensor]:
    """Tensors of a shard.

    Raises:
        SafetensorError: the checksum of a tensor does not match.
    """
    with safe_open(shard, "pt") as file:
        checksums, found = file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    for name, tensor in found.items():
        if checksums.get(name) != _checksum(tensor):
            raise SafetensorError(f"the checksum of {name} does not match")
    return found


def _checksum(tensor: Tensor) -> str:
    return str(zlib.crc32(tensor.view(torch.uint8).numpy().data))
