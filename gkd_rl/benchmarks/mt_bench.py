"""MT-Bench (Zheng et al., arXiv 2306.05685): questions of two turns, answered by the model, graded 1 to 10 by a judge.

As FastChat has it: both turns, the temperature by the question's category, one verdict for each turn, the judge reading
the reference answer in math, reasoning and coding. The judge and its prompts are in `mt_judge.py`. A model without a
chat template gets `User: ...` and `Assistant: ...`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import set_seed

from gkd_rl.errors import DataError

# FastChat's temperature_config; a category that it does not list has 0.7
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
TURNS = 2


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its number.
        category: e.g. math.
        turns: what the user says, two texts.
        references: an answer to each turn to be compared with; None where there is none.
    """

    id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None


def read_questions(place: str, limit: int | None) -> list[Question]:
    """FastChat's question.jsonl, or a folder that holds it, and reference_answer/*.jsonl beside it.

    Raises:
        DataError: there is no such file, or a line is no question.
    """
    path = Path(place).expanduser()
    file = path / "question.jsonl" if path.is_dir() else path
    rows = _lines(file)
    answers = sorted((file.parent / "reference_answer").glob("*.jsonl"))
    if len(answers) > 1:
        raise DataError(f"data.mt_bench={place}: {answers[0].parent} takes one file of reference answers.")
    references = {row["question_id"]: row["choices"][0]["turns"] for row in _lines(answers[0])} if answers else {}
    try:
        questions = [_question(row, references.get(row["question_id"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"data.mt_bench={file}: a line lacks {error}; it takes question_id, category and two turns, as FastChat's "
            "question.jsonl has them."
        ) from error
    return questions[:limit]


def answer(lm: HFLM, questions: Sequence[Question], max_tokens: int, seed: int) -> list[tuple[str, str]]:
    """The model's answers to both turns, sampled at the category's temperature.

    Args:
        lm: the model.
        questions: what is asked.
        max_tokens: the longest answer.
        seed: of the sampling.
    """
    set_seed(seed)
    chats: list[list[dict[str, str]]] = [[] for _ in questions]
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(TURNS):
        for chat, question in zip(chats, questions, strict=True):
            chat.append({"role": "user", "content": question.turns[turn]})
        requests = [
            Instance("generate_until", {}, (_prompt(lm, chat), _sampling(question.category, max_tokens)), i)
            for i, (chat, question) in enumerate(zip(chats, questions, strict=True))
        ]
        for chat, given, text in zip(chats, answers, lm.generate_until(requests), strict=True):
            given.append(text.strip())
            chat.append({"role": "assistant", "content": text.strip()})
    return [(first, second) for first, second in answers]


def summarise(questions: Sequence[Question], grades: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Means with standard errors by turn, by category and of all verdicts; unreadable ones (None) are counted.

    Args:
        questions: what was asked.
        grades: of both turns of each question.
    """
    categories = list(dict.fromkeys(question.category for question in questions))
    chosen = {f"turn {turn + 1}": [[grade[turn]] for grade in grades] for turn in range(TURNS)}
    for category in categories:
        rows = zip(questions, grades, strict=True)
        chosen[category] = [list(grade) for question, grade in rows if question.category == category]
    chosen["mean"] = [list(grade) for grade in grades]
    flat = [one for grade in grades for one in grade]
    return {
        "scores": {name: _mean(rows) for name, rows in chosen.items()},
        "verdicts": len(flat),
        "unreadable": flat.count(None),
    }


def _mean(rows: list[list[float | None]]) -> dict[str, Any]:
    """Mean m over readable grades; its standard error with questions as clusters of G.

    se² = G / (G - 1) · Σ_g (Σ_{i in g} (x_i - m))² / n², which is s² / n where every question has one grade.
    """
    groups = [[one for one in row if one is not None] for row in rows]
    groups = [group for group in groups if group]
    values = [one for group in groups for one in group]
    if not values:
        return {"mean": None, "stderr": None, "n": 0}
    mean = sum(values) / len(values)
    spread = sum(sum(one - mean for one in group) ** 2 for group in groups)
    count = len(groups)
    stderr = math.sqrt(count / (count - 1) * spread) / len(values) if count > 1 else None
    return {"mean": mean, "stderr": stderr, "n": len(values)}


def _sampling(category: str, max_tokens: int) -> dict[str, Any]:
    temperature = TEMPERATURES.get(category, OTHER_TEMPERATURE)
    drawn = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    return {"until": ["\nUser:"], "max_gen_toks": max_tokens, **drawn}


def _prompt(lm: HFLM, chat: list[dict[str, str]]) -> str:
    if lm.tokenizer.chat_template:  # pyright: ignore[reportAttributeAccessIssue]
        return lm.apply_chat_template(chat)
    turns = [f"{one['role'].capitalize()}: {one['content']}" for one in chat]
    return "\n".join([*turns, "Assistant:"])


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise DataError(f"data.mt_bench={file}: there is no such file; it takes FastChat's question.jsonl.")
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"data.mt_bench={file}: not one JSON object a line ({error}).") from error


def _question(row: dict[str, Any], reference: Sequence[str] | None) -> Question:
    first, second = map(str, row["turns"])
    given = reference or row.get("reference")
    references = (str(given[0]), str(given[1])) if given and len(given) == TURNS else None
    return Question(int(row["question_id"]), str(row["category"]), (first, second), references)
