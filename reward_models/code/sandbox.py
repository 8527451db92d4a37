"""A sandbox for untrusted Python code, and the reward that runs generated code in it.

`run_python` runs a program in a process and a directory of its own. Isolation comes from Linux namespaces (user, mount,
process, network, IPC), which `sandbox_child.py` sets up:

- no network: the network namespace has no interface that is up;
- no process outlives the run or can be seen from it: the first process of the process namespace ends with the run, and
  the kernel then kills all others, whatever sessions they made; their number is limited;
- no writing but to an empty directory in memory, of limited size, that is discarded afterwards; everything else is
  mounted read-only. Root first becomes `nobody`;
- CPU time, wall time, memory of each process, size of files and of the output are limited; there is no environment and
  no input.

A run passes only if the process hands back a random token, which it reads after the last line of the code: exiting
early (`os._exit(0)`, `sys.exit()`) or printing something does not pass. Two things are not prevented: reading files
that every user may read, and code written against this module that searches its open files for the token.

`CodeExecution` scores a completion by its tests, and runs code only if its settings allow it explicitly.
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

Status = Literal["passed", "failed", "exited", "timed_out", "killed"]
CHILD = Path(__file__).with_name("sandbox_child.py")
GRACE = 5.0  # seconds beside the code's own, to start and to end
BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


class SandboxError(RuntimeError):
    """This machine cannot isolate the code; it was not run."""


@dataclass(frozen=True)
class Limits:
    """Limits of a run.

    Attributes:
        seconds: of wall time, and of CPU time of each process.
        memory_mib: address space of each process.
        file_mib: all files together, and the size of one.
        processes: at one time, threads included.
        output_bytes: of stdout and stderr together; the rest is dropped.

    Raises:
        ValueError: a limit is not positive.
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
    """Result of a run.

    Attributes:
        status: "passed": the last line was reached; "failed": an exception was raised; "exited": the process exited
            before the last line; "timed_out": its wall time was used up; "killed": by a signal, e.g. for CPU time.
        output: the beginning of stdout and stderr, traceback included.
    """

    status: Status
    output: str

    @property
    def passed(self) -> bool:
        """Whether the last line of the code was reached."""
        return self.status == "passed"


def run_python(code: str, limits: Limits | None = None) -> Outcome:
    """Run a program in the sandbox, for at most `limits.seconds` plus `GRACE` seconds.

    Args:
        code: the program; it has the standard library only.
        limits: None: the defaults of `Limits`.

    Raises:
        SandboxError: this machine cannot isolate the code; it was not run.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="sandbox_") as folder:
        os.chmod(folder, 0o755)  # a mount point; what the code writes stays in memory
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
            output, errors = process.communicate(json.dumps(request).encode(), timeout=limits.seconds + GRACE)
        except subprocess.TimeoutExpired:
            return Outcome("timed_out", "")
        finally:
            _end(process)
    try:
        verdict = json.loads(output)
    except ValueError:
        raise SandboxError(_refusal(errors.decode(errors="replace"))) from None
    if "refused" in verdict:
        raise SandboxError(_refusal(verdict["refused"]))
    return Outcome(verdict["status"], verdict["output"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process; the kernel kills its descendants (PR_SET_PDEATHSIG, then the process namespace)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _refusal(reason: str) -> str:
    return (
        f"code cannot be isolated on this machine and is not run: {reason.strip()[-500:]} "
        "It takes Linux 5.12 or later with user namespaces (in a container: without the seccomp profile that forbids "
        "unshare and mount, e.g. docker run --security-opt seccomp=unconfined), and a Python that every user may read."
    )


def code_of(completion: str) -> str:
    """The last fenced code block of a completion; the whole completion without one."""
    blocks = BLOCK.findall(completion)
    return blocks[-1] if blocks else completion


class CodeExecution:
    """1 if the code of a completion, followed by its tests, passes in the sandbox, else 0.

    Args:
        allow_code_execution: must be true, because generated code is run on this machine.
        continues_prompt: the code continues the prompt, as HumanEval's functions do (Chen et al. 2021, arXiv
            2107.03374), instead of standing alone.
        seconds: wall time of each run.
        memory_mib: of each process of a run.
        parallel: runs at one time.

    Raises:
        ValueError: execution is not allowed, or a number is out of range.
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
                f"allow_code_execution={allow_code_execution}: this reward runs generated code, in a sandbox "
                "(reward_models/code/sandbox.py). To allow that, type "
                "reward.components.code.allow_code_execution=true."
            )
        if parallel < 1:
            raise ValueError(f"parallel={parallel}: takes a whole number >= 1.")
        self.limits = Limits(seconds=seconds, memory_mib=memory_mib)
        self.continues_prompt = continues_prompt
        self.parallel = parallel

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], tests: Sequence[str], **columns: Any
    ) -> list[float]:
        """Scores of B completions, [B].

        Args:
            prompts: [B], used if the code continues the prompt.
            completions: [B], see `code_of`.
            tests: [B], statements that raise unless the code is right.
            **columns: not used.

        Raises:
            SandboxError: this machine cannot isolate the code.
        """
        starts = prompts if self.continues_prompt else [""] * len(prompts)
        rows = zip(starts, completions, tests, strict=True)
        programs = [f"{start}{code_of(completion)}\n\n{test}\n" for start, completion, test in rows]
        with ThreadPoolExecutor(self.parallel) as pool:
            outcomes = list(pool.map(lambda program: run_python(program, self.limits), programs))
        return [float(outcome.passed) for outcome in outcomes]
