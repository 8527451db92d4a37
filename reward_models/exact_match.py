"""Exact match: is a completion's final answer the reference's, as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from reward_models.calculator import recalculate

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
