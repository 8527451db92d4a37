"""run.json: whether the run of a folder still goes on, has ended, or died without a word.

Written at the start and at the end, with nothing in it that tells whose machine it was: a hash of the machine's name,
the process's number and when it began. A process of that number that began at another time is another one.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from gkd_rl.errors import GkdRlError
from gkd_rl.json_files import write_json
from gkd_rl.launched import is_main_process

RECORD = "run.json"
HEARTBEATS = (RECORD, "metrics.jsonl", "samples.jsonl", "gkd_rl.log")
QUIET_SECONDS = 3600.0  # a run on another machine is taken for dead after so long without a line
_CLOCK_SECONDS = 2.0  # a process's start is told by a clock that may be set in between


def machine() -> str:
    """A word that is the same for all processes of this machine (or container), and is not its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Write run.json when the block begins and when it ends, with the error's first line if one ended it.

    The main process writes; another one of the same run does nothing here.
    """
    if not is_main_process():
        yield
        return
    own = psutil.Process()
    record: dict[str, Any] = {"status": "running", "machine": machine(), "pid": own.pid, "process": own.create_time()}
    record |= {"started": time.time(), "ended": None, "error": None}
    write_json(folder / RECORD, record)
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # on a full disk the first error is the one to tell
            write_json(folder / RECORD, record | {"status": "failed", "ended": time.time(), "error": one_line(error)})
        raise
    write_json(folder / RECORD, record | {"status": "finished", "ended": time.time()})


def one_line(error: BaseException) -> str:
    """What a table of runs shows of an error: its kind, unless it is one of ours, and the first line of its text."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] + (f" (and {len(lines) - 1} more lines)" if len(lines) > 1 else "")
    return text if isinstance(error, GkdRlError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def is_alive(record: dict[str, Any], folder: Path) -> bool:
    """Whether the process of a run.json still runs; of another machine's, whether its files grew in the last hour."""
    if record["status"] != "running":
        return False
    if record["machine"] != machine():
        changed = [(folder / name).stat().st_mtime for name in HEARTBEATS if (folder / name).exists()]
        return time.time() - max(changed) < QUIET_SECONDS
    try:
        process = psutil.Process(record["pid"])
        began, dead = process.create_time(), process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    return not dead and abs(began - record["process"]) < _CLOCK_SECONDS
