"""Files and Hub data sets row by row: every row with its number, or with the reason why it cannot be read.

jsonl counts lines, the other formats count rows from 1 without the header. A byte that is not UTF-8 affects its own row
only: in csv and json it becomes a lone surrogate, which `Row.text` refuses.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gkd_rl.errors import DataError

NumberedRow = tuple[int, "dict[str, Any] | RowProblem"]


class RowProblem(ValueError):
    """One row cannot be used; the message is the reason without the row's number, so that equal reasons are counted."""


def file_rows(path: str, key: str) -> Iterator[NumberedRow]:
    """The rows of one file.

    Args:
        path: the file; its ending is a key of `READERS`.
        key: setting that names it, for messages.

    Raises:
        DataError: the file is missing, of an unknown format, or unreadable as a whole.
    """
    file = Path(path).expanduser()
    if file.suffix not in READERS:
        raise DataError(f"{key}={path}: the ending must be one of {', '.join(READERS)}.")
    if not file.is_file():
        raise DataError(f"{key}={path}: there is no such file.")
    try:
        yield from READERS[file.suffix](file)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise DataError(f"{key}={path}: the file could not be read ({_first_line(error)}).") from error


def hub_rows(hub_id: str, split: str, name: str | None = None) -> Iterator[NumberedRow]:
    """The rows of one split of a Hub data set.

    Args:
        hub_id: the data set.
        split: its split.
        name: its configuration, if it has several.

    Raises:
        DataError: it cannot be loaded or has no such split.
    """
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(hub_id, name, split=split)
    except Exception as error:  # network, authentication and naming errors have no common class
        raise DataError(
            f"task.hub_id={hub_id}: split {split!r} could not be loaded ({_first_line(error)}). "
            "Without access to the Hub use task.data=files and task.data_files."
        ) from error
    yield from enumerate(rows, start=1)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _jsonl(file: Path) -> Iterator[NumberedRow]:
    """One JSON object a line; blank lines are skipped."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _line(line)


def _line(line: bytes) -> dict[str, Any] | RowProblem:
    try:
        return _object(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return RowProblem("invalid UTF-8")
    except (ValueError, RecursionError):
        return RowProblem("broken JSON")


def _object(value: Any) -> dict[str, Any] | RowProblem:
    return value if isinstance(value, dict) else RowProblem("not a JSON object")


def _json(file: Path) -> Iterator[NumberedRow]:
    """An array of objects, or, if the file does not start with `[`, one object a line."""
    with file.open("rb") as start:
        head = start.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"["):
        yield from _jsonl(file)
        return
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    yield from ((number, _object(value)) for number, value in enumerate(json.loads(text), start=1))


def _csv(file: Path) -> Iterator[NumberedRow]:
    """Rows below a header, separated by commas, with double quotes."""
    limit = csv.field_size_limit(sys.maxsize)  # the limit is task.max_characters
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            number = 0
            while (fields := _next_fields(reader)) is not None:
                if isinstance(fields, list) and not fields:
                    continue  # a blank line
                number += 1
                yield number, _record(header, fields)
    finally:
        csv.field_size_limit(limit)


def _next_fields(reader: Iterator[list[str]]) -> list[str] | RowProblem | None:
    """The fields of the next row; None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        lost = "a quote is not closed, the rows after it are lost" if "end of data" in str(error) else error
        return RowProblem(f"broken CSV ({lost})")


def _record(header: list[str], fields: list[str] | RowProblem) -> dict[str, Any] | RowProblem:
    if isinstance(fields, RowProblem):
        return fields
    if len(fields) != len(header):
        return RowProblem(f"{len(fields)} fields for {len(header)} columns")
    return dict(zip(header, fields, strict=True))


def _parquet(file: Path) -> Iterator[NumberedRow]:
    import pyarrow.parquet as parquet

    number = 0
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
        for i in range(batch.num_rows):
            number += 1
            try:
                yield number, batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield number, RowProblem("invalid UTF-8")


READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
