"""A reward from an exact checker of the task at hand: what it says about a completion and its document or prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


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
