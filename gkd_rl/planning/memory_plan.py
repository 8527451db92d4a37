"""The most memory that a run took: of the GPU's allocator, or of the process on the CPU.

Bytes of the tensors that are alive at one time, counted while code runs; on fake tensors nothing is computed.

What the stages of a run take in memory, as numbers: what stays, and what each phase takes on top of it.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class LiveMemory(TorchDispatchMode):
    """Within it, storages that operations make are counted until they are freed.

    Attributes:
        now: bytes alive.
        peak: the most of them at one time.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """`held`: tensors that are there already and do not count, e.g. weights."""
        super().__init__()
        self.now = self.peak = 0
        self._held = [tensor.untyped_storage() for tensor in held]  # kept, so that no other storage takes their place
        self._sizes = {storage._cdata: 0 for storage in self._held}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what is new in its result."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


GIB = 2**30


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt and of the longest completion."""

    prompt: int
    completion: int

    def tokens(self, completions: int, per_prompt: int) -> int:
        """Of a micro-batch of the longest texts: each prompt once, and its completions."""
        return -(-completions // per_prompt) * self.prompt + completions * self.completion

    def completions_in(self, tokens: int, per_prompt: int, most: int) -> int:
        """How many of `most` longest completions a micro-batch of so many tokens has; at least 1."""
        found = 1
        while found < most and self.tokens(found + 1, per_prompt) <= tokens:
            found += 1
        return found


INSTEAD = {  # part of the memory -> what makes it smaller
    "activations": "lower trainer.micro_batch_size, or set trainer.gradient_checkpointing=true",
    "head chunks and backward": "lower trainer.head_chunk_tokens",
    "states and head chunks": "lower trainer.head_chunk_tokens or evaluation.batch_size",
    "key-value cache": "lower trainer.prompts_per_step (training) or evaluation.batch_size (evaluation)",
    "teacher at full precision": "set teacher.audit_prompts=0",
    "teacher": "set teacher.quantization=int8 or nf4, or teacher.offload=true",
    "optimiser": "set adapter=lora, or trainer.optimizer=adafactor",
    "gradients": "set adapter=lora",
    "initial student": "set adapter=lora",
}


@dataclass(frozen=True)
class StagePlan:
    """Bytes of one stage of a run.

    Attributes:
        name: of the stage.
        held: what stays throughout, by part.
        phases: what each phase takes on top of it, by part; phases follow one another.
    """

    name: str
    held: dict[str, int]
    phases: dict[str, dict[str, int]]

    @property
    def peak(self) -> int:
        """Bytes of the largest phase and of what stays."""
        return sum(self.held.values()) + max((sum(parts.values()) for parts in self.phases.values()), default=0)

    @property
    def widest(self) -> str:
        """The phase that takes the most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))


@dataclass(frozen=True)
class MemoryPlan:
    """A run's stages, on one device.

    Attributes:
        device: `cpu` or `cuda`.
        available: bytes that the run may take.
        process: bytes that Python and its libraries take of them.
        holes: what the allocator of the C library keeps of freed tensors, as a share of the widest phase; 0 on a GPU.
        stages: in the order in which they run.
        micro_batch_sizes: completions of the longest texts, by stage; chosen where nothing was set.
        tokens_per_micro_batch: tokens of these, of the stages where it was chosen.
    """

    device: str
    available: int
    process: int
    holes: float
    stages: tuple[StagePlan, ...]
    micro_batch_sizes: dict[str, int]
    tokens_per_micro_batch: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes at the peak of the run."""
        return max(self.of(stage) for stage in self.stages)

    def of(self, stage: StagePlan) -> int:
        """Bytes at the peak of a stage, with what is there in every one of them."""
        held = sum(stage.held.values())
        return self.process + held + int((1 + self.holes) * (stage.peak - held))

    @property
    def largest(self) -> StagePlan:
        """The stage with the peak."""
        return max(self.stages, key=self.of)

    def advice(self) -> str:
        """The largest part at the peak, and the setting that makes it smaller."""
        stage = self.largest
        parts = {**stage.held, **(stage.phases[stage.widest] if stage.phases else {})}
        name = max(parts, key=lambda part: parts[part])
        kind = "teacher" if name.startswith("teacher in ") else name
        return f"most of it is {name} ({_gib(parts[name]).strip()}): {INSTEAD.get(kind, 'take a smaller model')}"


def plan_lines(plan: MemoryPlan) -> list[str]:
    """The plan as a table: stages, what stays in them, and what each phase takes on top; the largest are marked."""
    lines = []
    for stage in plan.stages:
        mark = "  <- largest" if stage is plan.largest else ""
        lines.append(f"  {stage.name:<34}{_gib(plan.of(stage))}{mark}")
        lines += [f"    {name:<32}{_gib(size)}" for name, size in stage.held.items()]
        for name, parts in stage.phases.items():
            words = ", ".join(f"{part} {_gib(size).strip()}" for part, size in parts.items())
            mark = "*" if name == stage.widest else " "
            lines.append(f"   {mark}{name + ':':<32}{_gib(sum(parts.values()))}  {words}")
    if plan.process:
        lines.append(f"  {'Python, its libraries, the data':<34}{_gib(plan.process)}  in each stage")
        lines.append(f"  holes that the C allocator leaves: {plan.holes:.0%} of the widest phase, in each stage")
    sizes = [f"{key}.micro_batch_size={size}" for key, size in plan.micro_batch_sizes.items()]
    sizes += [f"{key}.tokens_per_micro_batch={size}" for key, size in plan.tokens_per_micro_batch.items()]
    return [*lines, f"  planned for {', '.join(sizes)}"]


def _gib(size: float) -> str:
    return f"{size / GIB:8.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:8.2f} MiB"
