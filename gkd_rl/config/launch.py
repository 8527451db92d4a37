"""SIGTERM and Ctrl-C: a step that has begun is finished and kept, and only then does the run end.

Outside of the steps there is nothing to finish and the run ends at once. A second signal does not wait either.

What `accelerate launch` told this process: its rank, the number of processes, and what is asked for but not served.

Read from the environment, so that a run that its processes cannot share out is refused before torch is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gkd_rl.config import Config
from gkd_rl.config.choices import TeacherPrompts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the run; no Exception, so that it ends a sweep too.

    Attributes:
        number: of the signal.
        kept: what of the run is on disk, in words.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        self.number = number
        self.kept = kept
        super().__init__(f"stopped by {signal.Signals(number).name}{': ' if kept else ''}{kept}")


class StopRequest:
    """What a signal leaves for the end of the step."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._waits = False

    def note(self, number: int, _: FrameType | None) -> None:
        """The handler.

        Raises:
            Stopped: nothing waits for the end of a step, or it was asked before.
        """
        if not self._waits or self.number is not None:
            raise Stopped(number)
        self.number = number
        sys.stderr.write(f"\n{signal.Signals(number).name}: this step is finished and kept; once more ends at once.\n")

    @contextmanager
    def after_the_step(self) -> Iterator[None]:
        """In the block, a signal is noted and does not interrupt."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take the signals over for the block. A thread other than the main one cannot, and leaves them as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


NOT_SERVED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def rank() -> int:
    """Number of this process, from 0."""
    return _told("RANK", alone=0)


def processes() -> int:
    """Processes of this run."""
    return _told("WORLD_SIZE", alone=1)


def place_here() -> tuple[int, int]:
    """Number of this process among those on this machine, and how many they are."""
    return _told("LOCAL_RANK", alone=0), _told("LOCAL_WORLD_SIZE", alone=1)


def is_main_process() -> bool:
    """Rank 0, which alone writes files and speaks."""
    return rank() == 0


def _told(variable: str, alone: int) -> int:
    """A number of the launcher, or what it is without one."""
    return int(os.environ[variable]) if "LOCAL_RANK" in os.environ else alone


def check_launch(config: Config) -> Iterator[str]:
    """Ways to cut a model that are not served, and steps that do not come out even."""
    for variable, name in NOT_SERVED.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            yield (
                f"accelerate launch with {name} is not served: rollouts and the output head read whole weights outside "
                "of the wrapped forward. Launch with whole models in every process: "
                "accelerate launch --config_file conf/accelerate/ddp.yaml."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        yield (
            f"accelerate launch with mixed_precision={precision} is not served: the output head and the rollouts run "
            "outside of the wrapped forward. Leave it at no and set student.dtype=bfloat16 and teacher.dtype=bfloat16."
        )
    if processes() > 1:
        yield from _uneven(config, processes())


def _uneven(config: Config, count: int) -> Iterator[str]:
    """Every process takes an equal share of each step's rows."""
    rows = {"trainer.prompts_per_step": config.trainer.prompts_per_step}
    stages = {"student": config.student.sft, "teacher": None if config.teacher is None else config.teacher.sft}
    rows |= {f"{key}.sft.batch_size": sft.batch_size for key, sft in stages.items() if sft is not None}
    for key, value in rows.items():
        if value % count:
            yield (
                f"{key}={value} cannot be shared out to {count} processes: set {key} to a multiple of {count}, e.g. "
                f"{-(-value // count) * count}, or --num_processes to a divisor of {value}."
            )
    shuffled = config.teacher is not None and config.teacher.prompts is TeacherPrompts.shuffled
    if shuffled and config.trainer.prompts_per_step < 2 * count:
        yield (
            f"trainer.prompts_per_step={config.trainer.prompts_per_step} with teacher.prompts=shuffled leaves each of "
            f"{count} processes no other prompt: set trainer.prompts_per_step to {2 * count} or more, or "
            "teacher.prompts=own."
        )
