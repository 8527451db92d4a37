"""A long run monitored from another process: do its memory, its time a step or its number of open files grow?

    python -m experiments.soak                                   # 2,000 steps at the embedded scale
    python -m experiments.soak --steps 500 experiment=gsm8k_rl   # of another run

The run is a command in its own process, with the default W&B files, samples and checkpoints. After a warm-up (the first
tenth) the last quarter of the steps is compared with the first. Time is CPU time, which other load on the machine does
not affect. The learning rate is so small that completions keep their length; otherwise shorter completions would hide a
step that becomes slower. Exit status 1: something grew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from experiments import markdown_rows
from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.run_record import environment_record

ROOT = Path(__file__).resolve().parents[1]
RUN = (
    *("experiment=xsum_rl", "reward=faithfulness", "student.sft.steps=20", "teacher.sft.steps=20"),
    *("trainer.prompts_per_step=4", "trainer.learning_rate=1.0e-6", "evaluation.bootstrap_samples=100"),
)
WARM_UP = 0.1
LIMITS = {"memory, MiB": 0.05, "processor's seconds a step": 0.1, "open files": 0.0, "threads": 0.0}


@dataclass(frozen=True)
class Sample:
    """One measurement of a process.

    Attributes:
        step: steps that it has taken.
        memory: resident MiB.
        files: open file descriptors, with sockets and pipes.
        threads: number of threads.
        seconds: CPU seconds since its start.
    """

    step: int
    memory: float
    files: int
    threads: int
    seconds: float


@dataclass(frozen=True)
class Growth:
    """A quantity in the first and the last quarter; `flat`: it grew by no more than its limit."""

    what: str
    first: float
    last: float
    growth: float
    limit: float
    flat: bool


def watch(process: psutil.Process, metrics: Path, pause: float) -> list[Sample]:
    """Measure a process every `pause` seconds until it ends; `metrics` gets a line a step."""
    samples: list[Sample] = []
    step, read = 0, 0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if metrics.exists():
            with metrics.open("rb") as stream:
                stream.seek(read)
                new = stream.read()
            step, read = step + new.count(b"\n"), read + len(new)
        try:
            with process.oneshot():
                times = process.cpu_times()
                memory, seconds = process.memory_info().rss / 2**20, times.user + times.system
                samples.append(Sample(step, memory, process.num_fds(), process.num_threads(), seconds))
        except psutil.NoSuchProcess:
            break
        time.sleep(pause)
    return samples


def growths(samples: Sequence[Sample], steps: int) -> list[Growth]:
    """Growth of each quantity over `steps` steps.

    Raises:
        ValueError: too few measurements of one of the two quarters.
    """
    begin, quarter = WARM_UP * steps, (1 - WARM_UP) * steps / 4
    early = [one for one in samples if begin <= one.step < begin + quarter]
    late = [one for one in samples if steps - quarter <= one.step < steps]
    if min(len(early), len(late)) < 3 or early[-1].step == early[0].step or late[-1].step == late[0].step:
        raise ValueError(f"{len(early)} and {len(late)} measurements of the first and last quarter: take more steps")

    def seconds_a_step(part: Sequence[Sample]) -> float:
        return (part[-1].seconds - part[0].seconds) / (part[-1].step - part[0].step)

    numbers = (
        [statistics.mean(one.memory for one in part) for part in (early, late)],
        [seconds_a_step(part) for part in (early, late)],
        [float(statistics.median_high(one.files for one in part)) for part in (early, late)],
        [float(statistics.median_high(one.threads for one in part)) for part in (early, late)],
    )
    found = []
    for (what, limit), (first, last) in zip(LIMITS.items(), numbers, strict=True):
        growth = last / first - 1
        found.append(Growth(what, first, last, growth, limit, growth <= limit))
    return found


def table(found: Sequence[Growth]) -> str:
    """The growths as Markdown."""
    cells = [
        [one.what, f"{one.first:.4g}", f"{one.last:.4g}", f"{one.growth:+.1%}", "flat" if one.flat else "GROWS"]
        for one in found
    ]
    return "\n".join(markdown_rows(["", "first quarter", "last quarter", "growth", ""], cells))


def main() -> None:
    """Command line: run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between two measurements")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("overrides", nargs="*", help="of the run, instead of the default ones")
    options = parser.parse_args()
    overrides = options.overrides or list(RUN)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place) / "run"
        own = (f"trainer.steps={options.steps}", f"hydra.run.dir={folder}")
        variables = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        with (Path(place) / "log").open("wb") as log:
            command = [sys.executable, "-m", "gkd_rl.run", *overrides, *own]
            process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=subprocess.STDOUT)
            samples = watch(psutil.Process(process.pid), folder / "metrics.jsonl", options.pause)
        if process.wait() != 0:
            raise SystemExit(f"the run failed: {(Path(place) / 'log').read_text(encoding='utf-8')[-2000:]}")
    found = growths(samples, options.steps)
    sys.stdout.write(f"{table(found)}\n")
    if options.out is not None:
        settings = {"steps": options.steps, "overrides": overrides}
        rows = [asdict(one) for one in found]
        write_json(options.out, {"rows": rows, "settings": settings, "environment": environment_record()})
    sys.exit(0 if all(one.flat for one in found) else 1)


if __name__ == "__main__":
    main()
