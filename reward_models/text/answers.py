r"""Exact match: is a completion's final answer the reference's, as numbers.

Is a completion one of the texts that are known to be right?

A reward from an exact checker of the task at hand: what it says about a completion and its document or prompt.

Are two answers equal in mathematics? 1/2, 0.5 and \boxed{\frac{1}{2}} are. math-verify tells, in its own process.

Comparing can take for ever (9^9^9^9), in code that no signal interrupts: a process compares, and is ended when its time
is up. math-verify's own time limits work in the main thread alone and are off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Literal

from reward_models.text.equations import recalculate

MARKED = re.compile(r"####[ \t]*([^\n]*)")
IN_WORDS = re.compile(r"\b[Tt]he (?:final )?answer is:?[ \t]*([^\n]*)")
# A minus after a word, a digit or a bracket is a subtraction; commas group by three.
NUMBER = re.compile(r"((?<![\w)\].])-\$?|\$-)?((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")


def numbers(text: str) -> list[Decimal]:
    """Every number of a text, without commas, currency and percent signs; 72, 72.0, $72 and 72% are one number."""
    found = NUMBER.findall(text.replace("\u2212", "-"))
    return [Decimal(("-" if sign else "") + digits.replace(",", "")) for sign, digits in found]


def answer_of(text: str, otherwise: Literal["last_number", "nothing"]) -> Decimal | str | None:
    """What a text gives as its answer: after its first `####`, else `The answer is`, else its last number.

    Args:
        text: a worked solution.
        otherwise: of a text without either: its last number, or nothing.

    Returns:
        A number, behind the last equals sign if there is one; the words in lower case where there is no number; None
        without an answer.
    """
    marked = MARKED.search(text) or IN_WORDS.search(text)
    if marked is not None:
        found = numbers(marked[1].rpartition("=")[2])
        return found[0] if found else marked[1].strip().rstrip(".").casefold() or None
    found = numbers(text) if otherwise == "last_number" else []
    return found[-1] if found else None


class ExactMatch:
    """1 if a completion's final answer equals the reference's, else 0.

    Args:
        otherwise: what counts as the answer of a completion without `####` or `The answer is`.
        calculator: equations of completions are worked out again first, as in the paper's accuracy on GSM8K.
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
        """Compare with `final_answer`, or with the final answers of `reference` where the task has no such column.

        Raises:
            ValueError: neither is there, or an expected answer is empty.
        """
        if final_answer is not None:
            expected = [_given(f"#### {text}") for text in final_answer]
        elif reference is not None:
            expected = [_given(text) for text in reference]
        else:
            raise ValueError("exact match compares with the column final_answer or reference: the task has neither.")
        texts = map(recalculate, completions) if self.calculator else completions
        answers = [answer_of(text, self.otherwise) for text in texts]
        return [float(answer == truth) for answer, truth in zip(answers, expected, strict=True)]


def _given(text: str) -> Decimal | str:
    """The answer of a reference.

    Raises:
        ValueError: it has none.
    """
    answer = answer_of(text, "last_number")
    if answer is None:
        raise ValueError(f"the reference {text[:200]!r} has no final answer: it takes a number, or '#### ANSWER'.")
    return answer


class Accepted:
    """1 if a completion is among its row's accepted texts but for spaces, else 0."""

    bounds = (0.0, 1.0)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], accepted: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """Score completions by the column `accepted`: for each row a list of texts.

        Raises:
            ValueError: a row has none.
        """
        empty = next((i for i, texts in enumerate(accepted) if isinstance(texts, str) or not texts), None)
        if empty is not None:
            raise ValueError(f"row {empty} has accepted={accepted[empty]!r}: it takes a list of at least one text.")
        rows = zip(completions, accepted, strict=True)
        return [float(_plain(text) in map(_plain, texts)) for text, texts in rows]


def _plain(text: str) -> str:
    return " ".join(text.split())


class Checked:
    """One number of a checker's verdict.

    Args:
        checker: judges one completion: `(document, completion) -> verdict`.
        measure: the attribute of the verdict that is the reward.
    """

    def __init__(self, checker: Callable[[str, str], Any], measure: str) -> None:
        self.checker = checker
        self.measure = measure

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], document: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """Score completions against `document`, or against the prompts where the task has no such column.

        Raises:
            ValueError: a verdict has no such number.
        """
        documents = prompts if document is None else document
        verdicts = [self.checker(text, completion) for text, completion in zip(documents, completions, strict=True)]
        try:
            return [float(getattr(verdict, self.measure)) for verdict in verdicts]
        except AttributeError:
            raise ValueError(f"measure={self.measure}: {type(self.checker).__name__} gives no such number.") from None


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
