"""Tasks: generated rows, local files of every kind, and messages that name the row, the column and the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from gkd_rl.embedded.news import generate
from gkd_rl.embedded.tokenizer import build_tokenizer
from gkd_rl.errors import DataError
from gkd_rl.tasks.xsum import Xsum

ROWS = [
    {"document": 'a "quoted", long\narticle', "summary": "one"},
    {"document": "another article", "summary": "two é"},
    {"document": "a third", "summary": "three"},
]


@pytest.fixture(autouse=True)
def cache_of_datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` writes while it reads a file."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


def task_of(**changes: Any) -> Xsum:
    settings: dict[str, Any] = {
        "data": "embedded",
        "seed": 0,
        "train_size": 20,
        "validation_size": 5,
        "test_size": 7,
        "data_files": None,
        "hub_id": "EdinburghNLP/xsum",
        "document_column": "document",
        "summary_column": "summary",
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


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("changes", "row", "says"),
    [
        ({"document_column": "text"}, {}, ["row 1", "'text' is missing", "task.document_column", "document, summary"]),
        ({"summary_column": "title"}, {}, ["row 1", "'title' is missing", "task.summary_column", "document, summary"]),
        ({}, {"document": ""}, ["row 2", "'document' is empty", "task.document_column"]),
        ({}, {"summary": ""}, ["row 2", "'summary' is empty", "task.summary_column"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    ending: str, changes: dict[str, str], row: dict[str, str], says: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / f"rows{ending}", [ROWS[0], ROWS[1] | row, ROWS[2]])
    with pytest.raises(DataError) as caught:
        files_task(path, **changes).examples("train")
    for words in [path, *says]:
        assert words in str(caught.value)


@pytest.mark.parametrize("blank", ["  ", " \n\t"])
def test_a_blank_document_is_refused(blank: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"document": blank, "summary": "s"}])
    with pytest.raises(DataError, match="row 1: column 'document'"):
        files_task(path).examples("train")


def test_numbers_are_not_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"document": 5, "summary": "s"}])
    with pytest.raises(DataError, match="'document' is int, not text"):
        files_task(path).examples("train")


def test_files_that_cannot_be_read_are_named_with_their_setting(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"task\.data_files\.test=.*missing\.jsonl: there is no such file"):
        files_task(missing).examples("test")
    (tmp_path / "rows.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"task\.data_files\.train=.*rows\.txt.*\.jsonl, \.json, \.csv, \.parquet"):
        files_task(str(tmp_path / "rows.txt")).examples("train")
    (tmp_path / "broken.jsonl").write_text('{"document": "x", \n', encoding="utf-8")
    (tmp_path / "broken.parquet").write_bytes(b"nothing of the kind")
    for name in ("broken.jsonl", "broken.parquet"):
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
