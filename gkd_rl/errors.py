"""The package's one family of errors.

Every message names the key, the value, what is allowed and what to type instead; `run.py` prints it without a
traceback.
"""

from __future__ import annotations


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
