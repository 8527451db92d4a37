"""experiments.compare: only finished runs count, paired differences, curves at equal cost, runs from W&B."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from run_cases import make_run, record_of

from experiments import compare, sync
from experiments.runs import Status, curves, find_runs
from experiments.runs.comparison import baseline_group, by_group, equal_cost
from gkd_rl.errors import GkdRlError

ROOT = Path(__file__).parents[2]


def finish(folder: Path, seed: int, alpha: float, value: float, *, tokens: float = 10.0, teacher: float = 1.0) -> Path:
    """A finished run of ten steps whose metric and curve end at `value`."""
    estimate = {"mean": value, "low": value, "high": value, "n": 5}
    results = {"cost": {"tokens/student_trained": 10 * tokens, "time/total": 10.0}}
    results |= {"student after": {"rouge2": estimate, "planted": estimate}, "teacher": {"rouge2": estimate}}
    rows = [
        {
            "step": step,
            "planted_curve": value * step / 10,
            "time/student": 1.0,
            "tokens/student_trained": tokens,
            "tokens/teacher_scored": teacher,
        }
        for step in range(1, 11)
    ]
    return make_run(folder, {"seed": seed, "alpha": alpha}, eval=results, metrics=rows)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """alpha = 0 and 1 with two seeds each, a third seed of alpha = 1, and one run of each that has not finished."""
    folder = tmp_path / "sweep"
    for seed, alpha, value in ((0, 0.0, 1.0), (1, 0.0, 2.0), (0, 1.0, 4.0), (1, 1.0, 6.0), (2, 1.0, 50.0)):
        finish(folder / f"{alpha:g}_{seed}", seed, alpha, value, tokens=10.0 + 10 * alpha)
    error = record_of(1, 0.0, status="failed", error="OutOfMemoryError: CUDA | out of memory")
    make_run(folder / "crashed", {"seed": 9, "alpha": 0.0}, run=error)
    going = record_of(os.getpid(), psutil.Process().create_time())
    make_run(folder / "going", {"seed": 8, "alpha": 0.0}, run=going, metrics=[{"step": 1, "planted_curve": 1e9}])
    return folder


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    compare.main()
    return capsys.readouterr().out


def cells(text: str, *words: str) -> list[list[str]]:
    """Lines of tables that begin with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[: len(words)] == list(words)]


def test_a_crashed_a_running_and_finished_runs(sweep: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", str(sweep)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "7 runs: 5 finished, 1 running, 1 crashed, 0 unreadable." in done.stdout
    assert cells(done.stdout, str(sweep / "going"), "alpha=0", "running", "-")
    assert cells(done.stdout, str(sweep / "crashed"), "alpha=0", "crashed", "OutOfMemoryError: CUDA \\| out of memory")
    assert cells(done.stdout, "planted", "alpha=0") == [["planted", "alpha=0", "2", "1.5 [1.0, 2.0]"]]
    assert cells(done.stdout, "planted_curve", "alpha=0") == [["planted_curve", "alpha=0", "2", "0.8 [0.6, 1.1]"]]
    assert cells(done.stdout, "alpha=1") == [["alpha=1", "10", "200", "0", "10"]]


def test_differences_are_between_runs_of_one_seed(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(capsys, monkeypatch, sweep, "--baseline", "alpha=0", "--metric", "plant*d", "--metric", "absent")
    (base, other) = cells(text, "planted")
    assert base == ["planted", "alpha=0", "2", "1.5 [1.0, 2.0]", "-"]
    assert other[:3] == ["planted", "alpha=1", "3"] and other[4] == "3.5 [3.0, 4.0] (2/2)"  # seed 2 has no partner
    assert not cells(text, "rouge2") and not cells(text, "planted_curve")


def test_the_table_is_written_with_every_row(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "out"
    text = printed(capsys, monkeypatch, sweep, "--metric", "rouge2", "--out", out, "--by", "student_tokens")
    assert (out / "compare.md").read_text(encoding="utf-8") == text
    table = pd.read_parquet(out / "table.parquet")
    assert len(pd.read_csv(out / "table.csv")) == len(table) == 5 * 3 + 5
    assert set(table["model"]) == {"student after", "teacher", "training"}
    assert {"run", "group", "seed", "alpha", "metric", "mean", "low", "high", "steps", "seconds", "by", "at"} <= set(
        table
    )
    training = table[table["model"] == "training"]
    assert set(training["by"]) == {"student_tokens"} and set(training["at"]) == {100.0}


def test_curves_are_read_where_the_cheapest_run_ended(sweep: Path) -> None:
    runs = [run for run in find_runs([sweep]) if run.status is Status.finished]
    found = equal_cost(runs, "student_tokens", window=1)  # alpha = 1 spends twice the tokens a step: half its steps
    assert found.at == 100.0 and not found.without
    values = {(row["group"], row["seed"]): row["mean"] for row in found.table.to_dict("records")}
    assert values == {
        ("alpha=0", 0): pytest.approx(1.0),
        ("alpha=0", 1): pytest.approx(2.0),
        ("alpha=1", 0): pytest.approx(2.0),
        ("alpha=1", 1): pytest.approx(3.0),
        ("alpha=1", 2): pytest.approx(25.0),
    }
    assert equal_cost(runs, "seconds", window=1).at == equal_cost(runs, "steps", window=1).at == 10.0


def test_points_between_steps_are_interpolated_and_windows_are_of_logged_values(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"step": step, "m": float(step), "tokens/student_trained": 10.0} for step in range(1, 5)
    ]
    for row in rows[::2]:
        row["rare"] = row["m"]
    make_run(tmp_path / "long", {}, eval={}, metrics=rows)
    make_run(tmp_path / "short", {}, eval={}, metrics=[{"step": 1, "tokens/student_trained": 25.0}])
    runs = find_runs([tmp_path])

    def read(window: int) -> dict[str, float]:
        table = equal_cost(runs, "student_tokens", window).table
        return {row["metric"]: row["mean"] for row in table.to_dict("records")}

    assert read(1) == {"m": 2.5, "rare": 2.5}  # rare: between 1 (10 tokens) and 3 (30 tokens)
    assert read(2) == {"m": 2.0, "rare": 1.75}


def test_runs_that_spend_nothing_on_an_axis_are_named(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(sweep / "rl", 0, 0.5, 1.0, teacher=0.0)
    text = printed(capsys, monkeypatch, sweep, "--by", "teacher_tokens")
    assert f"Left out, without any teacher tokens: {sweep / 'rl'}." in text
    assert "after 10 teacher tokens" in text and not cells(text, "planted_curve", "alpha=0.5")


def test_a_baseline_is_named_by_settings_or_label(sweep: Path) -> None:
    for index, name in enumerate(("jsd", "tvd")):
        make_run(sweep / name, {"alpha": 0.0, "divergence": {"name": name}, "seed": index}, eval={})
    runs = [run for run in find_runs([sweep]) if run.status is Status.finished]
    assert baseline_group(runs, "alpha=1.0") == baseline_group(runs, "alpha=1e0") == "alpha=1 divergence=null"
    assert baseline_group(runs, "divergence=tvd") == baseline_group(runs, "alpha=0 divergence=tvd")
    assert baseline_group(runs, "alpha=0 divergence=jsd") == "alpha=0 divergence=jsd"
    for wanted, words in (
        ("alpha=0", "matches 3 groups"),
        ("alpha=7", "no finished run has it"),
        ("alpha", "no finished run has it"),
        ("", "no finished run has it"),
    ):
        with pytest.raises(GkdRlError, match=rf"--baseline '{wanted}': .*{words}.*alpha=1 divergence=null"):
            baseline_group(runs, wanted)


def test_repeated_seeds_count_once_and_values_that_are_no_numbers_not_at_all() -> None:
    rows = [("a", 0, 1.0), ("a", 0, 3.0), ("a", 1, 4.0), ("a", 2, np.nan), ("b", 0, 5.0), ("b", 2, 1.0)]
    table = pd.DataFrame(rows, columns=pd.Index(["group", "seed", "mean"])).assign(model="m", metric="x")
    a, b = by_group(table, "a").to_dict("records")
    assert (a["level"].mean, a["level"].n, a["change"]) == (3.0, 2, None)
    assert (b["level"].n, b["change"].mean, b["change"].n, b["up"]) == (2, 3.0, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metric", "rouge9"], "--metric rouge9: no run has it; there are planted, planted_curve, rouge2."),
        (["--model", "pupil"], "--model 'pupil': no run has it; it takes student after, teacher."),
        (["--window", "0"], "--window 0: it takes a whole number >= 1."),
        (["nowhere"], "nowhere is no folder"),
        (["wandb:project"], "wandb:ENTITY/PROJECT"),
    ],
)
def test_what_cannot_be_compared(
    sweep: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        printed(capsys, monkeypatch, sweep, *arguments)
    assert words in str(caught.value)


def test_folders_without_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="There is no run in"):
        printed(capsys, monkeypatch, tmp_path)
    make_run(tmp_path / "a", {})
    text = printed(capsys, monkeypatch, tmp_path, "--baseline", "alpha=0", "--out", tmp_path / "out")
    assert "1 runs: 0 finished, 0 running, 1 crashed" in text and "nothing to compare yet" in text
    assert len(pd.read_parquet(tmp_path / "out" / "table.parquet")) == 0


class FakeApi:
    """What `wandb.Api` offers of it: runs of a project, by group."""

    def __init__(self, *runs: SimpleNamespace) -> None:
        self.all, self.asked = runs, []

    def runs(self, path: str, filters: dict[str, Any] | None) -> list[SimpleNamespace]:
        self.asked.append((path, filters))
        return [run for run in self.all if filters is None or run.group == filters["group"]]


def uploaded(name: str, state: str = "finished", group: str = "g") -> SimpleNamespace:
    """A run as W&B returns it: keys of its own, tables, and infinity as text between our numbers."""
    summary = {"student after/sampled/reward/mean": 0.5, "student after/sampled/reward/low": 0.25, "_runtime": 3}
    summary |= {
        "student after/sampled/reward/n": 4,
        "cost/tokens/student_trained": 8.0,
        "cost/time/survey": 1.0,
        "samples": {"_type": "table-file"},
    }
    history = [
        {
            "_step": 0,
            "step": 1,
            "loss": "-Infinity",
            "tokens/student_trained": 4,
            "time/survey": 0.5,
            "table": {"_type": "table-file"},
        },
        {"_step": 1, "step": 2, "loss": 2.0, "tokens/student_trained": 4, "table": {"_type": "table-file"}},
        {"_step": 2, "step": None, "samples": {"_type": "table-file"}},
    ]
    config = {"seed": 3, "alpha": 0.5, "name": name}
    return SimpleNamespace(
        name=name, id="id/1", state=state, group=group, config=config, summary=summary, scan_history=lambda: history
    )


def test_runs_of_wandb_are_run_folders(tmp_path: Path) -> None:
    states = ("finished", "running", "crashed")
    api = FakeApi(*(uploaded(state, state) for state in states), uploaded("other", group="h"))
    folder = sync.fetch("wandb:me/project/g", tmp_path, api)
    assert api.asked == [("me/project", {"group": "g"})]
    runs = {run.config["name"]: run for run in find_runs([folder])}
    assert {name: run.status.value for name, run in runs.items()} == {state: state for state in states}
    assert not (runs["crashed"].path / "eval.json").exists()
    assert runs["crashed"].error == "its state in W&B is crashed" and runs["finished"].seed == 3
    assert runs["finished"].results == {
        "student after": {"sampled/reward": {"mean": 0.5, "low": 0.25, "n": 4}},
        "cost": {"tokens/student_trained": 8.0, "time/pre_update": 1.0},
    }
    table: Any = curves(runs["finished"])
    assert list(table["student_tokens"]) == [4, 8] and table["loss"][0] == -np.inf and table["loss"][1] == 2.0
    assert table["time/pre_update"][0] == table["seconds"][0] == 0.5  # logged under its former name
    assert not [name for name in table if str(name).startswith("_") or name in ("table", "samples")]
    sync.fetch("wandb:me/project", tmp_path, api)
    assert api.asked[-1] == ("me/project", None)


def test_compare_takes_wandb_beside_folders(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_api", lambda: FakeApi(uploaded("run")))
    text = printed(capsys, monkeypatch, sweep, "wandb:me/project", "--metric", "sampled/reward", "--metric", "rouge2")
    assert "8 runs: 6 finished" in text and cells(text, "sampled/reward", "alpha=0.5")[0][3] == "0.50 (n=1)"
    assert cells(text, "rouge2", "alpha=0") and "sampled/reward" in text


def test_wandb_that_is_absent_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def runs(self, path: str, filters: object) -> list[object]:
            raise ValueError("api_key not configured\n(no-tty)")

    with pytest.raises(GkdRlError, match=r"wandb:a/b: W&B cannot be read \(api_key not configured .*wandb login"):
        sync.fetch("wandb:a/b", tmp_path, Refusing())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(GkdRlError, match="pip install wandb"):
        sync.fetch("wandb:a/b", tmp_path)
    for address in ("wandb:", "wandb:a", "wandb:a/", "wandb:/b", "wandb:a/b/"):
        with pytest.raises(GkdRlError, match="an address of W&B is"):
            sync.fetch(address, tmp_path)
