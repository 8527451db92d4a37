"""One maker for each entry of a cache: of several processes that need it, one makes it and the others wait.

The lock is the kernel's (flock), so that a process that dies, however it dies, leaves none behind; its file stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def entry_lock(entry: Path) -> Iterator[None]:
    """Hold the lock of `entry`, a folder that may not be there yet; look for it again once the lock is held.

    Args:
        entry: its lock is the file beside it with the suffix `.lock`.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for %s, which another process makes ...", entry)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
