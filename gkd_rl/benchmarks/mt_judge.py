"""MT-Bench's judge: single-answer grading behind an OpenAI-compatible server.

Prompts have the form of FastChat's judge_prompts.jsonl (names, places, `[[rating]]`) and words of our own; give
FastChat's file as `mt_bench.judge.prompts` for scores that are to be put beside published ones.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gkd_rl.benchmarks.mt_bench import Question
from gkd_rl.benchmarks.settings import JudgeConfig
from gkd_rl.errors import DataError, EndpointError
from reward_models.openai_server import ServerError, chat

WITH_REFERENCE = ("math", "reasoning", "coding")
VERDICTS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))  # the second without the first
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
OURS = {  # name -> (system prompt, template)
    "single-v1": (_TASK.format(what=_MERITS), _ONE),
    "single-math-v1": (_TASK.format(what=_CORRECT), _ONE_REFERENCE + _ONE),
    "single-v1-multi-turn": (_TASK.format(what=_MERITS + _SECOND), _TWO),
    "single-math-v1-multi-turn": (_TASK.format(what=_CORRECT + _SECOND), _TWO_REFERENCES + _TWO),
}


@dataclass(frozen=True)
class Judge:
    """The server and what it is asked.

    Attributes:
        settings: where it is, and how it is asked.
        prompts: name -> (system prompt, template).
        key: sent as a bearer token; never shown.
    """

    settings: JudgeConfig
    prompts: dict[str, tuple[str, str]]
    key: str | None = field(default=None, repr=False)

    def check(self) -> None:
        """Ask once, before anything is loaded.

        Raises:
            EndpointError: the server does not answer.
        """
        self._ask("", "Say [[5]].", max_tokens=16)

    def grade(self, questions: Sequence[Question], answers: Sequence[tuple[str, str]]) -> list[list[dict[str, Any]]]:
        """The verdict on both turns of every answer: what the judge wrote, and the grade, None where none can be read.

        Raises:
            EndpointError: the server stopped answering.
        """
        asked = [self.messages(*pair, turn) for pair in zip(questions, answers, strict=True) for turn in (0, 1)]
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            texts = list(pool.map(lambda pair: self._ask(pair[0], pair[1], self.settings.max_tokens), asked))
        verdicts = [{"judge": text, "grade": read_grade(text)} for text in texts]
        return [verdicts[i : i + 2] for i in range(0, len(verdicts), 2)]

    def messages(self, question: Question, answers: tuple[str, str], turn: int) -> tuple[str, str]:
        """The system prompt, and what is to be graded."""
        references = question.references if question.category in WITH_REFERENCE else None
        name = f"single-{'v1' if references is None else 'math-v1'}{'' if turn == 0 else '-multi-turn'}"
        system, template = self.prompts[name]
        texts = {"question": question.turns[0], "answer": answers[0]}
        for i in (0, 1):
            texts |= {f"question_{i + 1}": question.turns[i], f"answer_{i + 1}": answers[i]}
            texts |= {} if references is None else {f"ref_answer_{i + 1}": references[i]}
        return system, template.format(**texts)

    def _ask(self, system: str, user: str, max_tokens: int) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        body = {"model": self.settings.model, "temperature": 0, "max_tokens": max_tokens}
        try:
            return chat(str(self.settings.url), body, messages, self.key, self.settings.timeout)
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
        DataError: the file of prompts lacks one.
    """
    variable = settings.api_key_variable
    prompts = OURS if settings.prompts is None else _read_prompts(settings.prompts)
    return Judge(settings, prompts, None if variable is None else os.environ[variable])


def read_grade(text: str) -> float | None:
    """The first `[[n]]` of a verdict, else the first `[n]`; None where there is none or n is not in 1..10."""
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
        return {name: found[name] for name in OURS}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"mt_bench.judge.prompts={path}: {error}; it takes FastChat's judge_prompts.jsonl, with {', '.join(OURS)}."
        ) from error
