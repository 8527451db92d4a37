"""One completion of the teacher for every training prompt (SeqKD, f-distill): written once, kept on disk, resumable.

The rows are cut into chunks, each a file. The random numbers of a chunk depend on (seed, chunk) alone, so a job that
was killed and started again gives the samples of one that was not. Several processes of a run take a chunk each at a
time; of several runs, one writes while the others wait.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.json_files import write_json
from gkd_rl.launched import is_main_process, processes, rank
from gkd_rl.ranks import from_all
from gkd_rl.rollout import Sampler
from gkd_rl.types import Example
from reward_models.entry_lock import entry_lock

log = logging.getLogger(__name__)


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
                written = _read(folder / _name(mine), len(chunks[mine]))
                fresh = [] if written is not None else _sample(teacher, sampler, chunks[mine], seed, mine)
            for chunk, (old, new) in enumerate(from_all((written, fresh)), start=first):
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


def _read(path: Path, count: int) -> list[list[int]] | None:
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
