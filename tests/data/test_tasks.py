"""Tasks: generated rows, local files of every kind, and messages that name the row, the column and the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from conftest import configured

from gkd_rl.data.embedded.news import generate
from gkd_rl.data.embedded.tokenizer import build_tokenizer
from gkd_rl.data.tasks.xsum import Xsum
from gkd_rl.errors import DataError

ROWS = [
    {"document": 'a "quoted", long\narticle', "summary": "one"},
    {"document": "another article", "summary": "two é"},
    {"document": "a third", "summary": "three"},
]


def task_of(**changes: Any) -> Xsum:
    settings: dict[str, Any] = {
        "data": "embedded",
        "seed": 0,
        "train_size": 20,
        "validation_size": 5,
        "test_size": 7,
        "data_files": None,
        "hub_id": "EdinburghNLP/xsum",
        "hub_config": None,
        "document_column": "document",
        "summary_column": "summary",
        "id_column": None,
        "on_malformed": "drop",
        "max_characters": 50_000,
        "prompt_prefix": "",
        "max_prompt_tokens": 160,
        "max_completion_tokens": 40,
    }
    return Xsum(**(settings | changes))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows in the format that the ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        quoted = [[f'"{str(value).replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in rows]
        path.write_text("\n".join(",".join(line) for line in [list(rows[0]), *quoted]) + "\n", encoding="utf-8")
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def files_task(path: str, **changes: Any) -> Xsum:
    return task_of(data="files", data_files=dict.fromkeys(("train", "validation", "test"), path), **changes)


def test_embedded_rows_are_the_generated_ones() -> None:
    task = task_of(seed=3, prompt_prefix="summarize: ")
    for split, size in (("train", 20), ("validation", 5), ("test", 7)):
        items, rows = generate(split, size, 3), task.examples(split)
        assert [row.prompt for row in rows] == [f"summarize: {item.article}" for item in items]
        assert [row.reference for row in rows] == [item.summary for item in items]
        assert [row.columns for row in rows] == [{"document": item.article} for item in items]
    tokenizer = task.tokenizer()
    assert tokenizer is not None
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    with pytest.raises(DataError, match="split 'dev' is unknown: use one of train, validation, test"):
        task.examples("dev")


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_local_files(ending: str, tmp_path: Path) -> None:
    task = files_task(write(tmp_path / f"rows{ending}", ROWS), prompt_prefix="tl;dr ", train_size=2)
    rows = task.examples("validation")
    assert [row.prompt for row in rows] == ["tl;dr " + row["document"] for row in ROWS]
    assert [row.reference for row in rows] == [row["summary"] for row in ROWS]
    assert [row.columns for row in rows] == [{"document": row["document"]} for row in ROWS]
    assert task.examples("train") == rows[:2]
    assert task.tokenizer() is None


def test_cnn_dailymail_is_a_choice_of_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"article": "LONDON (CNN) words", "highlights": "One .\nTwo .", "id": "42c0"}
    composed = configured("task=cnn_dailymail", "scale=single_gpu").task
    settings: dict[str, Any] = {name: value for name, value in composed.items() if name != "_target_"}
    path = write(tmp_path / "rows.parquet", [row])
    files: dict[str, str] = dict.fromkeys(("train", "validation", "test"), path)
    expected = ("summarize: LONDON (CNN) words", "One .\nTwo .")
    (read,) = task_of(**(settings | {"data_files": files})).examples("test")
    assert (read.prompt, read.reference) == expected
    requests: list[tuple[Any, ...]] = []

    def load_dataset(*names: Any, split: str) -> list[dict[str, Any]]:
        requests.append((*names, split))
        return [row]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (read,) = task_of(**settings).examples("train")
    assert (read.prompt, read.reference) == expected and requests == [("abisee/cnn_dailymail", "3.0.0", "train")]


def test_columns_have_the_names_that_the_settings_give(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"id": 1, "text": "an article", "title": "a title"}])
    (row,) = files_task(path, document_column="text", summary_column="title").examples("test")
    assert (row.prompt, row.reference, row.columns) == ("an article", "a title", {"document": "an article"})


def test_each_split_has_its_own_file(tmp_path: Path) -> None:
    files = {
        split: write(tmp_path / f"{split}.jsonl", [{"document": split, "summary": "s"}])
        for split in ("train", "validation", "test")
    }
    task = task_of(data="files", data_files=files)
    assert [task.examples(split)[0].prompt for split in files] == list(files)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["document", "summary"])
def test_a_column_that_is_not_there_is_named_with_its_setting_and_those_that_are(
    ending: str, column: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"rows{ending}", ROWS)
    with pytest.raises(DataError) as caught:
        files_task(path, **{f"{column}_column": "text"}).examples("train")
    parts = [f"task.data_files.train={path}: no row can be used: column 'text' is missing: rows 1, 2, 3."]
    for part in [*parts, f"task.{column}_column=text", "which are document, summary."]:
        assert part in str(caught.value)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("row", [{"document": ""}, {"summary": " \n\t"}])
def test_a_row_that_cannot_be_used_is_dropped_and_named(
    ending: str, row: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / f"rows{ending}", [ROWS[0], ROWS[1] | row, ROWS[2]])
    task = files_task(path)
    assert [one.reference for one in task.examples("train")] == ["one", "three"]
    (column,) = row
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 of 3 rows dropped: column '{column}' is empty: row 2"
    ]
    assert task.row_reports["train"].problems == {f"column '{column}' is empty": (2,)}
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used: .*row 2\. .*task\.on_malformed=drop"):
        files_task(path, on_malformed="refuse").examples("train")


def test_a_size_is_of_rows_that_can_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"summary": "s"}, *ROWS, {"summary": "s"}])
    task = files_task(path, train_size=2)
    assert [one.reference for one in task.examples("train")] == ["one", "two é"]
    assert task.row_reports["train"].read == 3


def test_files_that_cannot_be_read_are_named_with_their_setting(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"task\.data_files\.test=.*missing\.jsonl: there is no such file"):
        files_task(missing).examples("test")
    (tmp_path / "rows.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"task\.data_files\.train=.*rows\.txt.*\.jsonl, \.json, \.csv, \.parquet"):
        files_task(str(tmp_path / "rows.txt")).examples("train")
    (tmp_path / "broken.json").write_text('[{"document": "x"}, \n', encoding="utf-8")
    (tmp_path / "broken.parquet").write_bytes(b"nothing of the kind")
    for name in ("broken.json", "broken.parquet"):
        with pytest.raises(DataError, match=r"task\.data_files\.train=.*could not be read"):
            files_task(str(tmp_path / name)).examples("train")
    with pytest.raises(DataError):
        files_task(str(tmp_path)).examples("train")


def test_settings_that_contradict_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.data=web: task\.data takes embedded, files or hub"):
        task_of(data="web")
    for files in (None, {}, {"train": "a.jsonl", "test": "b.jsonl"}):
        with pytest.raises(DataError, match=r"task\.data_files\.(train|validation)"):
            task_of(data="files", data_files=files)
    with pytest.raises(DataError, match=r"task\.on_malformed=skip: it takes drop or refuse"):
        task_of(on_malformed="skip")
    with pytest.raises(DataError, match=r"task\.max_characters=0: it takes a whole number >= 1"):
        task_of(max_characters=0)
