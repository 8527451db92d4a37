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

Does a completion's code pass its tests? Runs it, in the sandbox, and only where that was asked for by name.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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


BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(completion: str) -> str:
    """The last fenced block of a completion; all of it where there is none."""
    blocks = BLOCK.findall(completion)
    return blocks[-1] if blocks else completion


class CodeExecution:
    """1 if a completion's code and the tests that follow it come to their end, else 0.

    Args:
        allow_code_execution: must be true: a model's code is run on this machine.
        continues_prompt: the code continues the prompt, as HumanEval's functions do, instead of standing alone.
        seconds: of each run.
        memory_mib: of each process of a run.
        parallel: runs at one time.

    Raises:
        ValueError: the execution was not asked for, or a number is out of range.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        allow_code_execution: bool,
        continues_prompt: bool = False,
        seconds: float = 5.0,
        memory_mib: int = 512,
        parallel: int = 2,
    ) -> None:
        if allow_code_execution is not True:
            raise ValueError(
                f"allow_code_execution={allow_code_execution}: this reward runs code that a model wrote, locked in "
                "(reward_models/code/sandbox.py). If you want that, type reward.components.code.allow_code_execution=true."
            )
        if parallel < 1:
            raise ValueError(f"parallel={parallel}: takes a whole number >= 1.")
        self.limits = Limits(seconds=seconds, memory_mib=memory_mib)
        self.continues_prompt = continues_prompt
        self.parallel = parallel

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], tests: Sequence[str], **columns: Any
    ) -> list[float]:
        """Score completions by the column `tests`: for each row statements that raise unless the code is right.

        Raises:
            SandboxError: code cannot be locked in on this machine.
        """
        starts = prompts if self.continues_prompt else [""] * len(prompts)
        rows = zip(starts, completions, tests, strict=True)
        programs = [f"{start}{code_of(completion)}\n\n{test}\n" for start, completion, test in rows]
        with ThreadPoolExecutor(self.parallel) as pool:
            outcomes = list(pool.map(lambda program: run_python(program, self.limits), programs))
        return [float(outcome.passed) for outcome in outcomes]
