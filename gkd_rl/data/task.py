"""The contract of a task, the base of tasks with several sources, and the report on the data of a run.

A task is one file in `tasks/` with the members of `Task`, and one YAML file in conf/task. Tasks whose rows are
generated or come from local files or the Hub derive from `DataSource`. `data_facts` makes the entry "data" of
eval.json: rows that were dropped, and texts that the token limits truncate.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from gkd_rl.data.rows import SPLITS, RowReport, RowRules, TaskRows
from gkd_rl.errors import DataError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.types import Example

log = logging.getLogger(__name__)

MEASURED_ROWS = 2048  # rows of a split whose lengths are measured


class Task(Protocol):
    """Rows of one data set, as prompts and references."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are truncated at their end."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """Longest completion, its end-of-sequence token included."""
        ...

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test".

        Raises:
            DataError: the split is unknown, or its rows cannot be used.
        """
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that belongs to the data; None if the checkpoint's is used."""
        ...


@runtime_checkable
class ReportsRows(Protocol):
    """A task that reports which rows of files or the Hub it dropped."""

    @property
    def row_reports(self) -> Mapping[str, RowReport]:
        """Split -> report, for the splits that were read."""
        ...


def row_reports(task: Task) -> Mapping[str, RowReport]:
    """Reports of a task by split; empty for a task whose rows are generated."""
    return task.row_reports if isinstance(task, ReportsRows) else {}


@dataclass(frozen=True)
class DataSource(ABC):
    """Base of tasks whose rows are generated, or come from local files or the Hub.

    Attributes:
        data: source of the rows unless `data_files` are given: embedded (generated), files or hub.
        train_size: rows of the train split that are generated, or the most that are read; likewise the other sizes.
        data_files: split -> file; replaces `data`.
        hub_id: data set on the Hub, for data=hub.
        hub_config: its configuration, if it has several.
        id_column: column whose values must differ between rows; None: duplicates are not searched for.
        on_malformed: what happens to rows that cannot be used: "drop" or "refuse".
        max_characters: rows with a longer text cannot be used.

    Raises:
        DataError: the settings contradict each other, or a value is out of range.
    """

    FILES: ClassVar[tuple[str, ...]] = SPLITS  # splits that need a file of their own

    data: Literal["embedded", "files", "hub"]
    train_size: int
    validation_size: int
    test_size: int
    data_files: dict[str, str] | None
    hub_id: str
    hub_config: str | None
    id_column: str | None
    on_malformed: Literal["drop", "refuse"]
    max_characters: int

    def __post_init__(self) -> None:
        if self.data not in ("embedded", "files", "hub"):
            raise DataError(f"task.data={self.data}: task.data takes embedded, files or hub.")
        files = self.data_files or {}
        example = f"task.data_files={{{', '.join(f'{split}: {split}.jsonl' for split in self.FILES)}}}"
        if self.origin == "files":
            for split in self.FILES:
                if split not in files:
                    raise DataError(
                        f"task.data=files needs task.data_files.{split}, a jsonl, json, csv or parquet file with "
                        f"columns {', '.join(self.columns.values())}: type '{example}' or task.data=hub."
                    )
        for split in files.keys() - set(SPLITS):
            raise DataError(
                f"task.data_files.{split}={files[split]}: there is no such split; task.data_files takes "
                f"{', '.join(SPLITS)}."
            )
        _ = self.rows  # checks the settings of rows

    @property
    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Setting -> name of the column that it selects, for messages."""

    @property
    def origin(self) -> str:
        """Source of the rows: "files" if `data_files` are given, else `data`."""
        return "files" if self.data_files else self.data

    @cached_property
    def rows(self) -> TaskRows:
        """The rows of files or the Hub."""
        rules = RowRules(self.on_malformed, self.max_characters, self.id_column)
        return TaskRows(self.data_files, self.hub_id, self.hub_config, rules, self.columns)

    @property
    def row_reports(self) -> dict[str, RowReport]:
        """Split -> report, for the splits that were read from files or the Hub."""
        return self.rows.reports

    def size(self, split: str) -> int:
        """Number of rows of a split.

        Raises:
            DataError: the split is unknown.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        return sizes[split]


@dataclass(frozen=True)
class TextLengths:
    """Lengths of prompts or of references, in tokens.

    Attributes:
        limit: longer texts are truncated.
        longest: length of the longest text before truncation.
        cut: number of texts longer than the limit.
    """

    limit: int
    longest: int
    cut: int


@dataclass(frozen=True)
class TruncationReport:
    """How many texts of a split the token limits truncate.

    Attributes:
        rows: measured rows, the first ones of the split.
        prompts: lengths of their prompts.
        references: lengths of their references, end-of-sequence tokens included.
    """

    rows: int
    prompts: TextLengths
    references: TextLengths

    def __str__(self) -> str:
        return (
            f"of {self.rows:,} rows {self.prompts.cut:,} prompts are longer than {self.prompts.limit} tokens (longest "
            f"{self.prompts.longest:,}), and {self.references.cut:,} references than {self.references.limit} (longest "
            f"{self.references.longest:,})"
        )

    def advice(self) -> str:
        """The settings with which no text is truncated."""
        limits = {"prompt": self.prompts, "completion": self.references}
        raised = [f"task.max_{name}_tokens={one.longest}" for name, one in limits.items() if one.cut]
        return f"Nothing is truncated with {' and '.join(raised)}" if raised else "Nothing is truncated"


def truncation_report(codec: TextCodec, examples: Sequence[Example]) -> TruncationReport:
    """Measure the first `MEASURED_ROWS` rows of a split."""
    rows = examples[:MEASURED_ROWS]
    prompts, references = codec.lengths(rows)

    def lengths_of(lengths: list[int], limit: int) -> TextLengths:
        return TextLengths(limit, max(lengths), sum(length > limit for length in lengths))

    return TruncationReport(
        len(rows),
        lengths_of(prompts, codec.max_prompt_tokens),
        lengths_of(references, codec.max_completion_tokens),
    )


def data_facts(task: Task, codec: TextCodec, splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """The entry "data" of eval.json: dropped rows and lengths by split. Truncated texts are logged as a warning.

    Args:
        task: the task, after it has read the splits.
        codec: of the student.
        splits: name -> rows.
    """
    lengths = {name: truncation_report(codec, examples) for name, examples in splits.items()}
    for name, report in lengths.items():
        if report.prompts.cut or report.references.cut:
            log.warning("%s: %s: they are truncated at their end. %s.", name, report, report.advice())
    rows = {name: report.as_dict() for name, report in row_reports(task).items()}
    return {"rows": rows, "lengths": {name: asdict(report) for name, report in lengths.items()}}
