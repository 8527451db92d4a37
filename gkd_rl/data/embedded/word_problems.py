"""Generator of arithmetic word problems with worked solutions, in the format of GSM8K (Cobbe et al. 2021).

A person has a number of things, which one to four operations change; distractor sentences have numbers of other people.
A solution has every step as an equation with its calculator annotation, and ends in `#### ANSWER`, as in the official
data. Numbers are between 0 and 99, so that each can be one token.

The CRC-32 of the numbers and operations of a problem decides its split.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from gkd_rl.data.embedded.splits import distinct
from gkd_rl.errors import DataError

LARGEST, SMALLEST_LIMIT = 99, 10  # range of the setting `largest`
ANNOTATION = re.compile(r"<<[^<>]*>>")
MOST_OPERATIONS = 4
PEOPLE = ("anna", "ben", "clara", "david", "emma", "frank", "grace")
THINGS = ("apples", "books", "coins", "marbles", "stamps", "shells", "cards", "pencils", "sweets", "stones")
STORIES = {
    "+": ("{name} buys {k} more .", "{name} finds {k} {things} .", "{other} gives {name} {k} {things} ."),
    "-": ("{name} gives {k} to {other} .", "{name} loses {k} {things} .", "{name} sells {k} of them ."),
    "*": {2: "{name} doubles the number of {things} .", 3: "{name} triples the number of {things} ."},
    "/": {2: "{name} keeps half of them .", 3: "{name} keeps a third of them ."},
}
DISTRACTORS = ("{other} has {k} {things} .", "{other} had {k} {things} last year .", "a box holds {k} {things} .")
START = "{name} has {value} {things} ."
QUESTION = "how many {things} does {name} have now ?"


@dataclass(frozen=True)
class WordProblem:
    """A problem, its worked steps with calculator annotations, and the answer."""

    question: str
    reasoning: str
    answer: int

    @property
    def solution(self) -> str:
        """The solution in the format of the official data."""
        return f"{self.reasoning}\n#### {self.answer}"

    @property
    def plain_solution(self) -> str:
        """The solution without annotations."""
        return ANNOTATION.sub("", self.solution)


def _step(rng: random.Random, value: int, largest: int) -> tuple[str, int, int]:
    """A random operation on `value`: its sign, its operand and the result, in 1..largest."""
    while True:
        sign = rng.choice("++--*/")
        if sign in "+-":
            k = rng.randint(2, min(20, largest // 2))
            result = value + k if sign == "+" else value - k
        else:
            k = rng.choice((2, 3))
            result = value * k if sign == "*" else value // k
        exact = sign != "/" or value % k == 0
        if exact and 1 <= result <= largest:
            return sign, k, result


def _story(rng: random.Random, sign: str, k: int, words: dict[str, str]) -> str:
    """The sentence of one operation."""
    templates = STORIES[sign]
    template = templates[k] if isinstance(templates, dict) else rng.choice(templates)
    return template.format(k=k, **words)


def _steps(rng: random.Random, operations: int, largest: int) -> list[tuple[int, str, int, int]]:
    """(value, sign, operand, result) of each operation."""
    value, steps = rng.randint(3, min(40, largest)), []
    for _ in range(operations):
        sign, k, result = _step(rng, value, largest)
        steps.append((value, sign, k, result))
        value = result
    return steps


def _problem(rng: random.Random, steps: list[tuple[int, str, int, int]], distractors: int, largest: int) -> WordProblem:
    """The text and the solution of these steps."""
    name, other = rng.sample(PEOPLE, 2)
    words = {"name": name, "other": other, "things": rng.choice(THINGS)}
    sentences = [START.format(value=steps[0][0], **words)]
    sentences += [_story(rng, sign, k, words) for _, sign, k, _ in steps]
    for template in rng.sample(DISTRACTORS, distractors):
        sentences.insert(rng.randint(1, len(sentences)), template.format(k=rng.randint(2, largest), **words))
    sentences.append(QUESTION.format(**words))
    equations = [f"{value} {sign} {k} = <<{value}{sign}{k}={result}>>{result} ." for value, sign, k, result in steps]
    return WordProblem(" ".join(sentences), " ".join(equations), steps[-1][-1])


def check_difficulty(
    seed: int, min_operations: int, max_operations: int, distractors: int, largest: int = LARGEST
) -> None:
    """Check the settings of the generator.

    Raises:
        DataError: a number is out of range.
    """
    if seed < 0:
        raise DataError(f"task.word_problems.seed={seed}: it takes a whole number >= 0.")
    if not 1 <= min_operations <= max_operations <= MOST_OPERATIONS:
        raise DataError(
            f"task.word_problems: min_operations={min_operations}, max_operations={max_operations}; they take "
            f"1 <= min_operations <= max_operations <= {MOST_OPERATIONS}."
        )
    if not 0 <= distractors <= len(DISTRACTORS):
        raise DataError(f"task.word_problems.distractors={distractors}: it takes 0 to {len(DISTRACTORS)}.")
    if not SMALLEST_LIMIT <= largest <= LARGEST:
        raise DataError(f"task.word_problems.largest={largest}: it takes {SMALLEST_LIMIT} to {LARGEST}.")


def generate(
    split: str, size: int, seed: int, min_operations: int, max_operations: int, distractors: int, largest: int = LARGEST
) -> list[WordProblem]:
    """`size` distinct problems of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of problems.
        seed: of the whole data set.
        min_operations: the fewest steps of a solution, 1 to 4.
        max_operations: the most.
        distractors: sentences with irrelevant numbers, 0 to 3.
        largest: largest number, 10 to 99.
    """

    def draw(rng: random.Random) -> tuple[str, Callable[[], WordProblem]]:
        steps = _steps(rng, rng.randint(min_operations, max_operations), largest)
        signature = " ".join([str(steps[0][0]), *(f"{sign}{k}" for _, sign, k, _ in steps)])
        return signature, lambda: _problem(rng, steps, distractors, largest)

    return distinct(draw, lambda problem: problem.question, split, size, seed)


def vocabulary() -> list[str]:
    """Every word of problems and of solutions without annotations, sorted; each becomes one token."""
    templates = [
        START,
        QUESTION,
        *DISTRACTORS,
        *STORIES["+"],
        *STORIES["-"],
        *STORIES["*"].values(),
        *STORIES["/"].values(),
    ]
    words = {word for template in templates for word in template.split() if "{" not in word}
    words |= {*PEOPLE, *THINGS, *map(str, range(LARGEST + 1)), "+", "-", "*", "/", "=", ".", "####"}
    return sorted(words)
