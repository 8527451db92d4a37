"""Out of memory: which part of the memory plan is the largest, and the setting that makes it smaller."""

from __future__ import annotations

import functools
import gc
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator

from gkd_rl import build
from gkd_rl.build_plan import longest, plan_memory
from gkd_rl.build_teacher import has_weights
from gkd_rl.config import Config
from gkd_rl.errors import MemoryShortage
from gkd_rl.memory_plan import GIB, MemoryPlan
from gkd_rl.tasks.task import Task

P = ParamSpec("P")
T = TypeVar("T")
CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; PyTorch's allocator on the CPU has no class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in CPU_ALLOCATOR)


def naming_the_largest_part(run: Callable[P, T]) -> Callable[P, T]:
    """A run whose lack of memory ends as one message.

    Args:
        run: takes the configuration and the task first.
    """

    @functools.wraps(run)
    def named(*arguments: P.args, **others: P.kwargs) -> T:
        try:
            return run(*arguments, **others)
        except Exception as error:
            if not is_shortage(error):
                raise
            said = str(error).strip().partition("\n")[0][:300] or type(error).__name__
            traceback.clear_frames(error.__traceback__)  # they hold the run's tensors
        gc.collect()
        torch.cuda.empty_cache()
        raise MemoryShortage(f"out of memory ({said}). {_advice(*arguments[:2])}")

    return named


def _advice(config: Any, task: Any) -> str:
    """What the plan says, where there is memory enough to make one."""
    doctor = "python -m gkd_rl.doctor with the same settings shows the memory of every stage."
    try:
        plan = _plan(config, task)
    except Exception as error:
        if not is_shortage(error):
            raise
        return f"There is not enough left to say what took it; {doctor}"
    return (
        f"The plan's peak is {plan.peak / GIB:.2f} GiB of {plan.available / GIB:.2f} GiB ({plan.device}), in "
        f"{plan.largest.name}; {plan.advice()}. {doctor}"
    )


def _plan(config: Config, task: Task) -> MemoryPlan:
    device, settings = Accelerator().device, config.teacher
    codec, _ = build.build_codecs(config, settings if has_weights(settings) else None, task, device)
    return plan_memory(config, longest(config, codec, task.examples("train")), device, codec.tokenizer)
