"""Rows that reward models are trained on: files of one's own, or a generator; held-out rows share no document."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LABEL_NAMES = {"1": 1, "entailment": 1, "0": 0, "not_entailment": 0, "neutral": 0, "contradiction": 0}


def read_files(files: Sequence[str]) -> list[Row]:
    """Rows of .jsonl and .csv files.

    Raises:
        ValueError: a file is missing, of another kind, or unreadable.
    """
    rows: list[Row] = []
    for name in files:
        file = Path(name).expanduser()
        if not file.is_file() or file.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"files={name}: takes .jsonl or .csv files that exist.")
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                rows += csv.DictReader(stream) if file.suffix == ".csv" else map(json.loads, stream)
        except ValueError as error:
            raise ValueError(f"files={name}: it cannot be read ({error}).") from error
    return rows


def checked(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Rows with texts in all columns, and labels as 0 or 1.

    Raises:
        ValueError: a row lacks a column, or its label is none.
    """
    if not rows:
        raise ValueError("there are no rows: set files=[rows.jsonl], or rows to a generator.")
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in columns if not isinstance(row, Mapping) or row.get(name) is None]
        if lacking:
            raise ValueError(f"row {number} has no {', '.join(lacking)}: rows take the columns {', '.join(columns)}.")
        if "label" in columns and str(row["label"]).casefold() not in LABEL_NAMES:
            raise ValueError(f"row {number}: label={row['label']!r}: takes one of {', '.join(LABEL_NAMES)}.")
    if "label" not in columns:
        return list(rows)
    return [{**row, "label": LABEL_NAMES[str(row["label"]).casefold()]} for row in rows]


def split(
    rows: Sequence[Row], document: Callable[[Row], str], held_out: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Rows to train on and held-out rows, without a document in both.

    Args:
        rows: all of them.
        document: what a row is about.
        held_out: share of the documents.
        seed: of their choice.

    Raises:
        ValueError: one of the two would be empty.
    """
    documents = sorted({document(row) for row in rows})
    random.Random(seed).shuffle(documents)
    aside = set(documents[: round(held_out * len(documents))])
    if not 0 < len(aside) < len(documents):
        raise ValueError(
            f"held_out={held_out} of {len(documents)} documents leaves nothing to train on or nothing to measure on; "
            "set it to a share between 0 and 1, or give more documents."
        )
    return [row for row in rows if document(row) not in aside], [row for row in rows if document(row) in aside]
