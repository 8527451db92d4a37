"""Still figures of lines: learning curves, divergence by position, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from experiments.report.figures import first_of
from experiments.report.quantised import unpacked
from experiments.report.selection import AFTER, BEFORE, TEACHER, RunEntry, finished, groups_of

HALF_LIVES = 40  # of smoothing in the longest run
MOST_BANDS = 12
Styles = dict[str, dict[str, Any]]


def curves(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Small plots over the training step, smoothed as the page opens: mean over seeds, lowest to highest seed."""
    there = {key for run in runs for key in run["curves"]["metrics"]}
    keys = [key for wanted in figure["panels"] if (key := first_of(wanted, there))]
    if not keys:
        return False
    rows = -(-len(keys) // 2)
    canvas.set_size_inches(9, 2.9 * rows)
    for place, key in enumerate(keys):
        axes = canvas.add_subplot(rows, 2 if len(keys) > 1 else 1, place + 1)
        groups = groups_of(runs)
        for label, own in groups.items():
            _curve(axes, own, key, page["styles"][label], band=len(groups) <= MOST_BANDS)
        axes.set_xlabel("training step")
        axes.set_title(page["label"](key))
    return True


def _curve(axes: Axes, runs: Sequence[RunEntry], key: str, style: dict[str, Any], *, band: bool) -> None:
    """One group's line and, from its lowest to its highest seed, its band."""
    found = [(steps, values[0]) for run in runs if (pair := decoded(run, key)) for steps, values in [pair]]
    if not found:
        return
    shortest = min(found, key=lambda pair: pair[0][-1])[0]
    half_life = shortest[-1] / HALF_LIVES
    seeds = np.stack([np.interp(shortest, steps, smoothed(steps, values, half_life)) for steps, values in found])
    axes.plot(shortest, seeds.mean(0), **style)
    if band and len(found) > 1:
        axes.fill_between(shortest, seeds.min(0), seeds.max(0), color=style["color"], alpha=0.13, lw=0)


def decoded(run: RunEntry, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps (n,) and values (1 or 3, n) of a run's curve; None where it has none."""
    packed = run["curves"]["metrics"].get(key)
    if packed is None:
        return None
    grid = run["curves"]["grids"][packed[0]]
    where = grid["steps"]
    steps = np.array(where) if isinstance(where, list) else where["start"] + where["by"] * np.arange(where["count"])
    return steps, unpacked(packed[1:], steps.size, grid["whole"])


def smoothed(steps: np.ndarray, values: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential moving average whose memory halves every `half_life` steps, corrected for its start."""
    kept = 0.5 ** (np.diff(steps, prepend=steps[0]) / half_life)
    out, total, weight = np.empty(values.size), 0.0, 0.0
    for i, (value, keep) in enumerate(zip(values, kept, strict=True)):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def profile(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Divergences by the place of the token, mean over seeds."""
    keys = sorted({key for run in runs for key in run["profiles"]})
    canvas.set_size_inches(7, 3.6 * max(1, len(keys)))
    for place, key in enumerate(keys):
        axes = canvas.add_subplot(len(keys), 1, place + 1)
        for label, own in groups_of(finished(runs)).items():
            lists = [run["profiles"][key] for run in own if key in run["profiles"]]
            if lists:
                reached = min(map(len, lists))  # by all: no seed speaks for others
                table = np.array([values[:reached] for values in lists], dtype=float)  # None becomes NaN
                axes.plot(np.arange(1, table.shape[1] + 1), np.nanmean(table, axis=0), **page["styles"][label])
        axes.set_xlabel("position in the completion (tokens)")
        axes.set_title(page["label"](key))
    return bool(keys)


def lengths(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Share of the held-out rows by number of words."""
    groups = {label: own for label, own in groups_of(runs).items() if any(run["lengths"] for run in own)}
    if not groups:
        return False
    canvas.set_size_inches(7, 3.6)
    axes = canvas.add_subplot()
    anchors = {"reference": ":", BEFORE: "--", TEACHER: "-"}
    sets = [(name, runs, name, {"color": "#666", "ls": dash, "lw": 1}) for name, dash in anchors.items()]
    sets += [(label, own, AFTER, page["styles"][label]) for label, own in groups.items()]
    for label, own, model, style in sets:
        pairs = np.array([pair for run in own for pair in run["lengths"].get(model, [])])
        if pairs.size:
            counts = np.bincount(pairs[:, 0], weights=pairs[:, 1])
            words = np.arange(pairs[:, 0].min(), counts.size)
            axes.step(words, counts[words] / counts.sum(), where="mid", **{**style, "label": label})
    axes.set_xlabel("words in the completion")
    axes.set_title("share of the held-out rows")
    return True
