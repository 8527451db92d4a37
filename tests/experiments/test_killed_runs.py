"""experiments.faults: it kills runs, resumes them, and finds a run that was not resumed exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import essential

from experiments import faults

CASE = next(iter(faults.CASES))
# a run in small: a line a step, a checkpoint every third, written beside and renamed; `forgets`: lines are not cut
RUN = """
import json, os, sys, time
from pathlib import Path
folder, forgets = Path(sys.argv[1]), sys.argv[2] == "forgets"
kept = folder / "checkpoints"
kept.mkdir(parents=True, exist_ok=True)
(folder / "command.json").write_text("{}")
metrics, whole = folder / "metrics.jsonl", sorted(path.name for path in kept.glob("step-*"))
taken = int(whole[-1][5:]) if whole else 0
if metrics.exists() and not forgets:
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:taken]))
with metrics.open("a") as stream:
    for step in range(taken + 1, 25):
        time.sleep(0.02)
        stream.write(json.dumps({"step": step, "time/total": time.time()}) + "\\n")
        stream.flush()
        if step % 3 == 0:
            (kept / f".writing-{step}").mkdir(exist_ok=True)
            time.sleep(0.01)
            os.replace(kept / f".writing-{step}", kept / f"step-{step:08d}")
(folder / "samples.jsonl").write_text("")
(folder / "model").mkdir(exist_ok=True)
(folder / "model" / "model.safetensors").write_bytes(b"weights")
(folder / "eval.json").write_text(json.dumps({"cost": {"time/total": time.time()}, "memory": os.getpid()}))
"""


@pytest.fixture(params=essential(["goes on", "forgets"], "forgets"))
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def start(folder: Path, cache: Path, overrides: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder), request.param])

    monkeypatch.setattr(faults, "start", start)
    return request.param


def test_killed_runs_are_compared(how: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert faults.start(whole, tmp_path, ()).wait(60) == 0
    outcomes = [faults.disturbed(number, tmp_path / str(number), tmp_path, 0.3, 0) for number in (0, len(faults.CASES))]
    for number, one in zip((0, len(faults.CASES)), outcomes, strict=True):
        faults.compare(one, tmp_path / str(number), whole)
        assert one.case == CASE and len(one.kills) == 2
    assert "in checkpoint write" in outcomes[0].kills[0] and "after step" in outcomes[0].kills[1]
    assert sum(one.lost for one in outcomes) > 0
    assert [one.differences for one in outcomes] == ([[], []] if how == "goes on" else [["metrics.jsonl"]] * 2)
    assert "\n".join(faults.lines_of(outcomes)).count("NOT identical: metrics.jsonl") == 2 * (how == "forgets")


def test_a_run_that_is_faster_than_usual_is_killed_all_the_same(how: str, tmp_path: Path) -> None:
    one = faults.disturbed(2, tmp_path / "run", tmp_path, 1e6, 0)
    assert len(one.kills) == 2 and all(" write " in when or when.startswith("after step 2") for when in one.kills)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "eval.json", "model/model.safetensors"])
def test_every_file_counts(name: str, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder / "model").mkdir(parents=True)
        for file, text in (("metrics.jsonl", {"tokens/a": 1}), ("eval.json", {"cost": {}, "memory": folder, "b": 0.1})):
            (tmp_path / folder / file).write_text(json.dumps(text))
        for file in ("samples.jsonl", "model/model.safetensors"):
            (tmp_path / folder / file).write_bytes(b"x")
    same, differs = faults.Outcome(CASE), faults.Outcome(CASE)
    faults.compare(same, tmp_path / "one", tmp_path / "other")
    assert same.differences == []
    file = tmp_path / "one" / name
    changed = file.read_text().replace("1", "2")
    file.write_text(changed if changed != file.read_text() else "y")
    faults.compare(differs, tmp_path / "one", tmp_path / "other")
    assert differs.differences == [Path(name).name]
