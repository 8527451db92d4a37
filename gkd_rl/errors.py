"""The package's errors: one base class, and the translation of faults of the machine into it.

Every message names the key, the value, what is allowed and what to type instead; the commands print it without a
traceback. docs/faults.md lists all faults (a full disk, a read-only folder, a process that dies) and their effect on a
run.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "BenchmarkError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "EndpointError",
    "GkdRlError",
    "MemoryShortage",
    "ModelError",
    "RewardError",
    "StorageError",
    "WorkerError",
]


class GkdRlError(ValueError):
    """Base class of all errors that this package raises on purpose."""


class ConfigError(GkdRlError):
    """One or more settings are wrong.

    Attributes:
        problems: one message for each.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(GkdRlError):
    """A data set or file lacks what the task needs."""


class ModelError(GkdRlError):
    """A model's checkpoint cannot be loaded, or does not fit the other model."""


class RewardError(GkdRlError):
    """A reward returned a value that cannot be used."""


class EndpointError(GkdRlError):
    """A server (teacher, rollouts, judge) does not answer, or its answer cannot be used."""


class BenchmarkError(GkdRlError):
    """A benchmark is unknown, is not allowed to run, or lacks its data or package."""


class DivergedError(GkdRlError):
    """Too many consecutive steps had no finite loss or gradient."""


class CheckpointError(GkdRlError):
    """A run's own checkpoint is damaged, or belongs to another run."""


class StorageError(GkdRlError):
    """A file of a run cannot be written: the disk is full, or the folder is not writable."""


class MemoryShortage(GkdRlError):
    """The device has less memory than the run needs."""


class WorkerError(GkdRlError):
    """A worker process ended without an error message."""


# --- faults of the machine, translated into the errors above ----------------------------------------------------------

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is too large",
}
_NO_ACCESS = {errno.EROFS: "the file system is read-only"}
_NO_ACCESS |= dict.fromkeys((errno.EACCES, errno.EPERM), "permission is denied")
_OTHER_FOLDER = "choose another folder with hydra.run.dir=FOLDER (a sweep: hydra.sweep.dir) and cache_dir=FOLDER"


@contextmanager
def explaining_faults() -> Iterator[None]:
    """Translate faults of the machine in the block into this package's errors; other errors pass unchanged.

    Raises:
        StorageError: a file could not be written.
        WorkerError: a process of a sweep died.
    """
    try:
        yield
    except Exception as error:
        translated = explained(error)
        if translated is None:
            raise
        raise translated from error


def explained(error: BaseException) -> GkdRlError | None:
    """This package's error for a fault in the chain of causes; None for other errors and for this package's own."""
    cause = None if isinstance(error, GkdRlError) else error
    while cause is not None:
        if isinstance(cause, BrokenProcessPool):
            return WorkerError(
                "a process of this sweep was killed from outside (or ran out of memory): its unfinished runs are lost, "
                "finished ones are kept. Fewer parallel runs need less memory: hydra.launcher.n_jobs=1."
            )
        problem = _storage_problem(cause)
        if problem is not None:
            return StorageError(problem)
        cause = cause.__cause__
    return None


def _storage_problem(error: BaseException) -> str | None:
    """The file that could not be written, and why; libraries in other languages have the number in their text only."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((one for one in (*_NO_ROOM, *_NO_ACCESS) if f"os error {one})" in str(error)), None)
    if number not in _NO_ROOM and number not in _NO_ACCESS:
        return None
    name = getattr(error, "filename", None)
    shown = "the run's files" if name is None else str(name)
    if number in _NO_ACCESS:
        return f"{shown} cannot be opened or written, {_NO_ACCESS[number]}: {_OTHER_FOLDER}."
    folder = Path.cwd() if name is None else next(one for one in Path(name).absolute().parents if one.exists())
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"{shown} cannot be written, {_NO_ROOM[number]} ({free:,.1f} MiB free in {folder}): free some space, or "
        f"{_OTHER_FOLDER}. Files written before are complete; the run ends here."
    )
