"""Generator and exact checker of the number walk: a long chain of steps with more than one right answer.

A prompt has a start and targets between 0 and 39. The answer is a chain of moves (by 1, 5 or 12), each with the value
that it leads to, and `hit` at every target in turn. The reference is the shortest path, but any path with correct
values is right, so that a model can recover after a move that the reference does not make. References show no recovery;
it is learnt on the student's own completions.

The CRC-32 of the prompt decides the split.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gkd_rl.data.embedded.splits import distinct

VALUES = 40  # 0 to 39
MOVES = {"+12": 12, "-12": -12, "+5": 5, "-5": -5, "+1": 1, "-1": -1}
HIT = "hit"


@dataclass(frozen=True)
class Walk:
    """A prompt and its shortest answer."""

    prompt: str
    path: str


@dataclass(frozen=True)
class WalkVerdict:
    """Verdict of the checker on one answer; both numbers are in 0..1.

    Attributes:
        arrives: 1 if every value is right, every target is hit in turn, and nothing follows, else 0.
        progress: share of the targets that are hit before the first mistake.
    """

    arrives: float
    progress: float


@functools.cache
def shortest(start: int, target: int) -> tuple[str, ...]:
    """Moves of a shortest path; of several paths the one whose moves come first in `MOVES`."""
    paths: dict[int, tuple[str, ...]] = {start: ()}
    queue = deque([start])
    while queue:
        value = queue.popleft()
        if value == target:
            break
        for move, change in MOVES.items():
            if 0 <= value + change < VALUES and value + change not in paths:
                paths[value + change] = (*paths[value], move)
                queue.append(value + change)
    return paths[target]


def _reference(start: int, targets: list[int]) -> str:
    """The shortest path through all targets, as text."""
    words, value = [], start
    for target in targets:
        for move in shortest(value, target):
            value += MOVES[move]
            words += [move, str(value)]
        words.append(HIT)
    return " ".join(words)


def generate(split: str, size: int, seed: int, targets: int) -> list[Walk]:
    """`size` distinct walks of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of walks.
        seed: of the whole data set.
        targets: number of targets in each walk.
    """

    def draw(rng: random.Random) -> tuple[str, Callable[[], Walk]]:
        values = [rng.randrange(VALUES)]
        while len(values) <= targets:
            following = rng.randrange(VALUES)
            if following != values[-1]:
                values.append(following)
        prompt = f"from {values[0]} to {' '.join(map(str, values[1:]))} :"
        return prompt, lambda: Walk(prompt, _reference(values[0], values[1:]))

    return distinct(draw, lambda walk: walk.prompt, split, size, seed)


class WalkChecker:
    """Callable `(prompt, answer) -> WalkVerdict`."""

    def __call__(self, prompt: str, answer: str) -> WalkVerdict:
        """Check an answer move by move.

        Raises:
            ValueError: the prompt is not the prompt of a walk.
        """
        words = prompt.split()
        numbers = [word for word in words if word.isdecimal()]
        if words != ["from", *numbers[:1], "to", *numbers[1:], ":"]:
            raise ValueError(f"{prompt[:200]!r} is not the prompt of a walk, like 'from 7 to 3 31 20 :'.")
        start, *targets = map(int, numbers)
        hits, clean = _walk(start, targets, answer.split())
        return WalkVerdict(float(clean and hits == len(targets)), hits / len(targets))


def _walk(start: int, targets: list[int], words: list[str]) -> tuple[int, bool]:
    """Number of targets that are hit before the first mistake, and whether there is no mistake."""
    value, hits, i = start, 0, 0
    while i < len(words):
        if hits == len(targets):
            return hits, False
        if words[i] == HIT:
            if value != targets[hits]:
                return hits, False
            hits, i = hits + 1, i + 1
            continue
        following = value + MOVES.get(words[i], VALUES)
        if not 0 <= following < VALUES or words[i + 1 : i + 2] != [str(following)]:
            return hits, False
        value, i = following, i + 2
    return hits, True


def vocabulary() -> list[str]:
    """Every word of prompts and answers, sorted; each becomes one token."""
    return sorted({"from", "to", ":", HIT, *MOVES, *map(str, range(VALUES))})
