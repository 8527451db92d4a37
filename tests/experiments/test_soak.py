"""experiments.soak finds quantities that grow, and none in a process that is level."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from experiments.soak import LIMITS, Sample, growths, table, watch

STEPS = 200
MEMORY, TIME, FILES, THREADS = LIMITS
LEVEL = [Sample(step, 100.0, 9, 4, 0.1 * step) for step in range(STEPS + 1)]
PROCESS = """
import sys, time
grows, kept = sys.argv[2] == "grows", []
with open(sys.argv[1], "w", buffering=1) as metrics:
    for step in range(200):
        end = time.process_time() + 0.003 * (1 + grows * step / 200)
        while time.process_time() < end:
            pass
        if grows:
            kept += [bytearray(b"x" * 2**17), open(sys.argv[1])]
        metrics.write("{}\\n")
"""


def changed(**slopes: float) -> list[Sample]:
    """`LEVEL` with numbers that grow by so much a step after the warm-up."""
    return [
        replace(one, **{name: getattr(one, name) + slope * max(0, one.step - 20) for name, slope in slopes.items()})
        for one in LEVEL
    ]


def growing(samples: list[Sample]) -> list[str]:
    return [one.what for one in growths(samples, STEPS) if not one.flat]


def test_what_is_level_is_flat_and_the_warm_up_does_not_count() -> None:
    assert growing(LEVEL) == []
    assert growing([replace(one, memory=min(100.0, 5.0 * one.step)) for one in LEVEL]) == []


@pytest.mark.parametrize(
    ("slopes", "found"),
    [
        ({"memory": 0.03}, []),
        ({"memory": 0.05}, [MEMORY]),
        ({"files": 0.01}, [FILES]),
        ({"threads": 0.01}, [THREADS]),
    ],
)
def test_growth_at_its_limit(slopes: dict[str, float], found: list[str]) -> None:
    assert growing(changed(**slopes)) == found


@pytest.mark.parametrize(("slope", "found"), [(0.0003, []), (0.0005, [TIME])])
def test_a_step_that_becomes_slower(slope: float, found: list[str]) -> None:
    seconds = [0.0]
    for step in range(STEPS):
        seconds.append(seconds[-1] + 0.5 + slope * max(0, step - 20))
    assert growing([replace(one, seconds=seconds[one.step]) for one in LEVEL]) == found


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="45 and 2 measurements of the first and last quarter: take more steps"):
        growths([one for one in LEVEL if one.step not in range(157, 200)], STEPS)


@pytest.mark.parametrize("how", ["level", "grows"])
def test_a_process_is_watched(how: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / "metrics.jsonl"), how])
    samples = watch(psutil.Process(process.pid), tmp_path / "metrics.jsonl", 0.005)
    assert process.wait() == 0
    found = growths(samples, STEPS)
    wrong = {one.what for one in found if not one.flat}
    if how == "grows":
        assert wrong == {MEMORY, TIME, FILES}
    else:  # the system counts the processor's time in hundredths, too coarse for so short a process
        assert wrong <= {TIME}
    assert table(found).count("GROWS") == len(wrong)
