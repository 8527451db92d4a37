"""Run folders read back: status, groups, renamed metrics, and files that a killed or resumed run leaves."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_cases import make_run, record_of

from experiments.runs import (
    RunFolder,
    Status,
    curves,
    differing,
    differing_settings,
    dotted,
    find_runs,
    labels,
    samples,
)
from experiments.runs.comparison import costs, tidy
from gkd_rl.errors import ConfigError, DataError
from gkd_rl.outputs.run_record import error_line, recorded

ESTIMATE = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 4}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def only(folder: Path) -> RunFolder:
    (run,) = find_runs([folder])
    return run


def test_a_run_that_goes_on_is_told_from_one_that_died(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    began = psutil.Process(sleeper.pid).create_time()
    make_run(tmp_path, {}, run=record_of(sleeper.pid, began))
    assert only(tmp_path).status is Status.running
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:  # dead, but its number is not free yet
        pass
    dead = only(tmp_path)
    assert dead.status is Status.crashed and "without an error" in str(dead.error)
    sleeper.wait()
    assert only(tmp_path).status is Status.crashed


def test_another_process_of_the_same_number_is_not_the_run(tmp_path: Path) -> None:
    make_run(tmp_path, {}, run=record_of(os.getpid(), psutil.Process().create_time() - 60))
    assert only(tmp_path).status is Status.crashed


def test_a_run_on_another_machine_is_alive_while_its_files_grow(tmp_path: Path) -> None:
    make_run(tmp_path, {}, run=record_of(1, 0.0, machine="another"), metrics=[{"step": 1}])
    assert only(tmp_path).status is Status.running
    os.utime(tmp_path / "run.json", (0, 0))
    assert only(tmp_path).status is Status.running
    os.utime(tmp_path / "metrics.jsonl", (0, 0))
    assert only(tmp_path).status is Status.crashed


def test_a_run_records_its_start_and_its_end(tmp_path: Path) -> None:
    with recorded(tmp_path):
        assert only(tmp_path).status is Status.running
        text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert os.uname().nodename not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("loss\nsecond"), r"KeyError: 'loss\nsecond'"),
        (RuntimeError("first\nsecond\nthird"), "RuntimeError: first (and 2 more lines)"),
        (ConfigError(["alpha=2: it takes a number <= 1."]), "alpha=2: it takes a number <= 1."),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(1), "SystemExit: 1"),
    ],
)
def test_what_ended_a_run_is_one_line_of_the_table(tmp_path: Path, error: BaseException, line: str) -> None:
    with pytest.raises(type(error)), recorded(make_run(tmp_path / "run", {})):
        raise error
    run = only(tmp_path)
    assert (run.status, run.error) == (Status.crashed, line) and error_line(error) == line


def test_only_the_main_process_writes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    with recorded(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_record_is_finished_by_its_results(tmp_path: Path) -> None:
    make_run(tmp_path / "new", {"alpha": 0.5}, overrides=("alpha=0.5",), eval={"student after": {"rouge2": ESTIMATE}})
    make_run(tmp_path / "old", {"alpha": 0.5})
    old, new = sorted(find_runs([tmp_path]), key=lambda run: run.path.name, reverse=True)
    assert (old.status, old.error) == (Status.crashed, "no eval.json and no run.json")
    assert new.status is Status.finished and new.results == {"student after": {"rouge2": ESTIMATE}}
    assert (new.seed, new.overrides, new.settings["alpha"]) == (0, ("alpha=0.5",), 0.5)


def test_results_of_an_earlier_run_in_the_same_folder_are_not_this_runs(tmp_path: Path) -> None:
    make_run(tmp_path, {}, eval={}, run=record_of(1, 0.0, status="failed", error="no disk", started=4e9))
    run = only(tmp_path)
    assert (run.status, run.error, run.results) == (Status.crashed, "no disk", None)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("eval.json", "{", "eval.json cannot be read"),
        ("eval.json", "[]", "eval.json holds no mapping"),
        ("eval.json", "\udc80", "eval.json cannot be read"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("run.json", "{}}", "run.json cannot be read"),
        ("run.json", '{"status": "running"}', "run.json lacks 'started'"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, file: str, text: str, words: str) -> None:
    make_run(tmp_path, {}, eval={})
    (tmp_path / file).write_bytes(text.encode("utf-8", errors="surrogateescape"))
    run = only(tmp_path)
    assert run.status is Status.unreadable and words in str(run.error) and "\n" not in str(run.error)


def test_folders_are_searched_but_not_those_of_models_and_wandb(tmp_path: Path) -> None:
    for place in ("a/1", "a/0", "b/model/x", "b/wandb/y", "b/.z"):
        make_run(tmp_path / place, {})
    paths = [run.path for run in find_runs([tmp_path / "b", tmp_path, tmp_path / "a"])]
    assert paths == [tmp_path / "a" / "0", tmp_path / "a" / "1"]
    with pytest.raises(DataError, match="nowhere is no folder"):
        find_runs([tmp_path / "nowhere"])


def test_settings_that_differ() -> None:
    runs = [
        dotted({"seed": seed, "name": f"n{seed}", "student": {"seed": seed}, "task": {"seed": 7}, **more})
        for seed in (1, 2)
        for more in (
            {"alpha": 1, "cache_dir": "/a", "tracking": {"group": "g"}, "teacher": None, "metrics": ["a"]},
            {"alpha": 0.5, "cache_dir": "/b", "tracking": {"group": "h"}, "teacher": {"path": "p"}, "metrics": ["b"]},
        )
    ]
    wanted = {"alpha": (1, 0.5), "teacher.path": (None, "p"), "metrics": (["a"], ["b"])}
    assert differing_settings(runs) == wanted
    runs[0]["task.seed"] = 8
    assert differing_settings(runs) == {**wanted, "task.seed": (8, 7)}
    assert differing_settings([{"a": 1}, {"a": 1.0}]) == {} != differing_settings([{"a": 1}, {"a": True}])


def test_a_label_is_as_short_as_it_can_be() -> None:
    def run(seed: int, alpha: float, name: str = "run", **more: Any) -> dict[str, Any]:
        return {"seed": seed, "name": name, "alpha": alpha, "reward.weight": 1 - alpha, **more}

    assert labels([run(0, 0.5), run(1, 0.5)]) == ["all runs"] * 2
    assert labels([run(0, 0.5), run(1, 1.0), run(2, 1.0)]) == ["alpha=0.5", "alpha=1", "alpha=1"]
    assert labels([run(0, 0.5), run(1, 1.0)], ["reward.weight"]) == ["reward.weight=0.5", "reward.weight=0"]
    two = [run(0, alpha, **{"divergence.name": name}) for alpha in (0.0, 1.0) for name in ("jsd", "tvd")]
    assert labels(two)[1] == "alpha=0 divergence=tvd"
    assert labels([run(0, 0.5, "gkd"), run(0, 0.5, "rl", rows=3)]) == ["gkd", "rl"]
    assert (
        labels([run(0, alpha, name, rows=len(name)) for alpha in (0.0, 1.0) for name in ("gkd", "rl")])[3]
        == "rl alpha=1"
    )
    assert labels([run(0, 0.5, "first"), run(1, 0.5, "second"), run(0, 1.0, "third")])[0] == "alpha=0.5"


def test_of_many_settings_a_label_leaves_out_what_most_groups_share() -> None:
    usual = {"alpha": 0.5, "divergence.name": "jsd", "a": 1, "b": 1, "c": 1}
    runs = [
        {**usual, **other} for other in ({}, {"alpha": 1.0}, {"divergence.name": "tvd"}, {"a": 2}, {"b": 2}, {"c": 2})
    ]
    found = labels(runs)
    assert found[0] == "alpha=0.5 divergence=jsd" and found[1] == "alpha=1 divergence=jsd"
    assert found[3] == "alpha=0.5 a=2 divergence=jsd" and len(set(found)) == len(runs)
    assert labels(runs[:2]) == ["alpha=0.5", "alpha=1"]


def test_curves_of_a_killed_and_resumed_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = {"tokens/student_trained": 10, "tokens/teacher_generated": 1, "tokens/teacher_scored": 4}
    rows = [{"step": step, "loss": float(step), "time/a": 2.0, "time/b": 1.0, **tokens} for step in (1, 2, 3, 2, 3)]
    rows[3] |= {"loss": "nan", "rare": 7.0}
    run = only(make_run(tmp_path, {}, eval={"cost": {"time/teacher_samples": 100.0}}, metrics=rows))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    table: Any = curves(run)
    assert list(table["step"]) == list(table["steps"]) == [1, 2, 3]
    assert table["loss"][0] == 1.0 and math.isnan(table["loss"][1]) and table["loss"][2] == 3.0
    assert math.isnan(table["rare"][0]) and table["rare"][1] == 7.0
    assert list(table["student_tokens"]) == [10, 20, 30] and list(table["teacher_tokens"]) == [5, 10, 15]
    assert list(table["seconds"]) == [103, 106, 109]
    assert not caplog.records
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 4}\n')
    assert list(curves(run)["step"]) == [1, 2, 3, 4] and "line 6 is no JSON" in caplog.text


def test_steps_that_a_resumed_run_has_not_come_to_again_are_gone(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": float(at)} for at, step in enumerate((1, 2, 3, 4, 2))]
    texts = [
        {"step": step, "prompt": prompt, "at": at} for at, (step, prompt) in enumerate([(2, "a"), (2, "b"), (4, "a")])
    ]
    run = only(make_run(tmp_path, {}, metrics=rows, samples=[*texts, {"step": 2, "prompt": "a", "at": 3}]))
    assert list(curves(run)["loss"]) == [0, 4]
    assert [row["at"] for row in samples(run)] == [3, 1]


def test_metrics_of_older_runs_have_their_present_names(tmp_path: Path) -> None:
    """The pre-update pass was called `survey` in metrics.jsonl and in the cost of eval.json."""
    rows = [{"step": 1, "time/survey": 2.0, "flops/survey": 5.0}, {"step": 2, "time/pre_update": 3.0}]
    cost = {"time/survey": 5.0, "flops/survey": 7.0, "time/total": 9.0}
    run = only(make_run(tmp_path, {}, eval={"cost": cost}, metrics=rows))
    assert run.results == {"cost": {"time/pre_update": 5.0, "flops/pre_update": 7.0, "time/total": 9.0}}
    table: Any = curves(run)
    assert list(table["time/pre_update"]) == [2.0, 3.0] and list(table["seconds"]) == [2.0, 5.0]
    assert table["flops/pre_update"][0] == 5.0 and not [name for name in table if "survey" in str(name)]


def test_runs_made_before_and_after_a_target_moved_have_the_same_settings(tmp_path: Path) -> None:
    for name, target in (("before", "gkd_rl.tasks.xsum.Xsum"), ("after", "gkd_rl.data.tasks.xsum.Xsum")):
        make_run(tmp_path / name, {"task": {"_target_": target, "seed": 0}}, eval={})
    runs = find_runs([tmp_path])
    assert len(runs) == 2 and differing(runs) == {}


def test_a_run_without_files_has_empty_tables(tmp_path: Path) -> None:
    run = only(make_run(tmp_path, {}, eval={}))
    assert len(curves(run)) == 0 and samples(run) == [] and {"step", "seconds"} <= set(curves(run))
    assert math.isnan(costs(run)["steps"])
    assert list(tidy([run]))[:3] == ["run", "group", "seed"] and len(tidy([run])) == 0


def test_the_tidy_table_takes_any_metric_of_any_model(tmp_path: Path) -> None:
    cost = {
        "tokens/student_trained": 5.0,
        "tokens/teacher_generated": 2.0,
        "tokens/teacher_scored": 3.0,
        "time/total": 9,
    }
    facts = {"settings": {"alpha": "1"}, "memory": {"peak_bytes": 1}, "cost": cost}
    odd = {"mean": "nan", "low": "-inf", "high": 3, "n": 4}
    for seed, alpha, metrics in ((1, 0.5, ["a"]), (2, None, {"a": 1})):
        results = {
            **facts,
            "student after": {"rouge2": ESTIMATE, "new/metric": odd, "plain": 3},
            "judge": {"x": ESTIMATE},
        }
        config = {"seed": seed, "alpha": alpha, "metrics": metrics, "flag": seed == 1}
        make_run(tmp_path / str(seed), config, eval=results, metrics=[{"step": 7}])
    make_run(tmp_path / "crashed", {"seed": 3, "alpha": 0.25, "only_here": 1})
    runs = find_runs([tmp_path])
    assert differing(runs)["alpha"] == (0.5, None, 0.25)
    table = tidy(runs)
    assert "only_here" in differing(runs) and "only_here" not in table
    assert len(table) == 8 and set(table["model"]) == {"student after", "judge"}
    row: Any = table[(table["metric"] == "new/metric") & (table["seed"] == 1)].iloc[0]
    assert math.isnan(row["mean"]) and (row["low"], row["high"], row["n"]) == (-math.inf, 3, 4)
    assert (row["alpha"], row["metrics"]) == (0.5, '["a"]')
    assert [row[axis] for axis in ("steps", "student_tokens", "teacher_tokens", "seconds")] == [7, 5, 5, 9]
    assert list(table[table["metric"] == "plain"]["mean"]) == [3, 3]
    table.to_parquet(tmp_path / "table.parquet")
