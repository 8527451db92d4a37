"""GSM8K: an arithmetic word problem -> a worked solution (GKD paper, section 4.3). Local files or the Hub.

Official rows have `question` and `answer`, a solution with calculator annotations `<<48/2=24>>` that ends in
`#### 24`. Official data have no validation split: it is the end of the train rows, which training then does not see.
Departs from the paper: prompts are zero-shot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from gkd_rl.errors import DataError
from gkd_rl.tasks.rows import file_rows, hub_rows, text_of
from gkd_rl.types import Example

SPLITS = ("train", "validation", "test")
ANNOTATION = re.compile(r"<<[^<>]*>>")
FINAL = re.compile(r"####[ \t]*(\S[^\n]*)")
TYPE_THIS = "task.data_files={train: train.jsonl, test: test.jsonl} (validation: FILE where there is one)"


@dataclass(frozen=True)
class Gsm8k:
    """Rows of the arithmetic task. The reward's column is `final_answer`, what stands after `####`.

    Attributes:
        data: where rows come from without `data_files`.
        train_size: the most train rows that are read (likewise test_size).
        validation_size: without a validation file, how many rows at the end of the train rows are validation.
        data_files: split -> file, for data=files; validation may be absent.
        hub_id: data set, for data=hub.
        hub_config: its configuration.
        question_column: column of the problem.
        answer_column: column of the worked solution.
        prompt_template: the prompt, with {question} where the problem stands.
        strip_annotations: references lose their calculator annotations.
        max_prompt_tokens: longer problems are cut.
        max_completion_tokens: longest solution.
    """

    data: Literal["files", "hub"]
    train_size: int
    validation_size: int
    test_size: int
    data_files: dict[str, str] | None
    hub_id: str
    hub_config: str | None
    question_column: str
    answer_column: str
    prompt_template: str
    strip_annotations: bool
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        if self.data not in ("files", "hub"):
            generated = " No word problems are generated:" if self.data == "embedded" else ""
            raise DataError(f"task.data={self.data}:{generated} task.data takes files, with {TYPE_THIS}, or hub.")
        if "{question}" not in self.prompt_template:
            raise DataError(
                f"task.prompt_template={self.prompt_template!r}: it takes a text with {{question}} in it, "
                "e.g. 'Question: {question}'."
            )
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

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, a file is unreadable, a row lacks a column or a final answer, or the train
                rows leave nothing beside validation.
        """
        if split not in SPLITS:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}.")
        size = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}[split]
        if split == "test" or self._has_validation():
            origin, rows = self._rows(split)
            return self._examples(rows[:size], origin, 0)
        origin, rows = self._rows("train")
        start = len(rows) - self.validation_size
        if start < 1:
            raise DataError(
                f"task.validation_size={self.validation_size}: validation is taken from the end of the train rows, and "
                f"{origin} has {len(rows)}; task.validation_size takes a whole number below that, or give "
                "task.data_files.validation."
            )
        if split == "train":
            return self._examples(rows[: min(start, size)], origin, 0)
        return self._examples(rows[start:], origin, start)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None: the checkpoint brings its own."""
        return None

    def _has_validation(self) -> bool:
        return self.origin == "files" and "validation" in (self.data_files or {})

    def _rows(self, split: str) -> tuple[str, list[dict[str, Any]]]:
        """Where the rows of a split are, and the rows."""
        if self.origin == "hub":
            return f"{self.hub_id}:{split}", hub_rows(self.hub_id, split, self.hub_config)
        origin = (self.data_files or {})[split]
        return origin, file_rows(origin, f"task.data_files.{split}")

    def _examples(self, rows: list[dict[str, Any]], origin: str, start: int) -> list[Example]:
        return [self._example(row, f"{origin} row {start + i + 1}") for i, row in enumerate(rows)]

    def _example(self, row: dict[str, Any], where: str) -> Example:
        question = text_of(row, self.question_column, "task.question_column", where)
        solution = text_of(row, self.answer_column, "task.answer_column", where)
        final = FINAL.search(solution)
        if final is None:
            raise DataError(
                f"{where}: column {self.answer_column!r} has no final answer; a solution ends in a line like '#### 72'."
            )
        return Example(
            prompt=self.prompt_template.replace("{question}", question),
            reference=ANNOTATION.sub("", solution) if self.strip_annotations else solution,
            columns={"final_answer": final[1].strip()},
        )
