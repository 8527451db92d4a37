"""Generator of simple instructions that a program can verify: words, counts, capitals, first and last words.

A row has a prompt, one answer that follows it, and checks of `reward_models.text.form`; any answer that passes the
checks is right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gkd_rl.data.embedded.news import words_of
from gkd_rl.data.embedded.splits import distinct

WORDS = words_of(
    "river stone garden window silver morning forest candle summer bridge ocean pencil winter market island "
    "copper thunder lantern meadow harvest castle feather mirror valley"
)
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Instruction:
    """A prompt, an answer that follows it, and the checks that every right answer passes."""

    prompt: str
    answer: str
    checks: tuple[dict[str, Any], ...]


def _check(kind: str, value: Any = None) -> dict[str, Any]:
    return {"kind": kind, "value": value}


def _capitals(rng: random.Random) -> Instruction:
    words = rng.sample(WORDS, rng.randint(2, 4))
    prompt = f"Write the words {' '.join(words)} in capital letters."
    return Instruction(prompt, " ".join(words).upper(), (_check("upper_case"), _check("include", words)))


def _times(rng: random.Random) -> Instruction:
    word, count = rng.choice(WORDS), rng.choice(list(COUNTS))
    checks = (_check("count", {word: count}), _check("words", count))
    return Instruction(f"Write the word {word} exactly {COUNTS[count]} times.", " ".join([word] * count), checks)


def _ends(rng: random.Random) -> Instruction:
    first, last = rng.sample(WORDS, 2)
    count = rng.choice(list(COUNTS))
    middle = rng.sample([word for word in WORDS if word not in (first, last)], count - 2)
    prompt = f"Write {COUNTS[count]} words. Start with {first} and end with {last}."
    checks = (_check("words", count), _check("starts_with", first), _check("ends_with", last))
    return Instruction(prompt, " ".join([first, *middle, last]), checks)


def _bullets(rng: random.Random) -> Instruction:
    words = rng.sample(WORDS, rng.choice(list(COUNTS)))
    prompt = f"Write a list with one bullet for each of these words: {' '.join(words)}."
    checks = (_check("bullets", len(words)), _check("include", words))
    return Instruction(prompt, "\n".join(f"- {word}" for word in words), checks)


def _without(rng: random.Random) -> Instruction:
    words = rng.sample(WORDS, rng.randint(3, 5))
    left_out = rng.choice(words)
    kept = [word for word in words if word != left_out]
    prompt = f"Repeat these words without {left_out}: {' '.join(words)}."
    checks = (_check("exclude", [left_out]), _check("include", kept), _check("max_words", len(kept)))
    return Instruction(prompt, " ".join(kept), checks)


def _sentences(rng: random.Random) -> Instruction:
    word, count = rng.choice(WORDS), rng.choice(list(COUNTS))
    adjectives = rng.sample(("old", "new", "big", "small", "far"), count)
    answer = " ".join(f"The {word} is {adjective}." for adjective in adjectives)
    prompt = f"Write {COUNTS[count]} sentences about the word {word}, without commas."
    checks = (_check("sentences", count), _check("count", {word: count}), _check("no_commas"))
    return Instruction(prompt, answer, checks)


KINDS: tuple[Callable[[random.Random], Instruction], ...] = (_capitals, _times, _ends, _bullets, _without, _sentences)


def generate(split: str, size: int, seed: int) -> list[Instruction]:
    """`size` distinct instructions of `split`; a longer list begins with the shorter one.

    Args:
        split: "train", "validation" or "test".
        size: number of instructions.
        seed: of the whole data set.
    """

    def draw(rng: random.Random) -> tuple[str, Callable[[], Instruction]]:
        instruction = rng.choice(KINDS)(rng)
        return instruction.prompt, lambda: instruction

    return distinct(draw, lambda instruction: (instruction.prompt, instruction.answer), split, size, seed)
