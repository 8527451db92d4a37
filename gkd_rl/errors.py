"""The package's one family of errors.

Every message names the key, the value, what is allowed and what to type instead; `run.py` prints it without a
traceback.

What a machine does to a run (a full disk, a folder that takes no files, a process that dies) as one message each.

docs/faults.md has the table of all faults with what becomes of the run.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path


class GkdRlError(ValueError):
    """Base class of everything this package refuses on purpose."""


class ConfigError(GkdRlError):
    """One or more settings are wrong; `problems` holds one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(GkdRlError):
    """A data set or file does not hold what the task needs."""


class ModelError(GkdRlError):
    """A checkpoint cannot be loaded, or does not fit the other model."""


class RewardError(GkdRlError):
    """A reward returned something that cannot be used as a reward."""


class EndpointError(GkdRlError):
    """A server, of the teacher or of rollouts, does not answer, or not with what was asked for."""


class BenchmarkError(GkdRlError):
    """A benchmark is unknown, may not run, or lacks what it runs on."""


class DivergedError(GkdRlError):
    """Training went on without a finite loss or gradient."""


class CheckpointError(GkdRlError):
    """A checkpoint of a run is damaged, or belongs to another one."""


class StorageError(GkdRlError):
    """What a run writes cannot be written: the disk is full, or the folder takes no files."""


class MemoryShortage(GkdRlError):
    """The device has less memory than the run takes."""


class WorkerError(GkdRlError):
    """A process that did a part of the work ended without a word."""


FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}
CLOSED = {errno.EROFS: "the file system is read-only", errno.EACCES: "you may not"}
CLOSED |= {errno.EPERM: CLOSED[errno.EACCES]}
ELSEWHERE = "write elsewhere with hydra.run.dir=FOLDER (a sweep: hydra.sweep.dir) and cache_dir=FOLDER"


@contextmanager
def explaining_faults() -> Iterator[None]:
    """Turn what the machine did to the block into this package's errors; anything else is passed on.

    Raises:
        StorageError: something could not be written.
        WorkerError: a process of a sweep died.
    """
    try:
        yield
    except Exception as error:
        told = explained(error)
        if told is None:
            raise
        raise told from error


def explained(error: BaseException) -> GkdRlError | None:
    """The error in the user's words; None where it is no fault of the machine, or has these words already."""
    cause = None if isinstance(error, GkdRlError) else error
    while cause is not None:
        if isinstance(cause, BrokenProcessPool):
            return WorkerError(
                "a process of this sweep was ended from outside (killed, or out of memory): the runs that it had are "
                "lost, finished ones are kept. Fewer at once need less memory: hydra.launcher.n_jobs=1."
            )
        problem = _storage_problem(cause)
        if problem is not None:
            return StorageError(problem)
        cause = cause.__cause__
    return None


def _storage_problem(error: BaseException) -> str | None:
    """What could not be written and why; libraries that are not written in Python tell it in their text alone."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((one for one in (*FULL, *CLOSED) if f"os error {one})" in str(error)), None)
    if number not in FULL and number not in CLOSED:
        return None
    name = getattr(error, "filename", None)
    shown = "the run's files" if name is None else str(name)
    if number in CLOSED:
        return f"{shown} cannot be opened or written, {CLOSED[number]}: {ELSEWHERE}."
    folder = Path.cwd() if name is None else next(one for one in Path(name).absolute().parents if one.exists())
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"{shown} cannot be written, {FULL[number]} ({free:,.1f} MiB free in {folder}): make room, or {ELSEWHERE}. "
        "What was written before is whole, and the run ends here."
    )
