"""Does a completion's code pass its tests? Runs it, in the sandbox, and only where that was asked for by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reward_models.sandbox import Limits, run_python

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
                "(reward_models/sandbox.py). If you want that, type reward.components.code.allow_code_execution=true."
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
