"""SIGTERM and Ctrl-C: a step that has begun is finished and kept, and only then does the run end.

Outside of the steps there is nothing to finish and the run ends at once. A second signal does not wait either.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the run; no Exception, so that it ends a sweep too.

    Attributes:
        number: of the signal.
        kept: what of the run is on disk, in words.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        self.number = number
        self.kept = kept
        super().__init__(f"stopped by {signal.Signals(number).name}{': ' if kept else ''}{kept}")


class StopRequest:
    """What a signal leaves for the end of the step."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._waits = False

    def note(self, number: int, _: FrameType | None) -> None:
        """The handler.

        Raises:
            Stopped: nothing waits for the end of a step, or it was asked before.
        """
        if not self._waits or self.number is not None:
            raise Stopped(number)
        self.number = number
        sys.stderr.write(f"\n{signal.Signals(number).name}: this step is finished and kept; once more ends at once.\n")

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """In the block, a signal is noted and does not interrupt."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take the signals over for the block. A thread other than the main one cannot, and leaves them as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
