"""Premises that are longer than a model takes: cut at its limit, or read in windows of whole sentences.

An entailment model's score of a long document is the largest over its windows (SummaC, Laban et al. 2022, there over
sentences).
"""

from __future__ import annotations

import re
from collections.abc import Callable

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
Offsets = Callable[[str], list[tuple[int, int]]]  # a text -> first and last character of each of its tokens


def cut(text: str, room: int, offsets: Offsets) -> str:
    """The first `room` tokens of a text."""
    tokens = offsets(text)
    return text if len(tokens) <= room else text[: tokens[room - 1][1]]


def windows(text: str, room: int, offsets: Offsets) -> list[str]:
    """The text in runs of whole sentences, each as long as fits `room` tokens.

    A sentence that does not fit alone is a run of its own, longer than the room.
    """
    runs: list[str] = []
    used = room + 1
    for sentence in SENTENCE_END.split(text):
        tokens = len(offsets(sentence))
        if used + tokens > room:
            runs.append(sentence)
            used = tokens
        else:
            runs[-1] += " " + sentence
            used += tokens
    return runs
