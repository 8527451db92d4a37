r"""Rewards for right answers: equal numbers, equal mathematics, an accepted text, or the verdict of a task's checker.

- `ExactMatch`: the final answer of a worked solution is the same number as the reference's (GSM8K accuracy).
- `Maths`: the answers are mathematically equal, as 1/2, 0.5 and \boxed{\frac{1}{2}} are (library math-verify).
- `Accepted`: the completion is one of the texts that are known to be right.
- `Checked`: an exact checker of the task scores the completion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Literal

from reward_models.text.equations import recalculate

HASHES = re.compile(r"####[ \t]*([^\n]*)")
SENTENCE = re.compile(r"\b[Tt]he (?:final )?answer is:?[ \t]*([^\n]*)")
# A minus after a word, a digit or a bracket is a subtraction; commas group by three.
NUMBER = re.compile(r"((?<![\w)\].])-\$?|\$-)?((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
STARTUP = 60.0  # seconds that the process of `Maths` has to import sympy


def numbers(text: str) -> list[Decimal]:
    """Every number of a text, without commas, currency and percent signs: 72, 72.0, $72 and 72% are equal."""
    found = NUMBER.findall(text.replace("\u2212", "-"))
    return [Decimal(("-" if sign else "") + digits.replace(",", "")) for sign, digits in found]


def answer_of(text: str, otherwise: Literal["last_number", "nothing"]) -> Decimal | str | None:
    """The final answer of a worked solution: after its first `####`, else after `The answer is`, else by `otherwise`.

    Args:
        text: the solution.
        otherwise: answer of a text without either marker: its last number, or nothing.

    Returns:
        The first number after the marker, or after the last equals sign there; the text after the marker in lower case
        if it has no number; None without an answer.
    """
    marked = HASHES.search(text) or SENTENCE.search(text)
    if marked is not None:
        found = numbers(marked[1].rpartition("=")[2])
        return found[0] if found else marked[1].strip().rstrip(".").casefold() or None
    found = numbers(text) if otherwise == "last_number" else []
    return found[-1] if found else None


class ExactMatch:
    """1 if the final answer of a completion equals the reference's, else 0.

    Args:
        otherwise: the answer of a completion without `####` or `The answer is`: last_number or nothing.
        calculator: first recompute the equations of the completion (`reward_models.text.equations`), as the GKD paper's
            accuracy on GSM8K does (section 4.3).

    Raises:
        ValueError: `otherwise` is neither.
    """

    bounds = (0.0, 1.0)

    def __init__(self, otherwise: Literal["last_number", "nothing"], calculator: bool = False) -> None:
        if otherwise not in ("last_number", "nothing"):
            raise ValueError(f"otherwise={otherwise}: takes last_number or nothing.")
        self.otherwise: Literal["last_number", "nothing"] = otherwise
        self.calculator = calculator

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        final_answer: Sequence[str] | None = None,
        reference: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Scores of B completions, [B].

        Args:
            prompts: [B], not used.
            completions: [B].
            final_answer: expected answers, [B]; None: the final answers of `reference`.
            reference: worked solutions, [B].
            **columns: not used.

        Raises:
            ValueError: both columns are missing, or an expected answer is empty.
        """
        if final_answer is not None:
            expected = [_expected(f"#### {text}") for text in final_answer]
        elif reference is not None:
            expected = [_expected(text) for text in reference]
        else:
            raise ValueError("exact match compares with the column final_answer or reference: the task has neither.")
        texts = map(recalculate, completions) if self.calculator else completions
        answers = [answer_of(text, self.otherwise) for text in texts]
        return [float(answer == truth) for answer, truth in zip(answers, expected, strict=True)]


def _expected(text: str) -> Decimal | str:
    """The final answer of a reference.

    Raises:
        ValueError: it has none.
    """
    answer = answer_of(text, "last_number")
    if answer is None:
        raise ValueError(f"the reference {text[:200]!r} has no final answer: it takes a number, or '#### ANSWER'.")
    return answer


class Accepted:
    """1 if a completion equals one of its row's accepted texts, white space aside, else 0."""

    bounds = (0.0, 1.0)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], accepted: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """Scores of B completions, [B].

        Args:
            prompts: [B], not used.
            completions: [B].
            accepted: the texts that are right, [B] lists.
            **columns: not used.

        Raises:
            ValueError: a row has no accepted text.
        """
        empty = next((i for i, texts in enumerate(accepted) if isinstance(texts, str) or not texts), None)
        if empty is not None:
            raise ValueError(f"row {empty} has accepted={accepted[empty]!r}: it takes a list of at least one text.")
        rows = zip(completions, accepted, strict=True)
        return [float(_normalised(text) in map(_normalised, texts)) for text, texts in rows]


def _normalised(text: str) -> str:
    return " ".join(text.split())


class Checked:
    """One number of the verdict of an exact checker.

    Args:
        checker: `(document, completion) -> verdict`.
        measure: attribute of the verdict that is the reward.
    """

    def __init__(self, checker: Callable[[str, str], Any], measure: str) -> None:
        self.checker = checker
        self.measure = measure

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], document: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """Scores of B completions against `document`, or against the prompts if the task has no such column, [B].

        Raises:
            ValueError: the verdict has no attribute `measure`.
        """
        documents = prompts if document is None else document
        verdicts = [self.checker(text, completion) for text, completion in zip(documents, completions, strict=True)]
        try:
            return [float(getattr(verdict, self.measure)) for verdict in verdicts]
        except AttributeError:
            raise ValueError(
                f"measure={self.measure}: the verdict of {type(self.checker).__name__} has no such number."
            ) from None


class Maths:
    """1 if the answer of a completion equals the reference's mathematically, else 0; the last boxed answer counts.

    A comparison may never end (9^9^9^9), in code that no signal interrupts. It therefore runs in a process of its
    own, which is killed when its time is up. math-verify's own time limits work in the main thread only and are off.

    Args:
        seconds: for one comparison; an answer that takes longer counts as wrong.

    Raises:
        ValueError: seconds <= 0.
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
        """Scores of B completions, [B].

        Args:
            prompts: [B], not used.
            completions: [B].
            final_answer: expected answers, [B]; None: the answers of `reference`.
            reference: worked solutions, [B].
            **columns: not used.

        Raises:
            ValueError: both columns are missing, or math-verify finds no answer in an expected one.
        """
        truths = reference if final_answer is None else final_answer
        if truths is None:
            raise ValueError("maths compares with the column final_answer or reference: the task has neither.")
        return [self._score(truth, text, i) for i, (truth, text) in enumerate(zip(truths, completions, strict=True))]

    def _score(self, truth: str, text: str, row: int) -> float:
        verdict = self._compare(truth, text)
        if verdict is None:
            raise ValueError(f"row {row}: math-verify finds no answer in the reference {truth[:200]!r}.")
        return verdict

    def _compare(self, truth: str, text: str) -> float | None:
        """1 if the answers are equal, else 0; None if `truth` has no answer."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None and self._process is not None
        self._pipe.send((truth, text))
        if self._pipe.poll(self.seconds):
            try:
                return self._pipe.recv()
            except EOFError:  # the process ran out of memory
                pass
        self._process.kill()
        self._process.join()
        return 0.0

    def _start(self) -> None:
        """Start the process that compares.

        Raises:
            RuntimeError: it is not ready within `STARTUP` seconds.
        """
        context = SpawnContext()
        self._pipe, theirs = context.Pipe()
        self._process = SpawnProcess(target=_compare_pairs, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(STARTUP) or self._pipe.recv() != "ready":
            raise RuntimeError(f"the process that compares answers did not start within {STARTUP:g} seconds.")


def _compare_pairs(pipe: Connection) -> None:
    """Receive pairs (truth, text) and send 1 for equal, 0 for different, None for no answer, until the pipe closes."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # math-verify logs every text that it cannot parse
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
