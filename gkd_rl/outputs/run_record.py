"""run.json, the state of a run (running, ended, killed), and the record of its environment.

run.json is written at the start and at the end. It identifies the process by a hash of the machine's name, the process
number and its start time, without personal data; a process with that number and another start time is another process.

The environment record (versions, git revision, devices) is written once beside the results, for reproduction.
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
_GROWING_FILES = (RECORD, "metrics.jsonl", "samples.jsonl", "gkd_rl.log")
_QUIET_SECONDS = 3600.0  # without a new line, after which a run on another machine counts as dead
_CLOCK_SECONDS = 2.0  # tolerance of a process's start time: the clock may have been set in between
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GIT_SECONDS = 10

# --- run.json --------------------------------------------------------------------------------------------------------


def machine_id() -> str:
    """A hash that is the same for all processes of this machine or container, and does not disclose its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Write run.json at the start and at the end of the block, with the first line of an error that ended it.

    Only the main process of a run writes.
    """
    if not is_main_process():
        yield
        return
    own = psutil.Process()
    record: dict[str, Any] = {
        "status": "running",
        "machine": machine_id(),
        "pid": own.pid,
        "process": own.create_time(),
    }
    record |= {"started": time.time(), "ended": None, "error": None}
    write_json(folder / RECORD, record)
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # on a full disk the first error is reported
            write_json(folder / RECORD, record | {"status": "failed", "ended": time.time(), "error": error_line(error)})
        raise
    write_json(folder / RECORD, record | {"status": "finished", "ended": time.time()})


def error_line(error: BaseException) -> str:
    """An error as one line for a table of runs: the class, unless it is this package's, and the first line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] + (f" (and {len(lines) - 1} more lines)" if len(lines) > 1 else "")
    return text if isinstance(error, GkdRlError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def is_alive(record: dict[str, Any], folder: Path) -> bool:
    """Whether the process of a run.json is running; on another machine, whether its files grew in the last hour."""
    if record["status"] != "running":
        return False
    if record["machine"] != machine_id():
        changed = [(folder / name).stat().st_mtime for name in _GROWING_FILES if (folder / name).exists()]
        return time.time() - max(changed) < _QUIET_SECONDS
    try:
        process = psutil.Process(record["pid"])
        began, dead = process.create_time(), process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    return not dead and abs(began - record["process"]) < _CLOCK_SECONDS


# --- the environment -------------------------------------------------------------------------------------------------


def environment_record() -> dict[str, Any]:
    """Versions, git revision and devices as plain values for JSON.

    Returns:
        `python`, `platform`, `packages` (name to version or None), `git` (see `git_record`), `cpu`, `cpu_count`,
        `cuda_devices` (None without CUDA, or before torch is imported), `processes` of this run.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "git": git_record(Path(__file__).resolve()),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "cuda_devices": _cuda_devices(),
        "processes": processes(),
    }


def _version(package: str) -> str | None:
    """Installed version, None if the package is absent; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_record(file: Path) -> dict[str, Any] | None:
    """Revision of the checkout that tracks `file`, and whether it has uncommitted or new files.

    None for a package that is installed into an environment within another repository, which does not track it.

    Args:
        file: a file of the package.

    Returns:
        `revision` (40 hex digits) and `dirty` (None if git did not answer), or None without a checkout.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    revision = _git(file.parent, "rev-parse", "--verify", "HEAD")
    if revision is None:
        return None
    top = _git(file.parent, "rev-parse", "--show-toplevel")
    status = _git(Path(top) if top else file.parent, "status", "--porcelain")
    return {"revision": revision, "dirty": None if status is None else bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in `folder`; None without git, without a repository, or after the time limit."""
    # In a git hook GIT_DIR is the hook's repository, which need not be this one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu_name() -> str:
    """Model name from /proc/cpuinfo; on other systems that of `platform`."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cuda_devices() -> list[str] | None:
    """Names of the CUDA devices; None if torch is not imported, because its import takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
