"""What a run ran on: versions, revision, devices. Written once beside its numbers, so that they can be reproduced."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from gkd_rl.launched import processes

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
