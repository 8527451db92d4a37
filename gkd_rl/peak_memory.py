"""The most memory that a run took: of the GPU's allocator, or of the process on the CPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin anew, so that an earlier run of this process does not count (on a CPU: under Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak since `reset_peak`; on a CPU with Python, its libraries and the data."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        (line,) = [one for one in STATUS.read_text(encoding="utf-8").splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
