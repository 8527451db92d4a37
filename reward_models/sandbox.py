"""Runs Python code that nobody has read: in a process and a directory of its own, with limits on all.

What holds it (Linux user, mount, process, network, IPC namespaces; see `sandbox_child.py`, which sets them up):

- no network: its network namespace has no interface that is up;
- no process survives it or is seen by it: the first process of its process namespace ends with the run, and the kernel
  kills all others with it, whatever sessions they made. How many there may be at one time is limited;
- it writes nowhere but into an empty directory in memory, of limited size, that goes away with it; everything else is
  mounted read-only. Root becomes `nobody` first;
- CPU time, wall time, memory of each process, size of files and of its output are limited; it gets no environment and
  no input.

Its verdict is a random word that is given to the process when the code has come to its end, so that leaving early
(`os._exit(0)`, `sys.exit()`) or printing something does not pass. What is not prevented: reading files that everybody
may read, and code that was written against this very file looking for the word among its open files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["passed", "failed", "left", "timed_out", "killed"]
CHILD = Path(__file__).with_name("sandbox_child.py")
GRACE = 5.0  # seconds for starting and ending beside the code's own


class SandboxError(RuntimeError):
    """The machine does not give what keeps the code in."""


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        seconds: of wall time, and of CPU time of each process.
        memory_mib: address space of each process.
        file_mib: all files together.
        processes: at one time, threads included.
        output_bytes: of what it prints; the rest is dropped.
    """

    seconds: float = 5.0
    memory_mib: int = 512
    file_mib: int = 16
    processes: int = 16
    output_bytes: int = 4096

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"limits.{name}={value}: takes a number > 0.")


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: passed: the code came to its end without an exception; failed: with one; left: it ended early without;
            timed_out: its time was up; killed: by a signal, e.g. for CPU time or by itself.
        output: the beginning of what it printed, traceback included.
    """

    status: Status
    output: str

    @property
    def passed(self) -> bool:
        """Whether the code came to its end."""
        return self.status == "passed"


def run_python(code: str, limits: Limits | None = None) -> Outcome:
    """Run a program, at most `limits.seconds` and a little.

    Raises:
        SandboxError: this machine does not let the code be locked in; nothing was run then.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="sandbox_") as folder:
        os.chmod(folder, 0o755)  # a place to mount on; what is written goes into memory
        request = {"code": code, "limits": asdict(limits), "folder": folder}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            told, complaint = process.communicate(json.dumps(request).encode(), timeout=limits.seconds + GRACE)
        except subprocess.TimeoutExpired:
            return Outcome("timed_out", "")
        finally:
            _end(process)
    try:
        verdict = json.loads(told)
    except ValueError:
        raise SandboxError(_refusal(complaint.decode(errors="replace"))) from None
    if "refused" in verdict:
        raise SandboxError(_refusal(verdict["refused"]))
    return Outcome(verdict["status"], verdict["output"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it; the kernel kills what it started (PR_SET_PDEATHSIG, then the process namespace)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _refusal(reason: str) -> str:
    return (
        f"code cannot be locked in on this machine, so that it is not run: {reason.strip()[-500:]} "
        "It takes Linux 5.12 or later with user namespaces (in a container: without the seccomp profile that forbids "
        "unshare and mount, e.g. docker run --security-opt seccomp=unconfined), and a Python that everybody may read."
    )
