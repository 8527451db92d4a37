"""Summaries: an article -> a short text. XSum (GKD paper, section 4.1), CNN/DailyMail and any rows of their shape.

Generated articles (XSum only), local files or the Hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gkd_rl.embedded.news import generate
from gkd_rl.embedded.tokenizer import build_tokenizer
from gkd_rl.errors import DataError
from gkd_rl.tasks.rows import SPLITS, Row, RowReport, RowRules, TaskRows
from gkd_rl.types import Example


@dataclass(frozen=True)
class Xsum:
    """Rows of a summarisation task.

    Attributes:
        data: where rows come from without `data_files`.
        seed: of the generated articles.
        train_size: generated train rows; for files and the Hub the most that are taken (likewise the other sizes).
        data_files: split -> file, for data=files.
        hub_id: data set, for data=hub.
        hub_config: its configuration, where it has several.
        document_column: column of the article.
        summary_column: column of the reference.
        id_column: column that no two rows share; None looks for no duplicates.
        on_malformed: rows that cannot be used: "drop" or "refuse".
        max_characters: rows with a longer text cannot be used.
        prompt_prefix: put before every article.
        max_prompt_tokens: longer prompts are cut at their end.
        max_completion_tokens: longest summary.
    """

    data: Literal["embedded", "files", "hub"]
    seed: int
    train_size: int
    validation_size: int
    test_size: int
    data_files: dict[str, str] | None
    hub_id: str
    hub_config: str | None
    document_column: str
    summary_column: str
    id_column: str | None
    on_malformed: Literal["drop", "refuse"]
    max_characters: int
    prompt_prefix: str
    max_prompt_tokens: int
    max_completion_tokens: int

    def __post_init__(self) -> None:
        if self.data not in ("embedded", "files", "hub"):
            raise DataError(f"task.data={self.data}: task.data takes embedded, files or hub.")
        if self.origin == "files":
            missing = [split for split in SPLITS if split not in (self.data_files or {})]
            if missing:
                raise DataError(
                    f"task.data=files needs task.data_files.{missing[0]}: a path to a jsonl, csv or parquet "
                    "file, e.g. task.data_files={train: a.jsonl, validation: b.jsonl, test: c.jsonl}."
                )
        _ = self.rows  # its settings are refused here

    @property
    def origin(self) -> str:
        """Where rows come from: the files that are given, else what `data` says."""
        return "files" if self.data_files else self.data

    @cached_property
    def rows(self) -> TaskRows:
        """The rows of files or the Hub."""
        rules = RowRules(self.on_malformed, self.max_characters, self.id_column)
        columns = {"task.document_column": self.document_column, "task.summary_column": self.summary_column}
        return TaskRows(self.data_files, self.hub_id, self.hub_config, rules, columns)

    @property
    def row_reports(self) -> dict[str, RowReport]:
        """Split -> what became of its rows, of the splits that were read from files or the Hub."""
        return self.rows.reports

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, or its rows cannot be used.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        if self.origin == "embedded":
            items = generate(split, sizes[split], self.seed)
            return [self._example(item.article, item.summary) for item in items]
        return self.rows.examples(split, self._parse, sizes[split])

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that comes with the data; None when the checkpoint must bring its own."""
        return build_tokenizer() if self.origin == "embedded" else None

    def _parse(self, row: Row) -> Example:
        return self._example(row.text(self.document_column), row.text(self.summary_column))

    def _example(self, document: str, summary: str) -> Example:
        return Example(prompt=self.prompt_prefix + document, reference=summary, columns={"document": document})
