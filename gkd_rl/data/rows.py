"""Rows of files and Hub data sets as examples. Rows that cannot be used are dropped and reported, or refused.

A task defines where its rows are (`TaskRows`) and how one becomes an example (a function of `Row`). `RowRules` states
which rows cannot be used and what happens to them, `RowReport` which ones they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gkd_rl.data.row_files import NumberedRow, RowProblem, file_rows, hub_rows
from gkd_rl.errors import DataError
from gkd_rl.types import Example

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
MAX_NUMBERS_SHOWN = 5  # row numbers in a message, for each reason
ON_MALFORMED = ("drop", "refuse")


@dataclass(frozen=True)
class Row:
    """One row, with the limit on its texts.

    Attributes:
        columns: column -> value.
        max_characters: longer texts cannot be used.
    """

    columns: Mapping[str, Any]
    max_characters: int

    def text(self, column: str) -> str:
        """The text of a column; `translation.de` is the field `de` of the column `translation`.

        Raises:
            RowProblem: it is missing, empty, too long, not text, or not valid Unicode.
        """
        value = self._value(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RowProblem(f"column {column!r} is empty")
        if not isinstance(value, str):
            raise RowProblem(f"column {column!r} is {type(value).__name__}, not text")
        if len(value) > self.max_characters:
            raise RowProblem(f"column {column!r} is longer than {self.max_characters:,} characters")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise RowProblem(f"invalid UTF-8 in column {column!r}")
        return value

    def optional_text(self, column: str) -> str:
        """As `text`, but "" for a column that is missing or empty."""
        try:
            value = self._value(column)
        except RowProblem:
            return ""
        return "" if value is None or value == "" else self.text(column)

    def identifier(self, column: str) -> str:
        """The value of a column that identifies the row, as text.

        Raises:
            RowProblem: it is missing or empty.
        """
        value = self._value(column)
        if value is None or value == "":
            raise RowProblem(f"column {column!r} is empty")
        return repr(value)

    def _value(self, column: str) -> Any:
        outer, _, inner = column.partition(".")
        if column in self.columns:
            return self.columns[column]
        nested = self.columns.get(outer)
        if inner and isinstance(nested, Mapping) and inner in nested:
            return nested[inner]
        raise RowProblem(f"column {column!r} is missing")


@dataclass(frozen=True)
class RowRules:
    """Which rows cannot be used, and what happens to them.

    Attributes:
        on_malformed: "drop" omits and reports them; "refuse" raises.
        max_characters: a row with a longer text cannot be used, >= 1.
        id_column: a row that repeats an earlier row's value in this column cannot be used; None: duplicates are not
            searched for.

    Raises:
        DataError: a value is out of range.
    """

    on_malformed: str
    max_characters: int
    id_column: str | None

    def __post_init__(self) -> None:
        if self.on_malformed not in ON_MALFORMED:
            raise DataError(f"task.on_malformed={self.on_malformed}: it takes {' or '.join(ON_MALFORMED)}.")
        if self.max_characters < 1:
            raise DataError(f"task.max_characters={self.max_characters}: it takes a whole number >= 1.")


@dataclass(frozen=True)
class RowReport:
    """Which rows of a split could not be used.

    Attributes:
        source: the file, or the data set and its split.
        read: number of rows that were read.
        problems: reason -> numbers of the rows that could not be used for it.
    """

    source: str
    read: int
    problems: Mapping[str, tuple[int, ...]]

    @property
    def unusable(self) -> int:
        """Number of rows that could not be used."""
        return sum(map(len, self.problems.values()))

    def reasons(self) -> str:
        """E.g. `column 'document' is empty: row 7; invalid UTF-8: 12 rows, 3, 5, 8, 9, 11, ...`."""
        return "; ".join(f"{reason}: {_row_numbers(rows)}" for reason, rows in self.problems.items())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: counts, and the first row numbers of each reason."""
        found = {
            reason: {"rows": len(rows), "first": list(rows[:MAX_NUMBERS_SHOWN])}
            for reason, rows in self.problems.items()
        }
        return {"source": self.source, "read": self.read, "dropped": self.unusable, "reasons": found}

    def __str__(self) -> str:
        return f"{self.source}: {self.unusable:,} of {self.read:,} rows dropped: {self.reasons()}"


def _row_numbers(rows: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, rows[:MAX_NUMBERS_SHOWN]))
    if len(rows) == 1:
        return f"row {shown}"
    return f"rows {shown}" if len(rows) <= MAX_NUMBERS_SHOWN else f"{len(rows):,} rows, {shown}, ..."


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task's splits.

    Attributes:
        data_files: split -> file; None or empty reads the Hub.
        hub_id: data set on the Hub.
        hub_config: its configuration, if it has several.
        rules: which rows cannot be used, and what happens to them.
        columns: setting -> name of the column that it selects, for messages.
        reports: split -> report, for the splits that were read.
    """

    data_files: Mapping[str, str] | None
    hub_id: str
    hub_config: str | None
    rules: RowRules
    columns: Mapping[str, str]
    reports: dict[str, RowReport] = field(default_factory=dict, compare=False)

    def source(self, split: str) -> str:
        """The file of a split, or the data set and the split."""
        return self.data_files[split] if self.data_files else f"{self.hub_id}:{split}"

    def examples(self, split: str, parse: Callable[[Row], Example], limit: int | None = None) -> list[Example]:
        """The first `limit` usable rows of a split; the others are reported in the log and in `reports`.

        Args:
            split: a key of `data_files`, or a split of the data set on the Hub.
            parse: row -> example; it raises RowProblem for a row that cannot be used.
            limit: largest number of examples; None: all.

        Raises:
            DataError: the rows cannot be read, none is usable, or one is not usable and `rules` refuse it.
        """
        examples: list[Example] = []
        problems: dict[str, list[int]] = {}
        names: dict[str, None] = {}
        seen: set[str] = set()
        read = 0
        for number, columns in self._numbered(split):
            if limit is not None and len(examples) >= limit:
                break
            read += 1
            try:
                if isinstance(columns, RowProblem):
                    raise columns
                names |= dict.fromkeys(columns)
                row = Row(columns, self.rules.max_characters)
                example = parse(row)
                self._check_duplicate(row, seen)
            except RowProblem as problem:
                problems.setdefault(str(problem), []).append(number)
            else:
                examples.append(example)
        report = RowReport(self.source(split), read, {reason: tuple(rows) for reason, rows in problems.items()})
        self._check_usable(report, bool(examples), split, list(map(str, names)))
        if problems and self.reports.get(split) != report:
            log.warning(str(report))
        self.reports[split] = report
        return examples

    def _numbered(self, split: str) -> Iterator[NumberedRow]:
        if self.data_files:
            return file_rows(self.data_files[split], f"task.data_files.{split}")
        return hub_rows(self.hub_id, split, self.hub_config)

    def _check_duplicate(self, row: Row, seen: set[str]) -> None:
        """Add the row's identifier to `seen`.

        Raises:
            RowProblem: an earlier usable row has the same identifier.
        """
        if self.rules.id_column is None:
            return
        identifier = row.identifier(self.rules.id_column)
        if identifier in seen:
            raise RowProblem(f"duplicate in column {self.rules.id_column!r}")
        seen.add(identifier)

    def _check_usable(self, report: RowReport, usable: bool, split: str, names: list[str]) -> None:
        """Raise DataError for a split without a usable row, or with an unusable one that the rules refuse."""
        key = f"task.data_files.{split}" if self.data_files else "task.hub_id"
        if report.read == 0:
            raise DataError(f"{key}={report.source}: there are no rows in it.")
        if not usable:
            settings = " and ".join(f"{one}={column}" for one, column in self.columns.items())
            there = f"{settings} must name columns of the rows, which are {', '.join(names)}." if names else ""
            raise DataError(f"{key}={report.source}: no row can be used: {report.reasons()}. {there}".rstrip())
        if report.problems and self.rules.on_malformed == "refuse":
            raise DataError(
                f"{key}={report.source}: {report.unusable:,} of {report.read:,} rows cannot be used: "
                f"{report.reasons()}. Fix them, or drop them with task.on_malformed=drop."
            )
