"""Malformed rows: every kind of problem in every format is reported by row number, and affects no other row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from gkd_rl.data.row_files import RowProblem, file_rows, hub_rows
from gkd_rl.data.rows import Row, RowReport, RowRules, TaskRows
from gkd_rl.errors import DataError
from gkd_rl.types import Example

GOOD = b'{"text": "words \xc3\xa9"}\n'


def rows_of(path: Path, **rules: Any) -> TaskRows:
    settings = RowRules(**({"on_malformed": "drop", "max_characters": 50_000, "id_column": None} | rules))
    return TaskRows({"train": str(path)}, "", None, settings, {"task.text_column": "text"})


def read(rows: TaskRows, limit: int | None = None) -> list[str]:
    return [one.prompt for one in rows.examples("train", lambda row: Example(row.text("text"), "", {}), limit)]


def test_every_problem_of_json_lines_has_its_line_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        b"\xef\xbb\xbf" + GOOD,
        b"\n",  # blank: no row, but a line
        b'{"text": "caf\xe9"}\n',
        b'{"text": "cut\n',
        b'["text"]\n',
        b'{"other": "words"}\n',
        b'{"text": null}\n',
        b'{"text": 5}\n',
        b'{"text": "\\ud800"}\n',
        json.dumps({"text": "x" * 100_000}).encode() + b"\n",
        json.dumps({"text": "x" * 50_000}).encode() + b"\r\n",
        b"[" * 100_000 + b"\n",
        GOOD.strip(),
    ]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join(lines))
    rows = rows_of(path)
    assert read(rows) == ["words é", "x" * 50_000, "words é"]
    report = rows.reports["train"]
    assert report.problems == {
        "invalid UTF-8": (3,),
        "broken JSON": (4, 12),
        "not a JSON object": (5,),
        "column 'text' is missing": (6,),
        "column 'text' is empty": (7,),
        "column 'text' is int, not text": (8,),
        "invalid UTF-8 in column 'text'": (9,),
        "column 'text' is longer than 50,000 characters": (10,),
    }
    assert (report.read, report.unusable) == (12, 9)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage() == str(report)
    assert str(report).startswith(f"{path}: 9 of 12 rows dropped: invalid UTF-8: row 3; broken JSON: rows 4, 12; ")
    with pytest.raises(DataError, match=r"task\.data_files\.train=.*9 of 12 rows cannot be used: invalid UTF-8: row 3"):
        read(rows_of(path, on_malformed="refuse"))


def test_json_is_an_array_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(b'\n [{"text": "one"}, {"text": "caf\xe9"}, 3, {"text": "four"}]')
    rows = rows_of(path)
    assert read(rows) == ["one", "four"]
    assert rows.reports["train"].problems == {"invalid UTF-8 in column 'text'": (2,), "not a JSON object": (3,)}
    path.write_bytes(GOOD + b"{\n" + GOOD)
    rows = rows_of(path)
    assert read(rows) == ["words é", "words é"]
    assert rows.reports["train"].problems == {"broken JSON": (2,)}


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    limit = csv.field_size_limit()
    long = b"x" * 200_000
    path.write_bytes(
        b'\xef\xbb\xbftext,other\r\n"a ""quoted"",\ntext",1\r\ncaf\xe9,2\nfew\n\nNA,4\nx,y,z\n'
        + b'"a"b,6\n,7\n'
        + long
        + b',8\n1,9\n"never closed,\n'
    )
    rows = rows_of(path)
    assert read(rows) == ['a "quoted",\ntext', "NA", "1"]
    assert rows.reports["train"].problems == {
        "invalid UTF-8 in column 'text'": (2,),
        "1 fields for 2 columns": (3,),
        "3 fields for 2 columns": (5,),
        "broken CSV (',' expected after '\"')": (6,),
        "broken CSV (a quote is not closed, the rows after it are lost)": (10,),
        "column 'text' is empty": (7,),
        "column 'text' is longer than 50,000 characters": (8,),
    }
    assert csv.field_size_limit() == limit


def test_parquet(tmp_path: Path) -> None:
    values = pa.array([b"one", b"caf\xe9", None, b"four"], pa.binary())
    strings = pa.StringArray.from_buffers(4, *values.buffers()[1:], values.buffers()[0])  # unchecked, as in a file
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"text": strings}), path)
    rows = rows_of(path)
    assert read(rows) == ["one", "four"]
    assert rows.reports["train"].problems == {"invalid UTF-8": (2,), "column 'text' is empty": (3,)}


def test_duplicates_are_found_if_a_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    values: list[dict[str, Any]] = [
        {"id": 1, "text": ""},
        {"id": 1, "text": "first"},
        {"id": 1, "text": "second"},
        {"id": "1", "text": "another"},
        {"text": "none"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    assert read(rows_of(path)) == ["first", "second", "another", "none"]
    rows = rows_of(path, id_column="id")
    assert read(rows) == ["first", "another"]  # a row that is dropped keeps no other from its id
    assert rows.reports["train"].problems == {
        "column 'text' is empty": (1,),
        "duplicate in column 'id'": (3,),
        "column 'id' is missing": (5,),
    }


def test_reading_stops_at_the_limit_and_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"{\n" + GOOD * 3 + b"{\n")
    rows = rows_of(path)
    assert len(read(rows, 2)) == len(read(rows, 2)) == 2
    assert rows.reports["train"].read == 3 and len(caplog.records) == 1
    assert len(read(rows)) == 3
    assert rows.reports["train"].problems == {"broken JSON": (1, 5)} and len(caplog.records) == 2


def test_nothing_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"task\.data_files\.train=.*: there are no rows in it"):
        read(rows_of(path))
    path.write_bytes(b"{\n" * 7)
    with pytest.raises(DataError, match=r"no row can be used: broken JSON: 7 rows, 1, 2, 3, 4, 5, \.\.\.\.$"):
        read(rows_of(path))
    path.write_bytes(b'{"document": "a", "title": "b"}\n{"id": 1}\n')
    with pytest.raises(
        DataError, match=r"task\.text_column=text must name columns of the rows, which are document, title, id"
    ):
        read(rows_of(path))


def test_rows_of_the_hub_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *names, split: [{"text": ""}, {"text": f"{names} {split}"}])
    assert next(hub_rows("some/data", "train")) == (1, {"text": ""})
    rules = RowRules("drop", 100, None)
    rows = TaskRows(None, "some/data", "main", rules, {"task.text_column": "text"})
    assert read(rows) == ["('some/data', 'main') train"]
    assert str(rows.reports["train"]) == "some/data:train: 1 of 2 rows dropped: column 'text' is empty: row 1"


def test_columns_of_a_row() -> None:
    row = Row({"a": {"de": "ein", "en": ""}, "b.c": "dotted", "none": None, "number": 4}, 10)
    assert (row.text("a.de"), row.text("b.c")) == ("ein", "dotted")
    assert [row.optional_text(name) for name in ("a.de", "a.en", "a.fr", "none", "gone")] == ["ein", "", "", "", ""]
    for name, message in (("a.fr", "missing"), ("a.en", "empty"), ("a", "dict, not text"), ("number", "int, not text")):
        with pytest.raises(RowProblem, match=f"column '{name}' is {message}"):
            row.text(name)
    with pytest.raises(RowProblem, match="int, not text"):
        row.optional_text("number")


def test_the_report_as_data() -> None:
    report = RowReport("train.jsonl", 1000, {"empty": (7,), "broken": tuple(range(1, 2001))})
    assert report.as_dict() == {
        "source": "train.jsonl",
        "read": 1000,
        "dropped": 2001,
        "reasons": {"empty": {"rows": 1, "first": [7]}, "broken": {"rows": 2000, "first": [1, 2, 3, 4, 5]}},
    }
    assert "broken: 2,000 rows, 1, 2, 3, 4, 5, ..." in str(report)


def test_a_file_without_a_reader_is_refused() -> None:
    with pytest.raises(DataError, match=r"task\.data_files\.test=a\.txt: the ending must be one of \.jsonl"):
        list(file_rows("a.txt", "task.data_files.test"))
