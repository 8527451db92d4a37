"""The scripts of docs/examples run as a user types them, at their sizes of seconds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import ROOT, environment

EXAMPLES = ROOT / "docs" / "examples"
# script -> what it prints, and a file that it leaves
WANTED = {
    "fused_loss": ["loss by chunks ", "step 39: JSD "],
    "own_reward": ["[1.0, 0.0]", "reward of samples: "],
    "quickstart": ["refused before anything was written: alpha=2.0", "student after", "objective: ", "run folder: "],
    "sweep_and_report": ["report.html: 2 runs", "open multirun/example/report.html in a browser"],
}
SLOW = [pytest.mark.exhaustive, pytest.mark.slow]


def run_example(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=folder,
        env=environment(folder, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "fused_loss" else SLOW) for name in sorted(WANTED)]
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    printed = run_example(name, tmp_path)
    for part in WANTED[name]:
        assert part in printed
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", printed)]
    if name == "own_reward":
        assert numbers[-1] > numbers[-2] + 0.1
    if name == "fused_loss":
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4) and numbers[-1] < numbers[0] / 2


def test_every_example_is_run_and_says_what_it_shows() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in scripts] == sorted(WANTED)
    for path in scripts:
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        assert len(lines) > 2 and lines[0].endswith(".") and not lines[1], path.name
