r"""Are two answers equal in mathematics? 1/2, 0.5 and \boxed{\frac{1}{2}} are. math-verify tells, in its own process.

Comparing can take for ever (9^9^9^9), in code that no signal interrupts: a process compares, and is ended when its time
is up. math-verify's own time limits work in the main thread alone and are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

STARTUP = 60.0  # seconds in which the process must have imported sympy


class Maths:
    """1 if a completion's answer equals the reference's, else 0; of several answers the last boxed one counts.

    Args:
        seconds: for one comparison; an answer that takes longer counts as wrong.
    """

    bounds = (0.0, 1.0)

    def __init__(self, seconds: float = 5.0) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds={seconds}: takes a number > 0.")
        self.seconds = seconds
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        final_answer: Sequence[str] | None = None,
        reference: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Compare with `final_answer`, or with the answers of `reference` where the task has no such column.

        Raises:
            ValueError: neither is there, or math-verify finds no answer in one of them.
        """
        truths = reference if final_answer is None else final_answer
        if truths is None:
            raise ValueError("maths compares with the column final_answer or reference: the task has neither.")
        return [self._score(truth, text, i) for i, (truth, text) in enumerate(zip(truths, completions, strict=True))]

    def _score(self, truth: str, text: str, row: int) -> float:
        verdict = self._ask((truth, text))
        if verdict is None:
            raise ValueError(f"row {row}: math-verify finds no answer in the reference {truth[:200]!r}.")
        return verdict

    def _ask(self, pair: tuple[str, str]) -> float | None:
        """1 or 0; None without a truth."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None and self._process is not None
        self._pipe.send(pair)
        if self._pipe.poll(self.seconds):
            try:
                return self._pipe.recv()
            except EOFError:  # it ran out of memory
                pass
        self._process.kill()
        self._process.join()
        return 0.0

    def _start(self) -> None:
        """A new process, ready to compare.

        Raises:
            RuntimeError: it does not start.
        """
        context = SpawnContext()
        self._pipe, theirs = context.Pipe()
        self._process = SpawnProcess(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(STARTUP) or self._pipe.recv() != "ready":
            raise RuntimeError(f"the process that compares answers did not start within {STARTUP:g} seconds.")


def _serve(pipe: Connection) -> None:
    """Compare pairs of texts until the pipe closes."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # it reports every text that it cannot read
    pipe.send("ready")
    while True:
        try:
            truth, text = pipe.recv()
        except EOFError:
            return
        gold = parse(truth, parsing_timeout=0) or parse(f"${truth}$", parsing_timeout=0)
        if not gold:
            pipe.send(None)
            continue
        pipe.send(float(verify(gold, parse(text, parsing_timeout=0), timeout_seconds=None)))
