"""The process environment of `accelerate launch` (rank, number of processes) and the signals that stop a run.

The environment is read from variables, so that a configuration can be checked before torch is imported.

SIGTERM and Ctrl-C end a run after the current step, which is completed and saved. Outside of training steps, and at a
second signal, the run ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# --- processes -------------------------------------------------------------------------------------------------------


def rank() -> int:
    """Global rank of this process, from 0."""
    return _launch_variable("RANK", default=0)


def processes() -> int:
    """Number of processes of this run."""
    return _launch_variable("WORLD_SIZE", default=1)


def local_rank_and_size() -> tuple[int, int]:
    """Rank of this process among those on this machine, and their number."""
    return _launch_variable("LOCAL_RANK", default=0), _launch_variable("LOCAL_WORLD_SIZE", default=1)


def is_main_process() -> bool:
    """Rank 0, the only process that writes files and prints."""
    return rank() == 0


def _launch_variable(name: str, default: int) -> int:
    """A number from the launcher's environment; `default` in a process that no launcher started."""
    return int(os.environ[name]) if "LOCAL_RANK" in os.environ else default


# --- signals ---------------------------------------------------------------------------------------------------------

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the run. Not an Exception, so that it also ends a sweep.

    Attributes:
        number: of the signal.
        kept: what of the run is on disk, for the message.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        self.number = number
        self.kept = kept
        super().__init__(f"stopped by {signal.Signals(number).name}{': ' if kept else ''}{kept}")


class StopRequest:
    """Handler of the stop signals.

    Attributes:
        number: of the signal that was received during a step; None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """The signal handler.

        Raises:
            Stopped: no step is running, or a signal was received before.
        """
        if not self._deferred or self.number is not None:
            raise Stopped(number)
        self.number = number
        name = signal.Signals(number).name
        sys.stderr.write(f"\n{name}: the run ends after this step, which is saved; a second signal ends it now.\n")

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Within the block a first signal is recorded in `number` and does not interrupt."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


@contextmanager
def handling_signals() -> Iterator[StopRequest]:
    """Install the handler for the block. In a thread other than the main one, signals stay as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
