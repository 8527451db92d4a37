"""run.json: whether the run of a folder still goes on, has ended, or died without a word.

Written at the start and at the end, with nothing in it that tells whose machine it was: a hash of the machine's name,
the process's number and when it began. A process of that number that began at another time is another one.

What a run ran on: versions, revision, devices. Written once beside its numbers, so that they can be reproduced.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from gkd_rl.config.launch import is_main_process, processes
from gkd_rl.errors import GkdRlError
from gkd_rl.outputs.json_files import write_json

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


PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GIT_SECONDS = 10


def _version(package: str) -> str | None:
    """Installed version, None where the package is absent; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in `folder`, None where git, a repository or an answer in time is missing."""
    # Inside a git hook GIT_DIR points at the hook's repository, which need not be this one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def git_record(file: Path) -> dict[str, Any] | None:
    """Revision of the checkout that tracks `file`, and whether it has uncommitted or new files.

    A package installed into an environment that lies inside somebody else's repository is not tracked there: None.

    Args:
        file: a file of the package.

    Returns:
        `revision` (40 hex digits) and `dirty` (None if git gave no answer), or None without a checkout.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    revision = _git(file.parent, "rev-parse", "--verify", "HEAD")
    if revision is None:
        return None
    top = _git(file.parent, "rev-parse", "--show-toplevel")
    status = _git(Path(top) if top else file.parent, "status", "--porcelain")
    return {"revision": revision, "dirty": None if status is None else bool(status)}


def _cuda_devices() -> list[str] | None:
    """Names of the CUDA devices; None where torch is not imported yet, because asking would take seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _cpu_name() -> str:
    """As Linux tells it; elsewhere what the platform says."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def environment_record() -> dict[str, Any]:
    """Versions, git revision and devices as plain values for JSON.

    Returns:
        `python`, `platform`, `packages` (name to version or None), `git` (see `git_record`), `cpu`, `cpu_count`,
        `cuda_devices` (None without CUDA, or before torch was imported), `processes` of this run.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "git": git_record(Path(__file__).resolve()),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "cuda_devices": _cuda_devices(),
        "processes": processes(),
    }
