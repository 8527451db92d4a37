"""Settings of `gkd_rl.evaluate`, local files of a suite, and the folder of the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark_rows import gsm8k_files

from gkd_rl import evaluate
from gkd_rl.errors import ConfigError, DataError
from gkd_rl.evaluation.benchmarks.settings import local_source, read_settings

TASK = {
    "dataset_name": "main",
    "training_split": "train",
    "fewshot_split": "train",
    "test_split": "test",
    "num_fewshot": 5,
}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model=x"], "suite has no value"),
        (["model=x", "suite=gsm8k", "limti=3"], "Did you mean limit?"),
        (["model=x", "suite=gsm8k", "limit=0"], "limit=0 is out of range: limit takes a whole number >= 1, or null"),
        (["model=x", "suite=gsm8k", "dtype=int4"], "dtype takes one of float32, bfloat16, or null"),
        (["model=x", "suite=gsm8k", "nonsense"], "a setting is KEY=VALUE"),
        (["model=x", "suite=gsm8k", "data={a"], "data={a is not readable YAML"),
        (["model=x", "suite=gsm8k,"], "has an empty name"),
        (["model=x", "suite=gsm8k", "data.mmlu=x"], "data.mmlu belongs to no selected suite"),
        (["model=x", "suite=gsm8k", "data=3"], "data takes a folder or a mapping"),
        (["model=x", "suite=gsm8k", "output=tests"], "output=tests exists and is not empty"),
        (["model=x", "suite=mt_bench", "data.mt_bench=x"], "set mt_bench.judge.url"),
        (["model=x", "suite=mt_bench"], "set data.mt_bench to FastChat's question.jsonl"),
        (["model=x", "suite=mt_bench", "mt_bench.judge.api_key_variable=NOT_SET"], "export it"),
    ],
)
def test_settings_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert evaluate.main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(["model=x", "suite=gsm8k", "limit=0", "batch_size=0", "seed=-1"], evaluate.DEFAULTS)
    assert len(caught.value.problems) == 3


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert evaluate.main(["model=x", "suite=gsm8k"]) == 1
    assert 'pip install "gkd_rl[eval]"' in capsys.readouterr().err


def test_code_is_not_run_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["model=nowhere", "suite=humaneval", f"output={tmp_path / 'out'}"]) == 1
    assert "set allow_code_execution=true" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_lie_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    config = read_settings([f"model={tmp_path / 'run' / 'model'}", "suite=gsm8k"], evaluate.DEFAULTS)
    folders = {evaluate._folder(config) for _ in range(3)}
    assert len(folders) == 3 and {folder.parent for folder in folders} == {tmp_path / "run" / "benchmarks"}


def test_files_are_found_in_every_form(tmp_path: Path) -> None:
    place = gsm8k_files(tmp_path)
    by_folder = local_source("gsm8k", str(tmp_path), TASK, None)
    named = {split: str(place / f"{split}.jsonl") for split in ("train", "test")}
    assert by_folder == local_source("gsm8k", {"gsm8k": str(place)}, TASK, None)
    assert by_folder == local_source("gsm8k", {"gsm8k": named}, TASK, None)
    assert by_folder is not None and by_folder["dataset_kwargs"] == {"data_files": named}
    alone = local_source("gsm8k", {"gsm8k": named["test"]}, TASK, 0)
    assert alone is not None and alone["fewshot_split"] is None and "test_split" not in alone
    assert local_source("gsm8k", {"mmlu": "x"}, TASK, None) is None
    (place / "main").mkdir()
    for split in named:  # as in the Hub's repository
        (place / f"{split}.jsonl").rename(place / "main" / f"{split}-00000-of-00001.jsonl")
    inner = local_source("gsm8k", {"gsm8k": str(place)}, TASK, None)
    assert inner is not None and "main" in inner["dataset_kwargs"]["data_files"]["test"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda place: (place / "train.jsonl").unlink(), "5 examples in its prompts, from its split train"),
        (lambda place: (place / "test.jsonl").rename(place / "dev.jsonl"), "no file of the split test"),
        (lambda place: (place / "test.jsonl").rename(place / "test.json"), None),
        (lambda place: (place / "train.jsonl").rename(place / "train.parquet"), "all files of a suite take one format"),
        (lambda place: (place / "test_2.jsonl").write_text("{}"), "several files of split test"),
    ],
)
def test_files_that_do_not_fit(spoil: Callable[[Path], None], sentence: str | None, tmp_path: Path) -> None:
    spoil(gsm8k_files(tmp_path))
    if sentence is None:
        assert local_source("gsm8k", str(tmp_path), TASK, None)
        return
    with pytest.raises(DataError, match=sentence):
        local_source("gsm8k", str(tmp_path), TASK, None)
