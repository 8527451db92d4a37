"""Files of a run survive unusual text, a killed process and a broken W&B; W&B offline needs no account or network."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.types import RunMode

from gkd_rl.errors import GkdRlError
from gkd_rl.outputs import json_files, run_record, tracking
from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.run_record import environment_record, git_record
from gkd_rl.outputs.tables import Estimate
from gkd_rl.outputs.tracking import Listing, Tracker, flatten, sweep_of

NASTY = 'two\nlines\r\x00 null 😀 \ud800 lone \x1b[31mred\x9b \x85 \u2028 \u2029 "quoted" \\ü\x7f'


def _tracker(folder: Path, mode: str = "disabled") -> Tracker:
    return Tracker(folder, mode, Listing("project", None, "name"), config={"alpha": 0.5})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_are_one_sorted_line_per_step(tmp_path: Path) -> None:
    with _tracker(tmp_path / "new" / "run") as tracker:
        metrics: dict[str, Any] = {"b": 2.0, "a": np.float32(0.5), "none": None, "nan": math.nan, "inf": -math.inf}
        tracker.log_step(1, metrics)
        tracker.log_step(2, {"a": np.float64("nan"), "n": 3})
    path = tmp_path / "new" / "run" / "metrics.jsonl"
    assert path.read_text().splitlines()[0] == '{"step": 1, "a": 0.5, "b": 2.0, "inf": "-inf", "nan": "nan"}'
    assert _lines(path)[1] == {"step": 2, "a": "nan", "n": 3}
    assert not (path.parent / "wandb").exists()


def test_a_metric_called_step_is_refused(tmp_path: Path) -> None:
    with _tracker(tmp_path) as tracker, pytest.raises(GkdRlError, match="step"):
        tracker.log_step(1, {"step": 2.0})


def test_samples_round_trip(tmp_path: Path) -> None:
    row = {"text": NASTY, NASTY: 1, "none": None, "list": [1, "a\n"], "path": Path("x"), "nan": math.nan}
    with _tracker(tmp_path) as tracker:
        tracker.log_samples(3, [row, {"text": "plain"}])
    raw = (tmp_path / "samples.jsonl").read_bytes()
    assert raw.count(b"\n") == 2 and "😀".encode() in raw and "ü".encode() in raw
    assert not any(byte < 32 and byte != 10 for byte in raw)
    first, second = _lines(tmp_path / "samples.jsonl")
    assert first == {"step": 3, **row, "path": "x", "nan": "nan"}
    assert second == {"step": 3, "text": "plain"}


def test_a_killed_run_keeps_every_finished_line(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from gkd_rl.outputs.tracking import Listing, Tracker
tracker = Tracker(Path({str(tmp_path)!r}), "disabled", Listing("p", None, "n"), {{}})
for step in range(5):
    tracker.log_step(step, {{"a": 1.0}})
    tracker.log_samples(step, [{{"text": "x" * 20_000}}])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    assert [line["step"] for line in _lines(tmp_path / "metrics.jsonl")] == list(range(5))
    assert len(_lines(tmp_path / "samples.jsonl")) == 5


@pytest.mark.parametrize(("before", "kept"), [('{"step": 1}\n{"st', [1]), ('{"st', []), ('{"step": 1}\n', [1])])
def test_a_resumed_run_appends_whole_lines(tmp_path: Path, before: str, kept: list[int]) -> None:
    (tmp_path / "metrics.jsonl").write_text(before)
    with _tracker(tmp_path) as tracker:
        tracker.log_step(2, {})
    assert [line["step"] for line in _lines(tmp_path / "metrics.jsonl")] == [*kept, 2]


def test_wandb_offline_writes_under_the_run_and_prints_nothing(tmp_path: Path) -> None:
    # A process of its own: no account, no home, no terminal to be prompted on, and an environment that asks for more.
    script = f"""
from pathlib import Path
import os
before = dict(os.environ)
from gkd_rl.outputs.tracking import Listing, Tracker
listing = Listing("p", "g", "n", "train", ("tag", "other"))
with Tracker(Path({str(tmp_path / "run")!r}), "offline", listing, {{"alpha": {{"value": 0.5}}}}) as tracker:
    for step in (1, 2, 1):
        tracker.log_step(step, {{"loss": 1.0, "nan": float("nan"), "none": None}})
    tracker.log_samples(1, [{{"text": {NASTY!r}, "score": 1}}, {{"text": "b", "extra": [1]}}])
    tracker.summary({{"after": {{"rouge2": 1.5}}}})
assert {{key for key in os.environ if key not in before}} <= {{"WANDB_SERVICE"}}, os.environ.keys() - before.keys()
"""
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "XDG_"))}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        env={**kept, "HOME": str(home), "WANDB_MODE": "online", "WANDB_DIR": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    written = [path for path in (tmp_path / "run" / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert any(path.name.endswith(".table.json") for path in written)
    assert not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert len(_lines(tmp_path / "run" / "metrics.jsonl")) == 3


class _Broken:
    """A W&B run that fails at the calls named."""

    def __init__(self, *names: str) -> None:
        self.names, self.calls = names, []
        self.summary = SimpleNamespace(update=lambda values: self._call("summary"))

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.names:
            raise RuntimeError("broken pipe")

    def log(self, values: dict[str, Any]) -> None:
        self._call("log")

    def finish(self, exit_code: int) -> None:
        self._call(f"finish {exit_code}")


@pytest.mark.parametrize("broken", [("log",), ("log", "finish 1"), ("summary",), ("finish 0",)])
def test_a_broken_wandb_does_not_stop_the_run(
    tmp_path: Path, broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = _Broken(*broken)
    monkeypatch.setattr(Tracker, "_start", lambda self, options: run)
    with _tracker(tmp_path, "offline") as tracker:
        for step in range(4):
            tracker.log_step(step, {"a": 1.0})
        tracker.summary({"a": 1})
    assert [line["step"] for line in _lines(tmp_path / "metrics.jsonl")] == list(range(4))
    own = [record for record in caplog.records if record.name == "gkd_rl.outputs.tracking"]
    assert len(own) == 2 and "broken pipe" in caplog.text and "a part of this run" in caplog.text
    assert run.calls.count("log") == (1 if "log" in broken else 4)


@pytest.mark.exhaustive
def test_a_killed_service_of_wandb_is_told_once_and_serves_no_other_run(tmp_path: Path) -> None:
    script = f"""
import os, signal, time
from pathlib import Path
from gkd_rl.outputs.tracking import Listing, Tracker

def services():
    commands = dict()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            commands[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue
    return [one for one, text in commands.items() if b"bin/wandb-core" in text and str(os.getpid()).encode() in text]

for name in ("first", "second"):
    with Tracker(Path({str(tmp_path)!r}) / name, "offline", Listing("p", None, name), {{}}) as tracker:
        for step in range(20):
            tracker.log_step(step, {{"loss": 1.0}})
            if (name, step) == ("first", 3):
                (service,) = services()
                os.kill(service, signal.SIGKILL)
            time.sleep(0.05)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    first, last = done.stderr.splitlines()
    assert first.startswith("W&B failed (") and last.startswith("W&B has only a part of this run (")
    for name in ("first", "second"):
        assert [line["step"] for line in _lines(tmp_path / name / "metrics.jsonl")] == list(range(20))
    (record,) = (tmp_path / "second" / "wandb").rglob("*.wandb")
    assert record.stat().st_size > 2000


def test_an_error_in_the_run_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _Broken()
    monkeypatch.setattr(Tracker, "_start", lambda self, options: run)
    with pytest.raises(KeyError), _tracker(tmp_path, "offline"):
        raise KeyError
    assert run.calls == ["finish 1"]


def test_wandb_that_cannot_start_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise OSError("no service")

    monkeypatch.setattr(wandb, "setup", fail)
    with _tracker(tmp_path, "offline") as tracker:
        tracker.log_step(1, {})
    assert len(_lines(tmp_path / "metrics.jsonl")) == 1 and "no service" in caplog.text


def test_online_without_an_account_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb.errors

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "setup", lambda **_: None)
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(GkdRlError, match=r"tracking.wandb=online .*wandb login.*tracking.wandb=offline"):
        _tracker(tmp_path, "online")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(GkdRlError, match=rf"tracking\.wandb={mode} .*pip install wandb.*tracking\.wandb=disabled"):
        _tracker(tmp_path, mode)
    with _tracker(tmp_path):
        pass


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GkdRlError, match=r"tracking\.wandb=dryrun.*offline, online, disabled"):
        _tracker(tmp_path, "dryrun")


def test_flatten() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}, "e": [3]}, "f": {}}) == {"a": 1, "b/c/d": 2, "b/e": [3]}


def test_write_json_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "results.json"
    colour = Enum("colour", "red")
    write_json(path, {"n": math.nan, "e": Estimate(1.0, 0.0, 2.0, 3), "c": colour.red, "a": np.arange(2), "t": NASTY})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "n": "nan",
        "e": {"mean": 1.0, "low": 0.0, "high": 2.0, "n": 3},
        "c": "red",
        "a": [0, 1],
        "t": NASTY,
    }
    old = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json_files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {})
    assert path.read_bytes() == old and list(path.parent.iterdir()) == [path]


def test_environment_record() -> None:
    record = environment_record()
    assert set(record) == {"python", "platform", "packages", "git", "cpu", "cpu_count", "cuda_devices", "processes"}
    assert record["packages"]["transformers"] and record["cpu_count"] >= 1
    assert json.loads(json.dumps(record)) == record


def test_git_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text("a")
    assert git_record(file) is None  # no repository
    git("init")
    assert git_record(file) is None  # somebody else's repository
    git("add", ".")
    assert git_record(file) is None  # no commit yet
    git("-c", "user.name=n", "-c", "user.email=e@example.com", "commit", "-m", "m")
    record = git_record(file)
    assert record is not None and len(record["revision"]) == 40 and record["dirty"] is False
    (tmp_path / "new.py").write_text("b")
    assert git_record(file) == {**record, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_record(file) is None  # no git
    assert run_record._version("no-such-package-here") is None


def test_a_run_of_a_sweep_is_grouped_by_the_sweeps_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "2025-01-01" / "3"
    assert sweep_of(run_dir) is None
    for mode, group in ((RunMode.RUN, None), (RunMode.MULTIRUN, "2025-01-01")):
        monkeypatch.setattr(tracking.HydraConfig, "initialized", lambda: True)
        monkeypatch.setattr(tracking.HydraConfig, "get", lambda mode=mode: SimpleNamespace(mode=mode))
        assert sweep_of(run_dir) == group


def test_what_wandb_receives_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}
    monkeypatch.setattr(Tracker, "_start", lambda self, options: received.update(options))
    colour = Enum("colour", "red")
    Tracker(
        tmp_path, "offline", Listing("p", "g", "n", "train", ("a", "b")), {"x": {"y": colour.red, "z": (1,)}}
    ).close()
    assert received == {
        **{"project": "p", "group": "g", "name": "n", "job_type": "train", "tags": ("a", "b")},
        "config": {"x": {"y": "red", "z": [1]}},
    }
