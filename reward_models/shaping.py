"""What is wrong with a text whatever it says: too long or too short, and repeating itself. Added to another reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class LengthPenalty:
    """0 for texts of `shortest` to `longest` words, and down to -1 in proportion to the words too many or missing.

    Args:
        longest: words above it count as a share of it; -1 at twice as many.
        shortest: words below it count as a share of it; -1 for an empty text.
    """

    bounds = (-1.0, 0.0)

    def __init__(self, longest: int, shortest: int = 0) -> None:
        if longest < 1 or not 0 <= shortest <= longest:
            raise ValueError(f"longest={longest}, shortest={shortest}: takes 0 <= shortest <= longest, longest >= 1.")
        self.longest, self.shortest = longest, shortest

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One penalty for each completion."""
        return [self._penalty(len(text.split())) for text in completions]

    def _penalty(self, words: int) -> float:
        if words > self.longest:
            return -min(1.0, (words - self.longest) / self.longest)
        if words < self.shortest:
            return -(self.shortest - words) / self.shortest
        return 0.0


class RepetitionPenalty:
    """Minus the share of n-grams that repeat an earlier one (seq-rep-n, Welleck et al. 2019), -1 to 0.

    Args:
        n: words of an n-gram.
    """

    bounds = (-1.0, 0.0)

    def __init__(self, n: int = 3) -> None:
        if n < 1:
            raise ValueError(f"n={n}: takes a whole number >= 1.")
        self.n = n

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One penalty for each completion."""
        return [self._penalty(text.split()) for text in completions]

    def _penalty(self, words: list[str]) -> float:
        grams = [tuple(words[start : start + self.n]) for start in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
