"""The benchmarks: alternating sides, ratios, and each command at small sizes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import Side, Work, live_bytes, speedup, summary, take_turns
from experiments.benchmarks import models as shapes
from gkd_rl.training.cost import profile_lines


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
    assert speedup(uneven, sides[1], by_round=True) == {"overall": 1.0, "low": 1.0, "high": 1.0}
    assert speedup(sides[1], slow, by_round=True) == {"overall": 2.0, "low": 2.0, "high": 2.0}
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "greatest": 3.0}


def test_live_bytes_are_those_of_the_widest_moment() -> None:
    def work() -> None:
        one = torch.ones(1000)
        two = one + 1
        del one
        two.sum()

    assert live_bytes(work) == 8000


def test_a_profile_by_hand() -> None:
    totals = {"time/rollout": 6.0, "time/update": 1.0, "time/total": 7.0, "flops/rollout": 12e12, "tokens/x": 5.0}
    assert [line.split() for line in profile_lines(totals, steps=2, seconds=10.0)[1:]] == [
        ["phase", "seconds", "share", "TFLOP", "TFLOP/s"],
        ["rollout", "3", "60.0%", "6", "2"],
        ["everything", "else", "1.5", "30.0%"],
        ["update", "0.5", "10.0%"],
    ]


SMALL_HEAD = ["--tokens=32", "--vocabulary=3000", "--width=16", "--teacher-width=24", "--chunk=8"]
ON_A_GPU = ["--shape=qwen2.5", "--dtype=bfloat16", "--teacher-bits=8", "--setting=rollout.static_cache=true"]
NARROW = {
    "smollm2": {"vocab_size": 2000, "hidden_size": 36, "intermediate_size": 64},
    "qwen2.5": {"vocab_size": 2000, "hidden_size": 56, "intermediate_size": 64, "num_attention_heads": 14},
    "t5_small": {"vocab_size": 2000, "d_model": 32, "d_kv": 8, "d_ff": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "sides"),
    [
        ("head", ["--rounds=1", *SMALL_HEAD], 4),
        pytest.param(
            *("steps", ["joint", "--rounds=1", "--layers=3", "--prompts=2", "--per-prompt=2", "--longest=70"], 3),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "steps",
            ["rl", "--rounds=1", "--layers=2", "--prompts=2", "--per-prompt=2", "--longest=70", *ON_A_GPU],
            2,
            marks=pytest.mark.exhaustive,
        ),
        ("encoder_decoder", ["--rounds=1", "--layers=2", "--prompts=2", "--shortest=20", "--longest=40"], 2),
        ("teacher_cache", ["--rounds=1", "--layers=3", "--prompts=2", "--longest=70"], 3),
        ("memory", ["--rounds=1", "--layers=3", "--prompts=2", "--completion=16"], 4),
        ("linear", ["--rounds=1", "--layers=3", "--prompts=1", "--times=1,2", "--lengths=64"], 4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_benchmark_writes_its_table_and_numbers(
    name: str,
    arguments: list[str],
    sides: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With few words and narrow layers, but for the head, whose sizes are arguments."""
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    for pair, narrow in NARROW.items():
        for shape in filter(None, (shapes.PAIRS[pair].teacher, shapes.PAIRS[pair].student)):
            for key, value in narrow.items():
                monkeypatch.setitem(shape, key, value)
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--device", "cpu", "--threads", "1", "--out", str(out)])
    module.main()
    printed = capsys.readouterr().out
    written = json.loads(out.read_text(encoding="utf-8"))
    assert len(written["rows"]) == sides and written["settings"]["threads"] == 1
    assert written["environment"]["packages"]["trl"] and written["environment"]["cpu"]
    for row in written["rows"]:
        assert f"| {next(iter(row.values()))} |" in printed
        for value in row.values():
            if isinstance(value, dict):
                middle, low, high = value.values()
                assert low <= middle <= high


def test_the_benchmarks_are_commands() -> None:
    """The tests above call `main`, which `python -m` does by the last lines of a file."""
    files = [file for file in Path(shapes.__file__).parent.glob("*.py") if "def main()" in file.read_text("utf-8")]
    assert len(files) == 6
    for file in files:
        assert file.read_text("utf-8").endswith('\n\n\nif __name__ == "__main__":\n    main()\n'), file
