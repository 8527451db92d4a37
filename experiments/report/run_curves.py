"""One run's metrics.jsonl as packed curves, with two metrics that no step logs: judge - reward and copied bigrams.

Where the text alone is learnt from, what a step logs as its divergence is named what it is: a cross-entropy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.report.quantised import grid, packed
from experiments.runs import RunFolder, curves, samples
from gkd_rl.metrics import copy_rate


def frame_of(run: RunFolder) -> pd.DataFrame | None:
    """Numbers by step, None for a run without steps."""
    frame = curves(run)
    if frame.empty:
        return None
    if run.settings.get("divergence.name") == "cross_entropy":
        frame = frame.rename(columns={"divergence": "cross_entropy"})
    judge = f"reward/{run.settings.get('reward.judge')}"
    if {judge, "reward/mean"} <= set(frame):
        frame["judge_minus_reward"] = frame[judge] - frame["reward/mean"]
    copied: dict[int, list[float]] = {}
    for sample in samples(run):
        if sample.get("source", "student") == "student":
            rate = copy_rate(str(sample.get("completion", "")), str(sample.get("prompt", "")))
            copied.setdefault(int(sample["step"]), []).append(rate)
    frame["copied_bigrams"] = [float(np.mean(copied[step])) if step in copied else np.nan for step in frame["step"]]
    return frame.dropna(axis="columns", how="all")


def encoded(frame: pd.DataFrame, points: int) -> dict[str, Any]:
    """Curves of a run.

    Returns:
        `grids`: the steps that metrics share; `metrics`: name -> [grid, lowest, highest, levels]; `not_finite`: name ->
        how many of its values were nan or infinite and are left out. The axes of cost are among the metrics.
    """
    grids: dict[bytes, int] = {}
    found: dict[str, Any] = {"grids": [], "metrics": {}, "not_finite": {}}
    steps = frame["step"].to_numpy(dtype=float)
    for name in frame.columns.drop("step"):
        values = frame[name].to_numpy(dtype=float)
        finite = np.isfinite(values)
        if np.isinf(values).any():
            found["not_finite"][str(name)] = int(np.isinf(values).sum())
        if not finite.any():
            continue
        key = finite.tobytes()
        if key not in grids:
            grids[key] = len(found["grids"])
            found["grids"].append(grid(steps[finite], points))
        found["metrics"][str(name)] = [grids[key], *packed(values[finite], points)]
    return found
