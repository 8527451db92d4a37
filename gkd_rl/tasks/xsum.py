"""XSum: a news article -> one sentence (GKD paper, section 4.1). Generated articles, local files or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from gkd_rl.embedded.news import generate
from gkd_rl.embedded.tokenizer import build_tokenizer
from gkd_rl.errors import DataError
from gkd_rl.tasks.rows import file_rows, hub_rows, text_of
from gkd_rl.types import Example

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Xsum:
    """Rows of the summarisation task.

    Attributes:
        data: where rows come from without `data_files`.
        seed: of the generated articles.
        train_size: generated train rows; for files and the Hub the most that are read (likewise the other sizes).
        data_files: split -> file, for data=files.
        hub_id: data set, for data=hub.
        document_column: column of the article.
        summary_column: column of the reference.
        prompt_prefix: put before every article.
        max_prompt_tokens: longer articles are cut.
        max_completion_tokens: longest summary.
    """

    data: Literal["embedded", "files", "hub"]
    seed: int
    train_size: int
    validation_size: int
    test_size: int
    data_files: dict[str, str] | None
    hub_id: str
    document_column: str
    summary_column: str
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

    @property
    def origin(self) -> str:
        """Where rows come from: the files that are given, else what `data` says."""
        return "files" if self.data_files else self.data

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, a file is unreadable, or a row lacks a column.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        if self.origin == "embedded":
            items = generate(split, sizes[split], self.seed)
            return [self._example(item.article, item.summary) for item in items]
        if self.origin == "files":
            origin = (self.data_files or {})[split]
            rows = file_rows(origin, f"task.data_files.{split}")
        else:
            origin = f"{self.hub_id}:{split}"
            rows = hub_rows(self.hub_id, split)
        return [self._from_row(row, f"{origin} row {i + 1}") for i, row in enumerate(rows[: sizes[split]])]

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that comes with the data; None when the checkpoint must bring its own."""
        return build_tokenizer() if self.origin == "embedded" else None

    def _from_row(self, row: dict[str, Any], where: str) -> Example:
        document = text_of(row, self.document_column, "task.document_column", where)
        return self._example(document, text_of(row, self.summary_column, "task.summary_column", where))

    def _example(self, document: str, summary: str) -> Example:
        return Example(prompt=self.prompt_prefix + document, reference=summary, columns={"document": document})
