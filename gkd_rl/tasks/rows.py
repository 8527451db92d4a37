"""Rows of local files (jsonl, json, csv, parquet) and of Hub data sets, read through `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gkd_rl.errors import DataError

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def file_rows(path: str, key: str) -> list[dict[str, Any]]:
    """All rows of one file.

    Raises:
        DataError: the file is missing, of an unknown kind or unreadable; `key` is the setting that named it.
    """
    from datasets import load_dataset

    file = Path(path).expanduser()
    if file.suffix not in READERS:
        raise DataError(f"{key}={path}: the ending must be one of {', '.join(READERS)}.")
    if not file.is_file():
        raise DataError(f"{key}={path}: there is no such file.")
    try:
        return list(load_dataset(READERS[file.suffix], data_files=str(file), split="train"))  # pyright: ignore
    except Exception as error:  # `datasets` wraps parser errors in several unrelated classes
        raise DataError(
            f"{key}={path}: the file could not be read ({str(error).partition(chr(10))[0][:200]})."
        ) from error


def hub_rows(hub_id: str, split: str, name: str | None = None) -> list[dict[str, Any]]:
    """All rows of one split of a Hub data set; `name` chooses one of its configurations, where it has several.

    Raises:
        DataError: it cannot be reached or has no such split.
    """
    from datasets import load_dataset

    try:
        return list(load_dataset(hub_id, name, split=split))  # pyright: ignore
    except Exception as error:  # network, authentication and naming errors have no common class
        raise DataError(
            f"task.hub_id={hub_id}: split {split!r} could not be loaded ({str(error).partition(chr(10))[0][:200]}). "
            "Without a Hub use task.data=files and task.data_files."
        ) from error


def text_of(row: dict[str, Any], column: str, key: str, where: str) -> str:
    """The text in one column of one row.

    Raises:
        DataError: the column is missing or not text, with the row's place and the columns there are.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        found = (
            "missing" if column not in row else "empty" if value in ("", None) else f"{type(value).__name__}, not text"
        )
        raise DataError(f"{where}: column {column!r} is {found}; {key} takes one of {', '.join(map(str, row))}.")
    return value
