"""The contract of a task; a new task is one file with these members and one YAML.

What tasks have in common whose rows are generated, or come from local files or the Hub.

What became of a run's data: rows that were dropped, prompts and references that the limits cut.
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


class Task(Protocol):
    """Rows of one data set, as prompts and references."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are cut."""
        ...

    @property
    def max_completion_tokens(self) -> int:
        """Longest completion, its end-of-sequence token included."""
        ...

    def examples(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test"."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that comes with the data; None when the checkpoint must bring its own."""
        ...


@runtime_checkable
class ReadTask(Protocol):
    """A task that also tells what became of the rows of files or the Hub."""

    @property
    def row_reports(self) -> Mapping[str, RowReport]:
        """Split -> report, of the splits that were read."""
        ...


def row_reports(task: Task) -> Mapping[str, RowReport]:
    """A task's reports; none of one that generates its rows."""
    return task.row_reports if isinstance(task, ReadTask) else {}


@dataclass(frozen=True)
class DataSource(ABC):
    """Where rows come from, how many are taken, and what becomes of those that cannot be used.

    Attributes:
        data: where rows come from without `data_files`.
        train_size: generated train rows; for files and the Hub the most that are taken (likewise the other sizes).
        data_files: split -> file, read in place of `data`.
        hub_id: data set, for data=hub.
        hub_config: its configuration, where it has several.
        id_column: column that no two rows share; None looks for no duplicates.
        on_malformed: rows that cannot be used: "drop" or "refuse".
        max_characters: rows with a longer text cannot be used.
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
        _ = self.rows  # its settings are refused here

    @property
    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Setting -> column that it names."""

    @property
    def origin(self) -> str:
        """Where rows come from: the files that are given, else what `data` says."""
        return "files" if self.data_files else self.data

    @cached_property
    def rows(self) -> TaskRows:
        """The rows of files or the Hub."""
        rules = RowRules(self.on_malformed, self.max_characters, self.id_column)
        return TaskRows(self.data_files, self.hub_id, self.hub_config, rules, self.columns)

    @property
    def row_reports(self) -> dict[str, RowReport]:
        """Split -> what became of its rows, of the splits that were read from files or the Hub."""
        return self.rows.reports

    def size(self, split: str) -> int:
        """How many rows of a split are taken.

        Raises:
            DataError: the split is unknown.
        """
        sizes = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        if split not in sizes:
            raise DataError(f"split {split!r} is unknown: use one of {', '.join(sizes)}.")
        return sizes[split]


log = logging.getLogger(__name__)

ROWS = 2048  # of a split, whose lengths are looked at


@dataclass(frozen=True)
class TextLengths:
    """TextLengths of one kind of text, in tokens.

    Attributes:
        limit: longer texts are cut.
        longest: before anything was cut.
        cut: how many are longer than the limit.
    """

    limit: int
    longest: int
    cut: int


@dataclass(frozen=True)
class CutReport:
    """How many of the rows that were looked at are cut.

    Attributes:
        rows: the first so many of the split.
        prompts: theirs.
        references: theirs, with their end.
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
        """The settings that would leave every text whole."""
        limits = {"prompt": self.prompts, "completion": self.references}
        cut = [f"task.max_{name}_tokens={one.longest}" for name, one in limits.items() if one.cut]
        return f"Nothing is cut at {' and '.join(cut)}" if cut else "Nothing is cut"


def cut_report(codec: TextCodec, examples: Sequence[Example]) -> CutReport:
    """Look at the first rows of a split."""
    rows = examples[:ROWS]
    prompts, references = codec.lengths(rows)

    def of(lengths: list[int], limit: int) -> TextLengths:
        return TextLengths(limit, max(lengths), sum(length > limit for length in lengths))

    return CutReport(len(rows), of(prompts, codec.max_prompt_tokens), of(references, codec.max_completion_tokens))


def data_facts(task: Task, codec: TextCodec, splits: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """What eval.json says about the data; texts that are cut are a warning.

    Args:
        task: has read the splits.
        codec: of the student.
        splits: name -> rows.
    """
    lengths = {name: cut_report(codec, examples) for name, examples in splits.items()}
    for name, report in lengths.items():
        if report.prompts.cut or report.references.cut:
            log.warning("%s: %s: they are cut at their end. %s.", name, report, report.advice())
    rows = {name: report.as_dict() for name, report in row_reports(task).items()}
    return {"rows": rows, "lengths": {name: asdict(report) for name, report in lengths.items()}}
