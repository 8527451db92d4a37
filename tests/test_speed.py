"""The benchmarks: turns, ratios, and that each command runs and counts what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.sides import Side, Work, live_bytes, speedup, summary, take_turns

ROOT = Path(__file__).resolve().parents[1]


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def run(name: str) -> Work:
        order.append(name)
        return Work(10.0 * len(order), 2.0 if name == "b" else None)

    sides = [Side("a", lambda: run("a")), Side("b", lambda: run("b"))]
    take_turns(sides, rounds=2)
    assert "".join(order) == "abbaab"
    assert sides[0].work == [40.0, 50.0] and sides[1].work == [30.0, 60.0]
    assert sides[1].seconds == [2.0, 2.0] and sides[1].rate == 22.5
    assert all(0 < seconds < 1 for seconds in sides[0].seconds)
    assert speedup(sides[1], sides[1]) == {"overall": 1.0, "low": 1.0, "high": 1.0}
    slow = Side("slow", lambda: Work(1.0), seconds=[4.0, 4.0], work=[30.0, 60.0])
    assert speedup(sides[1], slow) == {"overall": 2.0, "low": 2.0, "high": 2.0}
    uneven = Side("uneven", lambda: Work(1.0), seconds=[2.0, 2.0], work=[10.0, 50.0])
    assert speedup(uneven, sides[1]) == {"overall": 60 / 90, "low": 10 / 30, "high": 50 / 60}
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "greatest": 3.0}


def test_live_bytes_are_those_of_the_widest_moment() -> None:
    def work() -> None:
        one = torch.ones(1000)
        two = one + 1
        del one
        two.sum()

    assert live_bytes(work) == 8000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "sides"),
    [
        (
            [
                "head",
                "--tokens",
                "32",
                "--vocabulary",
                "3000",
                "--width",
                "16",
                "--teacher-width",
                "24",
                "--chunk",
                "8",
            ],
            4,
        ),
        (["steps", "joint", "--layers", "3", "--prompts", "2", "--per-prompt", "2", "--longest", "70"], 3),
    ],
    ids=["head", "steps"],
)
def test_a_benchmark_writes_its_table_and_numbers(command: list[str], sides: int, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    name, *arguments = command
    run = [sys.executable, "-m", f"experiments.benchmarks.{name}", *arguments, "--rounds", "1", "--device", "cpu"]
    done = subprocess.run([*run, "--threads", "1", "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["rows"]) == sides and written["settings"]["rounds"] == 1
    assert written["environment"]["packages"]["trl"] and written["environment"]["cpu"]
    for row in written["rows"]:
        assert f"| {row['side']} |" in done.stdout
        for value in row.values():
            if isinstance(value, dict):
                middle, low, high = value.values()
                assert low <= middle <= high
