"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): questions of two turns, answered by the model, graded by a judge.

As in FastChat: both turns, a temperature by category, one verdict from 1 to 10 for each turn, and the reference answer
in the judge's prompt for math, reasoning and coding. Without a chat template a turn of the prompt is `User: ...` or
`Assistant: ...`.

The judge is a model behind an OpenAI-compatible server (single-answer grading). Departure from FastChat: its prompts
have the form of FastChat's judge_prompts.jsonl (names, slots, `[[rating]]`) in other words. Set FastChat's file as
`mt_bench.judge.prompts` for scores that are compared with published ones.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import set_seed

from gkd_rl.errors import DataError, EndpointError
from gkd_rl.evaluation.benchmarks.settings import JudgeConfig
from reward_models.models.judge import ServerError, chat_completion

TURNS = 2
# FastChat's temperature_config, and its default for other categories
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
WITH_REFERENCE = ("math", "reasoning", "coding")  # categories graded with a reference answer
VERDICTS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))  # the second if the first has no match
LOWEST, HIGHEST = 1.0, 10.0

_TASK = (
    "Judge without bias how good an assistant's answer to a user's question is. {what} Explain your judgement briefly "
    'first. Then end with a grade from 1 (worst) to 10 (best) in exactly this form: "[[rating]]", for example: '
    '"Rating: [[5]]".'
)
_MERITS = "Look at helpfulness, relevance, accuracy, depth, creativity and detail."
_CORRECT = "Look at correctness and helpfulness: compare the answer with the reference answer and name its mistakes."
_SECOND = " The conversation has two turns: grade the answer to the second question."
_ONE = "[Question]\n{question}\n\n[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
_TWO = (
    "<|The Start of Assistant A's Conversation with User|>\n\n### User:\n{question_1}\n\n### Assistant A:\n{answer_1}"
    "\n\n### User:\n{question_2}\n\n### Assistant A:\n{answer_2}\n\n<|The End of Assistant A's Conversation with User|>"
)
_ONE_REFERENCE = "[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n\n"
_TWO_REFERENCES = (
    "<|The Start of Reference Answer|>\n\n### User:\n{question_1}\n\n### Reference answer:\n{ref_answer_1}\n\n"
    "### User:\n{question_2}\n\n### Reference answer:\n{ref_answer_2}\n\n<|The End of Reference Answer|>\n\n"
)
PROMPTS = {  # name -> (system prompt, template)
    "single-v1": (_TASK.format(what=_MERITS), _ONE),
    "single-math-v1": (_TASK.format(what=_CORRECT), _ONE_REFERENCE + _ONE),
    "single-v1-multi-turn": (_TASK.format(what=_MERITS + _SECOND), _TWO),
    "single-math-v1-multi-turn": (_TASK.format(what=_CORRECT + _SECOND), _TWO_REFERENCES + _TWO),
}


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its number.
        category: e.g. math.
        turns: the user's two messages.
        references: a reference answer to each turn; None without.
    """

    id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None


def read_questions(location: str, limit: int | None) -> list[Question]:
    """The questions of FastChat's question.jsonl, with the answers of reference_answer/*.jsonl beside it.

    Args:
        location: the file, or its folder.
        limit: number of questions; None: all.

    Raises:
        DataError: there is no such file, there are several files of reference answers, or a line is not a question.
    """
    path = Path(location).expanduser()
    file = path / "question.jsonl" if path.is_dir() else path
    rows = _lines(file)
    answers = sorted((file.parent / "reference_answer").glob("*.jsonl"))
    if len(answers) > 1:
        raise DataError(f"data.mt_bench={location}: {answers[0].parent} takes one file of reference answers.")
    references = {row["question_id"]: row["choices"][0]["turns"] for row in _lines(answers[0])} if answers else {}
    try:
        questions = [_question(row, references.get(row["question_id"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"data.mt_bench={file}: a line lacks {error}; it takes question_id, category and two turns, as FastChat's "
            "question.jsonl has them."
        ) from error
    return questions[:limit]


def generate_answers(lm: HFLM, questions: Sequence[Question], max_tokens: int, seed: int) -> list[tuple[str, str]]:
    """The model's answers to both turns of every question, sampled at the temperature of its category.

    Args:
        lm: the model.
        questions: Q questions.
        max_tokens: longest answer.
        seed: of the sampling.

    Returns:
        Q pairs of texts.
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
        for chat, own, text in zip(chats, answers, lm.generate_until(requests), strict=True):
            own.append(text.strip())
            chat.append({"role": "assistant", "content": text.strip()})
    return [(first, second) for first, second in answers]


def summarise(questions: Sequence[Question], grades: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Means with standard errors by turn, by category and of all verdicts, and the number of unreadable verdicts.

    Args:
        questions: Q questions.
        grades: grades of both turns, 1 to 10, [Q, 2]; None for an unreadable verdict, which is omitted.
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
    """Mean m of n readable grades, and its standard error with the G questions as clusters.

    se² = G / (G - 1) · Σ_g (Σ_{i in g} (x_i - m))² / n², which is s² / n if every question has one grade.
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


@dataclass(frozen=True)
class Judge:
    """The judge of the answers.

    Attributes:
        settings: server, model and limits.
        prompts: name -> (system prompt, template).
        key: sent as a bearer token, never shown; None sends none.
    """

    settings: JudgeConfig
    prompts: dict[str, tuple[str, str]]
    key: str | None = field(default=None, repr=False)

    def check(self) -> None:
        """Send one short request, to detect a wrong setting before the model is loaded.

        Raises:
            EndpointError: the request failed.
        """
        self._request("", "Say [[5]].", max_tokens=16)

    def grade(self, questions: Sequence[Question], answers: Sequence[tuple[str, str]]) -> list[list[dict[str, Any]]]:
        """Verdicts on both turns of every answer, [Q, 2]: the judge's text, and the grade or None if it has none.

        Args:
            questions: Q questions.
            answers: Q pairs of texts.

        Raises:
            EndpointError: a request failed.
        """
        prompts = [self.messages(*pair, turn) for pair in zip(questions, answers, strict=True) for turn in (0, 1)]
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            texts = list(
                pool.map(lambda prompt: self._request(prompt[0], prompt[1], self.settings.max_tokens), prompts)
            )
        verdicts = [{"judge": text, "grade": read_grade(text)} for text in texts]
        return [verdicts[i : i + 2] for i in range(0, len(verdicts), 2)]

    def messages(self, question: Question, answers: tuple[str, str], turn: int) -> tuple[str, str]:
        """The judge's system prompt and user message.

        Args:
            question: the question.
            answers: to both turns.
            turn: the one to be graded, 0 or 1.
        """
        references = question.references if question.category in WITH_REFERENCE else None
        name = f"single-{'v1' if references is None else 'math-v1'}{'' if turn == 0 else '-multi-turn'}"
        system, template = self.prompts[name]
        texts = {"question": question.turns[0], "answer": answers[0]}
        for i in (0, 1):
            texts |= {f"question_{i + 1}": question.turns[i], f"answer_{i + 1}": answers[i]}
            texts |= {} if references is None else {f"ref_answer_{i + 1}": references[i]}
        return system, template.format(**texts)

    def _request(self, system: str, user: str, max_tokens: int) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        body = {"model": self.settings.model, "temperature": 0, "max_tokens": max_tokens}
        try:
            return chat_completion(str(self.settings.url), body, messages, self.key, self.settings.timeout)
        except ServerError as error:
            raise self._refusal(str(error)) from None

    def _refusal(self, problem: str) -> EndpointError:
        return EndpointError(
            f"mt_bench.judge.url={self.settings.url}: the server {problem}; check that it runs, and "
            "mt_bench.judge.model, .api_key_variable and .timeout."
        )


def build_judge(settings: JudgeConfig) -> Judge:
    """The judge with its prompts and key.

    Raises:
        DataError: the file of prompts is unreadable or lacks a prompt.
    """
    variable = settings.api_key_variable
    prompts = PROMPTS if settings.prompts is None else _read_prompts(settings.prompts)
    return Judge(settings, prompts, None if variable is None else os.environ[variable])


def read_grade(text: str) -> float | None:
    """The first `[[n]]` of a verdict, else the first `[n]`; None without one, or if n is not in 1..10."""
    for pattern in VERDICTS:
        found = pattern.search(text)
        if found:
            grade = float(found[1])
            return grade if LOWEST <= grade <= HIGHEST else None
    return None


def _read_prompts(path: str) -> dict[str, tuple[str, str]]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        found = {row["name"]: (str(row["system_prompt"]), str(row["prompt_template"])) for row in rows}
        return {name: found[name] for name in PROMPTS}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"mt_bench.judge.prompts={path}: {error}; it takes FastChat's judge_prompts.jsonl, with "
            f"{', '.join(PROMPTS)}."
        ) from error
