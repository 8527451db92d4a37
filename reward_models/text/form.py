"""Rewards that check the form of a text: verifiable instructions, and penalties on length and repetition.

`Verifiable` checks instructions that a program can verify, in the manner of IFEval (Zhou et al. 2023, arXiv
2311.07911). `LengthPenalty` and `RepetitionPenalty` shape another reward: they are added to it with a weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

WORD = re.compile(r"\w+(?:['’-]\w+)*")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)


def words_of(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return [word.casefold() for word in WORD.findall(text)]


def _is_json(text: str, _: Any) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _has_counts(text: str, value: Mapping[str, int]) -> bool:
    words = words_of(text)
    return all(words.count(word.casefold()) == times for word, times in value.items())


# Kind of instruction -> check of (text, value of the instruction). An empty text passes upper limits only.
CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, value: len(words_of(text)) <= value,
    "min_words": lambda text, value: len(words_of(text)) >= value,
    "words": lambda text, value: len(words_of(text)) == value,
    "max_sentences": lambda text, value: len(SENTENCE_END.findall(text)) <= value,
    "sentences": lambda text, value: len(SENTENCE_END.findall(text)) == value,
    "bullets": lambda text, value: len(BULLET.findall(text)) == value,
    "lower_case": lambda text, value: text == text.lower() and bool(words_of(text)),
    "upper_case": lambda text, value: text == text.upper() and bool(words_of(text)),
    "include": lambda text, value: set(map(str.casefold, value)) <= set(words_of(text)),
    "exclude": lambda text, value: set(map(str.casefold, value)).isdisjoint(words_of(text)) and bool(text.strip()),
    "count": _has_counts,
    "starts_with": lambda text, value: text.strip().casefold().startswith(value.casefold()),
    "ends_with": lambda text, value: text.strip().casefold().endswith(value.casefold()),
    "no_commas": lambda text, value: "," not in text and bool(text.strip()),
    "json": _is_json,
}


class Verifiable:
    """Instructions of a row that a completion follows, 0..1.

    Args:
        measure: "all": 1 if every instruction is followed, else 0 (IFEval's prompt-level accuracy); "share": the share
            of instructions that are followed.

    Raises:
        ValueError: `measure` is neither.
    """

    bounds = (0.0, 1.0)

    def __init__(self, measure: Literal["all", "share"]) -> None:
        if measure not in ("all", "share"):
            raise ValueError(f"measure={measure}: takes all or share.")
        self.measure = measure

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        instructions: Sequence[Sequence[Mapping[str, Any]]],
        **columns: Any,
    ) -> list[float]:
        """Scores of B completions by the column `instructions`, [B].

        Args:
            prompts: [B], not used.
            completions: [B].
            instructions: [B], each a list of {"kind": a key of `CHECKS`, "value": its value}.
            **columns: not used.

        Raises:
            ValueError: a row has no instructions, or an instruction of an unknown kind.
        """
        rows = zip(completions, instructions, strict=True)
        return [self._score(text, checks, i) for i, (text, checks) in enumerate(rows)]

    def _score(self, text: str, checks: Sequence[Mapping[str, Any]], row: int) -> float:
        if not checks:
            raise ValueError(f"row {row} has no instructions: its list is empty.")
        unknown = [check.get("kind") for check in checks if check.get("kind") not in CHECKS]
        if unknown:
            raise ValueError(f"row {row}: instruction {unknown[0]!r} is not known; kinds are {', '.join(CHECKS)}.")
        followed = [CHECKS[check["kind"]](text, check.get("value")) for check in checks]
        return float(all(followed)) if self.measure == "all" else sum(followed) / len(followed)


class LengthPenalty:
    """0 for n words with shortest <= n <= longest, else linear down to -1.

    max(-1, -(n - longest) / longest) above `longest`, -(shortest - n) / shortest below `shortest`.

    Args:
        longest: in words separated by white space, >= 1.
        shortest: the same, 0 to `longest`.

    Raises:
        ValueError: a limit is out of range.
    """

    bounds = (-1.0, 0.0)

    def __init__(self, longest: int, shortest: int = 0) -> None:
        if longest < 1 or not 0 <= shortest <= longest:
            raise ValueError(f"longest={longest}, shortest={shortest}: takes 0 <= shortest <= longest, longest >= 1.")
        self.longest, self.shortest = longest, shortest

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Penalties of B completions, [B], in -1..0."""
        return [self._penalty(len(text.split())) for text in completions]

    def _penalty(self, words: int) -> float:
        if words > self.longest:
            return -min(1.0, (words - self.longest) / self.longest)
        if words < self.shortest:
            return -(self.shortest - words) / self.shortest
        return 0.0


class RepetitionPenalty:
    """Minus the share of word n-grams that repeat an earlier one, -1..0 (seq-rep-n).

    distinct n-grams / n-grams - 1, after Welleck et al. 2019 (arXiv 1908.04319); 0 for a text of fewer than n words.

    Args:
        n: words in an n-gram, >= 1.

    Raises:
        ValueError: n < 1.
    """

    bounds = (-1.0, 0.0)

    def __init__(self, n: int = 3) -> None:
        if n < 1:
            raise ValueError(f"n={n}: takes a whole number >= 1.")
        self.n = n

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Penalties of B completions, [B], in -1..0."""
        return [self._penalty(text.split()) for text in completions]

    def _penalty(self, words: list[str]) -> float:
        grams = [tuple(words[start : start + self.n]) for start in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
