"""What tasks have in common whose rows are generated, or come from local files or the Hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from gkd_rl.errors import DataError
from gkd_rl.tasks.rows import SPLITS, RowReport, RowRules, TaskRows


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
