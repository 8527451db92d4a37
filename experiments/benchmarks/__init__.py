"""Speed and memory beside other packages: what all benchmarks share.

The sides of a comparison (implementations or settings) run in one process and take turns, round by round, so that other
load on the machine affects all of them. The first round is not counted. Each benchmark prints a table and can write it
as JSON with its settings and the machine.

`models.py` makes models of random weights and our trainer for them; `steps.py` also has the models and trainers that
`memory.py`, `linear.py` and `teacher_cache.py` start from.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import markdown_rows
from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.run_record import environment_record
from gkd_rl.planning.memory_plan import LiveMemory

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Work:
    """Work of one round.

    Attributes:
        amount: e.g. tokens.
        seconds: that count; None: the wall time of the round.
        flops: estimated from the models' shapes; None: not known.
    """

    amount: float
    seconds: float | None = None
    flops: float | None = None


@dataclass
class Side:
    """One side of a comparison.

    Attributes:
        name: in the table.
        run: one round.
        seconds: of every counted round.
        work: amount of every counted round.
        flops: of every counted round, if they are known.
        peak: largest number of bytes allocated on a CUDA device in a round, beyond those before it.
    """

    name: str
    run: Callable[[], Work]
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def rate(self) -> float:
        """Work a second, over all rounds together."""
        return sum(self.work) / sum(self.seconds)


def take_turns(sides: Sequence[Side], rounds: int, warmup: int = 1) -> None:
    """Run every side once a round, in every second round in reverse order."""
    for turn in range(warmup + rounds):
        for side in sides if turn % 2 == 0 else list(reversed(sides)):
            _wait()
            before, start = _allocated(), time.perf_counter()
            work = side.run()
            _wait()
            seconds = time.perf_counter() - start
            if turn >= warmup:
                side.seconds.append(seconds if work.seconds is None else work.seconds)
                side.work.append(work.amount)
                side.flops += [] if work.flops is None else [work.flops]
                side.peak = max(side.peak, _peak() - before)


def speedup(side: Side, baseline: Side, *, by_round: bool = False) -> dict[str, float]:
    """Work a second as a multiple of the baseline's, over all rounds, with a 95% bootstrap interval over rounds.

    A ratio of sums, not a mean of ratios: the work of a round is random and differs between sides. If its distribution
    is the same on both sides, counting rounds in place of work (`by_round`) removes most of that variance.
    """
    draw = np.random.default_rng(0).integers(len(side.seconds), size=(BOOTSTRAP_SAMPLES, len(side.seconds)))

    def rates(one: Side, rounds: np.ndarray) -> np.ndarray:
        work = np.ones(len(one.seconds)) if by_round else np.array(one.work)
        return work[rounds].sum(axis=-1) / np.array(one.seconds)[rounds].sum(axis=-1)

    low, high = np.quantile(rates(side, draw) / rates(baseline, draw), (0.025, 0.975))
    every = np.arange(len(side.seconds))
    overall = rates(side, every) / rates(baseline, every)
    return {"overall": float(overall), "low": float(low), "high": float(high)}


def step_rows(sides: Sequence[Side], device: str) -> list[dict[str, Any]]:
    """A table of whole steps, relative to the first side; on CUDA with memory and the share of the GPU's FLOP/s."""
    fastest = matmul_flops(device) if torch.device(device).type == "cuda" else None
    return [
        {
            "side": side.name,
            "seconds a step": summary(side.seconds),
            "valid tokens a second": side.rate,
            "times as fast": speedup(side, sides[0]),
            "times as many steps": speedup(side, sides[0], by_round=True),
        }
        | ({} if fastest is None else {"GiB beside": side.peak / 2**30, "utilisation": _utilisation(side, fastest)})
        for side in sides
    ]


def _utilisation(side: Side, fastest: float) -> float | None:
    return sum(side.flops) / sum(side.seconds) / fastest if side.flops else None


def matmul_flops(device: str, size: int = 8192, rounds: int = 20) -> float:
    """FLOP/s of a large bfloat16 matrix product, median of several: what the GPU reaches."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    side = Side("", lambda: Work(float((one @ other).shape[0])))
    take_turns([side], rounds, warmup=5)
    return 2 * size**3 / statistics.median(side.seconds)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def live_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes of the tensors that are alive at one time in `run`, beyond those before it.

    On a CUDA device: bytes of its allocator.
    """
    if torch.device(device).type == "cuda":
        before = _allocated()
        run()
        return _peak() - before
    memory = LiveMemory()
    with memory:
        run()
    return memory.peak


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each side")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", action="append", default=[], help="of gkd_rl, e.g. rollout.static_cache=true")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    return parser


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the table; with --out write it as JSON with the settings and the machine."""
    headings = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(key)) for key in headings] for row in rows]
    print("\n".join(markdown_rows(headings, cells)))  # noqa: T201
    if arguments.out is not None:
        settings = {key: value for key, value in vars(arguments).items() if key != "out"}
        write_json(arguments.out, {"rows": rows, "settings": settings, "environment": environment_record()})


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        middle, low, high = value.values()
        return f"{middle:.3g} [{low:.3g}, {high:.3g}]"
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _allocated() -> int:
    """Bytes allocated on a CUDA device; resets its peak."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _wait() -> None:
    """Wait until the device has finished all work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
