"""The generators as sources of an instruction mixture: each brings the columns that its reward reads.

Rows are the short and simple ones of each kind: models of some 100,000 weights learn all kinds at one time.
"""

from __future__ import annotations

from collections.abc import Callable

from gkd_rl.embedded import german, instructions, news, word_problems
from gkd_rl.types import Example


def _news(split: str, size: int, seed: int) -> list[Example]:
    return [
        Example(f"Summarise: {item.article}", item.summary, {"kind": "news", "document": item.article})
        for item in news.generate(split, size, seed, distractors=0)
    ]


def _translation(split: str, size: int, seed: int) -> list[Example]:
    return [
        Example(f"Translate: {one.english}", one.german, {"kind": "translation", "accepted": list(one.accepted)})
        for one in german.generate(split, size, seed, simple=True)
    ]


def _word_problems(split: str, size: int, seed: int) -> list[Example]:
    problems = word_problems.generate(split, size, seed, min_operations=1, max_operations=2, distractors=0, largest=20)
    return [
        Example(f"Solve: {p.question}", p.plain_solution, {"kind": "word_problems", "final_answer": str(p.answer)})
        for p in problems
    ]


def _instructions(split: str, size: int, seed: int) -> list[Example]:
    return [
        Example(one.prompt, one.answer, {"kind": "instructions", "instructions": list(one.checks)})
        for one in instructions.generate(split, size, seed)
    ]


SOURCES: dict[str, Callable[[str, int, int], list[Example]]] = {
    "news": _news,
    "translation": _translation,
    "word_problems": _word_problems,
    "instructions": _instructions,
}
