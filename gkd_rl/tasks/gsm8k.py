"""GSM8K: an arithmetic word problem -> a worked solution (GKD paper, section 4.3). Local files or the Hub.

Official rows have `question` and `answer`, a solution with calculator annotations `<<48/2=24>>` that ends in
`#### 24`. Official data have no validation split: it is the end of the train rows, which training then does not see.
The paper's prompts have four worked examples before the problem (`shots=4`), and answers end in `The answer is 24.`
(`answer_style=words`). It trains on chains of thought of PaLM-540B, which are not published: here the references are
the data set's own solutions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gkd_rl.embedded.tokenizer import word_tokenizer
from gkd_rl.embedded.word_problems import ANNOTATION, check_difficulty, generate, vocabulary
from gkd_rl.errors import DataError
from gkd_rl.tasks.exemplars import EXEMPLARS
from gkd_rl.tasks.row_files import RowProblem
from gkd_rl.tasks.rows import SPLITS, Row, RowReport, RowRules, TaskRows
from gkd_rl.types import Example

FINAL = re.compile(r"####[ \t]*(\S[^\n]*)")
IN_WORDS = re.compile(r"\b[Tt]he answer is:?[ \t]*(\S[^\n]*?)\.?\s*$")
TYPE_THIS = "task.data_files={train: train.jsonl, test: test.jsonl} (validation: FILE where there is one)"


@dataclass(frozen=True)
class Gsm8k:
    """Rows of the arithmetic task. The reward's column is `final_answer`.

    Attributes:
        data: where rows come from without `data_files`.
        word_problems: of data=embedded: seed, min_operations, max_operations, distractors of the generator.
        train_size: the most train rows that are read (likewise test_size).
        validation_size: without a validation file, how many rows at the end of the train rows are validation.
        data_files: split -> file, for data=files; validation may be absent.
        hub_id: data set, for data=hub.
        hub_config: its configuration.
        question_column: column of the problem.
        answer_column: column of the worked solution.
        id_column: column that no two rows share; None looks for no duplicates.
        on_malformed: rows that cannot be used: "drop" or "refuse".
        max_characters: rows with a longer text cannot be used.
        prompt_template: the prompt, with {question} where the problem stands.
        shots: worked examples before the problem, written as the prompt and the references are.
        answer_style: how references end: "hashes" is `#### 24`, "words" is `The answer is 24.` in one paragraph.
        strip_annotations: references lose their calculator annotations.
        max_prompt_tokens: longer problems are cut.
        max_completion_tokens: longest solution.
    """

    data: Literal["embedded", "files", "hub"]
    word_problems: dict[str, int]
    train_size: int
    validation_size: int
    test_size: int
    data_files: dict[str, str] | None
    hub_id: str
    hub_config: str | None
    question_column: str
    answer_column: str
    id_column: str | None
    on_malformed: Literal["drop", "refuse"]
    max_characters: int
    prompt_template: str
    shots: int
    answer_style: Literal["hashes", "words"]
    strip_annotations: bool
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        if self.data not in ("embedded", "files", "hub"):
            raise DataError(f"task.data={self.data}: task.data takes embedded, files, with {TYPE_THIS}, or hub.")
        check_difficulty(**self.word_problems)
        if "{question}" not in self.prompt_template:
            raise DataError(
                f"task.prompt_template={self.prompt_template!r}: it takes a text with {{question}} in it, "
                "e.g. 'Question: {question}'."
            )
        if not 0 <= self.shots <= len(EXEMPLARS):
            raise DataError(f"task.shots={self.shots}: it takes a whole number from 0 to {len(EXEMPLARS)}.")
        if self.answer_style not in ("hashes", "words"):
            raise DataError(f"task.answer_style={self.answer_style}: it takes hashes (#### 24) or words.")
        _ = self.rows  # its settings are refused here
        files = self.data_files or {}
        if self.origin == "files":
            for split in ("train", "test"):
                if split not in files:
                    raise DataError(
                        f"task.data=files needs task.data_files.{split}, a jsonl, json, csv or parquet file with "
                        f"columns {self.question_column} and {self.answer_column}: type '{TYPE_THIS}' or task.data=hub."
                    )
            for split in files.keys() - set(SPLITS):
                raise DataError(
                    f"task.data_files.{split}={files[split]}: there is no such split; "
                    f"task.data_files takes {', '.join(SPLITS)}."
                )

    @property
    def origin(self) -> str:
        """Where rows come from: the files that are given, else what `data` says."""
        return "files" if self.data_files else self.data

    @cached_property
    def rows(self) -> TaskRows:
        """The rows of files or the Hub."""
        rules = RowRules(self.on_malformed, self.max_characters, self.id_column)
        columns = {"task.question_column": self.question_column, "task.answer_column": self.answer_column}
        return TaskRows(self.data_files, self.hub_id, self.hub_config, rules, columns)

    @property
    def row_reports(self) -> dict[str, RowReport]:
        """Split -> what became of its rows, of the splits that were read."""
        return self.rows.reports

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, its rows cannot be used, or the train rows leave nothing beside validation.
        """
        if split not in SPLITS:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}.")
        size = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}[split]
        if self.origin == "embedded":
            problems = generate(split, size, **self.word_problems)
            return [self._example(problem.question, problem.reasoning, str(problem.answer)) for problem in problems]
        if split == "test" or self._has_validation():
            return self.rows.examples(split, self._parse, size)
        rows = self.rows.examples("train", self._parse)
        start = len(rows) - self.validation_size
        if start < 1:
            raise DataError(
                f"task.validation_size={self.validation_size}: validation is taken from the end of the train rows, and "
                f"{self.rows.source('train')} has {len(rows)}; task.validation_size takes a whole number below that, "
                "or give task.data_files.validation."
            )
        return rows[: min(start, size)] if split == "train" else rows[start:]

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """One id for each word of the generated problems; None for other data, where the checkpoint brings its own."""
        return word_tokenizer(vocabulary()) if self.origin == "embedded" else None

    def _has_validation(self) -> bool:
        return self.origin == "files" and "validation" in (self.data_files or {})

    def _parse(self, row: Row) -> Example:
        question, solution = row.text(self.question_column), row.text(self.answer_column)
        final = FINAL.search(solution) or IN_WORDS.search(solution)
        if final is None:
            raise RowProblem(f"column {self.answer_column!r} has no final answer like '#### 72'")
        return self._example(question, solution[: final.start()], final[1].strip())

    def _example(self, question: str, reasoning: str, answer: str) -> Example:
        if self.strip_annotations:
            reasoning = ANNOTATION.sub("", reasoning)
        return Example(
            prompt=self._worked_examples + self._asked(question),
            reference=self._worked(reasoning, answer),
            columns={"final_answer": answer},
        )

    @cached_property
    def _worked_examples(self) -> str:
        """What stands before the problem."""
        return "".join(
            f"{self._asked(one.question)} {self._worked(one.reasoning, one.answer)}\n\n"
            for one in EXEMPLARS[: self.shots]
        )

    def _asked(self, question: str) -> str:
        return self.prompt_template.replace("{question}", question)

    def _worked(self, reasoning: str, answer: str) -> str:
        """A solution in the style that is asked for."""
        lines = [line.strip() for line in reasoning.split("\n") if line.strip()]
        if self.answer_style == "hashes":
            return "\n".join([*lines, f"#### {answer}"])
        sentences = [line if line.endswith((".", "!", "?")) else f"{line}." for line in lines]
        return " ".join([*sentences, f"The answer is {answer}."])
