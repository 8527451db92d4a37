"""Faithfulness: how much of a completion does its document support, by an exact checker of the task at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol


class Verdict(Protocol):
    """What a checker says about one completion; both numbers lie in 0..1."""

    @property
    def supported_share(self) -> float:
        """Supported claims over claims."""
        ...

    @property
    def all_supported(self) -> float:
        """1 if every claim is supported, else 0."""
        ...


class Faithfulness:
    """Reward from a checker `(document, completion) -> Verdict`.

    Args:
        checker: judges one completion.
        measure: which number of the verdict is the reward, in 0..1.
    """

    def __init__(
        self, checker: Callable[[str, str], Verdict], measure: Literal["all_supported", "supported_share"]
    ) -> None:
        if measure not in ("all_supported", "supported_share"):
            raise ValueError(f"measure={measure}: takes all_supported or supported_share.")
        self.checker = checker
        self.measure = measure

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], document: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """Score completions against `document`, or against the prompts where the task has no such column."""
        documents = prompts if document is None else document
        verdicts = [self.checker(text, completion) for text, completion in zip(documents, completions, strict=True)]
        return [float(getattr(verdict, self.measure)) for verdict in verdicts]
