"""Learning curves at equal cost: what each run had reached when it had spent as much as the cheapest one spent in all.

One step's metric is a mean over one batch; read is the trailing mean over a window of its logged values, interpolated
linearly between the steps around that cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.runs import AXES, RunFolder, curves

TRAINING = "training"  # stands for the model in the table, beside "student after"
NOT_METRICS = ("time/", "tokens/", "flops/")


@dataclass(frozen=True)
class EqualCost:
    """Metrics of the training at one cost.

    Attributes:
        axis: one of `AXES`.
        at: the largest cost that every run reached.
        table: columns run, group, seed, model, metric, mean, by (the axis), at.
        without: runs that spent nothing on this axis, which are not in the table.
    """

    axis: str
    at: float
    table: pd.DataFrame
    without: list[RunFolder]


def equal_cost(runs: Sequence[RunFolder], axis: str, window: int) -> EqualCost:
    """Every metric of the learning curves at the largest cost that all runs reached.

    Args:
        runs: finished ones.
        axis: steps, student_tokens, teacher_tokens or seconds.
        window: logged values behind each point, >= 1.
    """
    tables = [(run, curves(run)) for run in runs]
    reached = [float(table[axis].to_numpy().max(initial=0.0)) for _, table in tables]
    at = min((cost for cost in reached if cost > 0), default=0.0)
    rows = []
    for (run, table), cost in zip(tables, reached, strict=True):
        facts = {"run": str(run.path), "group": run.group, "seed": run.seed, "model": TRAINING}
        for metric in _metrics(table) if cost > 0 else []:
            values: Any = table[[axis, metric]].dropna()
            if len(values):
                smooth = values[metric].rolling(window, min_periods=1).mean()
                mean = float(np.interp(at, values[axis], smooth))
                rows.append({**facts, "metric": metric, "mean": mean, "by": axis, "at": at})
    columns = pd.Index(["run", "group", "seed", "model", "metric", "mean", "by", "at"])
    without = [run for run, cost in zip(runs, reached, strict=True) if cost == 0]
    return EqualCost(axis, at, pd.DataFrame(rows, columns=columns), without)


def _metrics(table: pd.DataFrame) -> list[str]:
    """Columns of a learning curve that say how well it goes, not what it costs."""
    return [str(name) for name in table if name not in ("step", *AXES) and not str(name).startswith(NOT_METRICS)]
