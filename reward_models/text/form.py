"""Instructions whose fulfilment a program can tell (in the manner of IFEval, Zhou et al. 2023, arXiv 2311.07911).

What is wrong with a text whatever it says: too long or too short, and repeating itself. Added to another reward.
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
    """Words without punctuation, in lower case."""
    return [word.casefold() for word in WORD.findall(text)]


def _is_json(text: str, _: Any) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _counted(text: str, value: Mapping[str, int]) -> bool:
    words = words_of(text)
    return all(words.count(word.casefold()) == times for word, times in value.items())


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
    "count": _counted,
    "starts_with": lambda text, value: text.strip().casefold().startswith(value.casefold()),
    "ends_with": lambda text, value: text.strip().casefold().endswith(value.casefold()),
    "no_commas": lambda text, value: "," not in text and bool(text.strip()),
    "json": _is_json,
}


class Verifiable:
    """Which of a row's instructions a completion follows, 0 to 1.

    Args:
        measure: `all` gives 1 if every instruction is followed, else 0; `share` the share of them.
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
        """Score completions by the column `instructions`: for each row a list of {"kind": KIND, "value": VALUE}.

        Raises:
            ValueError: a row has no instructions, or one of a kind that is not known.
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
