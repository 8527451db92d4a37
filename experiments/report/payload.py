"""Runs -> the one JSON object that the page and the plots are drawn from.

Metrics are taken as they occur in the files, no list of them is kept here. Runs are compared within a task and scale
only. Nothing about the machine goes in: runs are named by their folders relative to a common parent.

Curves are compressed. A curve of n values is kept whole while n <= 3 * points; a longer one becomes `points` buckets of
consecutive values, each with its mean (for smoothing), minimum and maximum (so that no peak is lost). Values are
rounded to 16 bits between the curve's bounds, which changes them by at most 1/131,070 of its range. Two curves are
computed here because no step logs them: judge - reward, and copied bigrams. In a run that trains on given text without
a teacher (cross-entropy), the logged "divergence" is renamed to `cross_entropy`.
"""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.figures import FIGURES, listed, measure
from experiments.report.texts import Texts, held_out_rows, training_rows
from experiments.runs import (
    NAME,
    SEED,
    RunFolder,
    Status,
    curves,
    differing,
    grouped,
    labels,
    predictions,
    samples,
    shown_setting,
)
from gkd_rl.generation.text_statistics import copy_rate

LEVELS = 65535
FEWEST, MOST = 40, 400
CHARACTERS = 8_000_000  # for all curves of a page
PER_POINT = 8  # three values of two bytes, in base64


def points_for(curves: int) -> int:
    """How many buckets each curve can have so that the page stays below its size."""
    return max(FEWEST, min(MOST, CHARACTERS // (PER_POINT * max(curves, 1))))


def is_whole(count: int, points: int) -> bool:
    """Whether a curve of `count` values is kept uncompressed."""
    return count <= 3 * points


def bucket_edges(count: int, points: int) -> np.ndarray:
    """Index of the first value of each bucket, and the end, shape (points + 1,)."""
    return np.linspace(0, count, points + 1).round().astype(int)


def bucketed(values: np.ndarray, points: int) -> np.ndarray:
    """The values, shape (1, n), or mean, minimum and maximum of each bucket, shape (3, points)."""
    if is_whole(values.size, points):
        return values[None, :]
    starts = bucket_edges(values.size, points)
    sums = np.add.reduceat(values, starts[:-1])
    return np.stack(
        [sums / np.diff(starts), np.minimum.reduceat(values, starts[:-1]), np.maximum.reduceat(values, starts[:-1])]
    )


def grid(steps: np.ndarray, points: int) -> dict[str, Any]:
    """Steps of the values, or the mean step of each bucket: {start, by, count} if they are evenly spaced."""
    whole = is_whole(steps.size, points)
    places = bucketed(steps.astype(float), points)[0]
    gaps = np.diff(places)
    if gaps.size and np.allclose(gaps, gaps[0], rtol=1e-9):
        where: Any = {"start": float(places[0]), "by": float(gaps[0]), "count": int(places.size)}
    else:
        where = [round(float(place), 3) for place in places]
    return {"steps": where, "whole": whole, "values": int(steps.size)}


def packed(values: np.ndarray, points: int) -> list[Any]:
    """[lowest, highest, base64 of little-endian 16-bit levels]; no levels if all values are equal."""
    kept = bucketed(values, points)
    low, high = float(kept.min()), float(kept.max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # the mean of equal values has a rounding error
        return [low, high, ""]
    levels = ((kept - low) / (high - low) * LEVELS).round().astype("<u2")
    return [low, high, base64.b64encode(levels.tobytes()).decode("ascii")]


def unpacked(curve: list[Any], count: int, whole: bool) -> np.ndarray:
    """Values of a `packed` curve, shape (1, count) or (3, count)."""
    low, high, text = curve
    rows = 1 if whole else 3
    if not text:
        return np.full((rows, count), low)
    levels = np.frombuffer(base64.b64decode(text), "<u2").reshape(rows, count)
    return low + levels / LEVELS * (high - low)


def frame_of(run: RunFolder) -> pd.DataFrame | None:
    """Metrics by step, None for a run without steps."""
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
        `grids`: the steps that metrics share; `metrics`: name -> [grid, lowest, highest, levels], with the axes of
        cost; `not_finite`: name -> how many of its values were infinite and are left out.
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


MOST_WORDS = 400
_NO_CURVES: dict[str, Any] = {"grids": [], "metrics": {}}


def payload(runs: Sequence[RunFolder], rows: int) -> dict[str, Any]:
    """All data of the page.

    Args:
        runs: from `find_runs`.
        rows: held-out rows of each run in the sample browser.

    Returns:
        JSON: tasks, runs, problems (runs that could not be read), measures, figures, texts.
    """
    names = _names([run.path for run in runs])
    known = [(run, name) for run, name in zip(runs, names, strict=True) if run.settings]
    frames = [frame_of(run) for run, _ in known]
    points = points_for(sum(frame.shape[1] for frame in frames if frame is not None))
    tasks = list(dict.fromkeys(task_of(run) for run, _ in known))
    texts = Texts()
    entries: list[dict[str, Any]] = []
    sections = []
    for place, task in enumerate(tasks):
        members = [i for i, (run, _) in enumerate(known) if task_of(run) == task]
        task_runs = grouped([known[i][0] for i in members])
        names_of_groups = readable_labels([run.group for run in task_runs], task_runs)
        task_runs = [replace(run, group=name) for run, name in zip(task_runs, names_of_groups, strict=True)]
        lines = {
            figure.key: readable_labels(_lines_of(task_runs, figure.drop), task_runs)
            for figure in FIGURES
            if figure.drop
        }
        for at, (run, i) in enumerate(zip(task_runs, members, strict=True)):
            about = {"name": known[i][1], "task": place, "lines": {key: found[at] for key, found in lines.items()}}
            frame = frames[i]
            entries.append({**about, **_entry(run), "curves": _NO_CURVES if frame is None else encoded(frame, points)})
        shift = len(entries) - len(members)
        sections.append(_section(task, task_runs, texts, rows, shift))
    used = {key for run in entries for model in run["values"].values() for key in model}
    used |= {key for run in entries for key in run["curves"]["metrics"]}
    return {
        "tasks": sections,
        "runs": entries,
        "problems": [_problem(run, name) for run, name in zip(runs, names, strict=True) if _is_problem(run)],
        "measures": {key: measure(key) for key in sorted(used)},
        "figures": listed(),
        "texts": texts.kept,
        "points": points,
    }


def task_of(run: RunFolder) -> str:
    """What runs have to agree in to be compared: `xsum, embedded`."""
    settings = run.settings
    parts = [str(settings.get("task._target_", "task")).rpartition(".")[2].lower()]
    if settings.get("task.data") == "hub":
        parts.append(str(settings.get("task.hub_id")))
    elif settings.get("task.data") == "files":
        files = {key: value for key, value in settings.items() if key.startswith("task.data_files.")}
        parts += sorted({Path(str(value)).name for value in files.values()})
    return ", ".join([*parts, str(settings.get("scale.name", "scale unknown"))])


def _names(paths: Sequence[Path]) -> list[str]:
    """Folders relative to their common parent; the name of the folder if there is one run."""
    if not paths:
        return []
    resolved = [path.resolve() for path in paths]
    root = Path(os.path.commonpath(resolved))
    return [path.relative_to(root).as_posix() if path != root else path.name for path in resolved]


def _lines_of(runs: Sequence[RunFolder], drop: tuple[str, ...]) -> list[str]:
    """For each run the label of its settings without the dropped ones: the line of a figure that it is a point of."""
    typed = {override.lstrip("+~").partition("=")[0] for run in runs for override in run.overrides}
    keys = [*typed, *(f"{key}.name" for key in typed)]
    within = tuple(f"{key}." for key in drop)
    kept = [
        {key: value for key, value in run.settings.items() if key not in drop and not key.startswith(within)}
        for run in runs
    ]
    return labels(kept, keys)


def readable_labels(labels_of_runs: Sequence[str], runs: Sequence[RunFolder]) -> list[str]:
    """Labels for a caption: `gkd alpha=1 divergence.beta=0.1 divergence=jsd` becomes `gkd, α = 1, JSD(0.1)`.

    They are unchanged if two labels would become equal, or if a name contains spaces.
    """
    if any("=" not in term for label in labels_of_runs for term in label.split(" ")[1:]):
        return list(labels_of_runs)
    signs = {"alpha": "α", "lmbda": "λ"}
    found = []
    for label, run in zip(labels_of_runs, runs, strict=True):
        terms: dict[str, None] = {}
        for term in label.split(" "):
            key, equals, value = term.partition("=")
            about_divergence = key in ("divergence", "divergence.beta", "divergence.skew")
            text = short_settings(run)["divergence"] if about_divergence else f"{signs.get(key, key)} = {value}"
            terms[text if equals else term] = None
        found.append(", ".join(terms))
    return found if len(set(found)) == len(set(labels_of_runs)) else list(labels_of_runs)


def _entry(run: RunFolder) -> dict[str, Any]:
    """One run: results, settings, lengths of completions."""
    results = run.results or {}
    cost = {key: _short(value) for key, value in results.get("cost", {}).items() if _is_number(value)}
    return {
        "status": run.status.value,
        "error": run.error,
        "group": run.group,
        "seed": run.seed,
        "settings": short_settings(run),
        "values": {model: found for model, section in results.items() if (found := _estimates(section))},
        "profiles": _profiles(results),
        "cost": cost,
        "lengths": _lengths(run),
    }


def short_settings(run: RunFolder) -> dict[str, Any]:
    """The settings that figures use: numbers, and text for the divergence."""
    settings = run.settings
    name = str(settings.get("divergence.name", "?"))
    parameter = settings.get("divergence.skew") if name.startswith("skew") else settings.get("divergence.beta")
    shown = {"jsd": "JSD", "forward_kl": "forward KL", "reverse_kl": "reverse KL", "tvd": "TVD"}.get(name, name)
    with_parameter = f"{shown.replace('_', ' ')}" + (
        f"({parameter:g})" if (name == "jsd" or name.startswith("skew")) and _is_number(parameter) else ""
    )
    rows = settings.get("trainer.train_rows") or settings.get("task.train_size")
    by_text = name == "cross_entropy"
    return {
        "alpha": None if by_text else settings.get("alpha"),
        "lmbda": settings.get("lmbda"),
        "divergence": with_parameter,
        "temperature": settings.get("evaluation.self_bleu_temperature"),
        "train_rows": rows if _is_number(rows) else None,
        "initial_student": bool(settings.get("teacher.initial_student")) and not by_text,
    }


def _estimates(section: Any) -> dict[str, list[float | None]]:
    """Metric -> [mean, low, high, n] of a section of eval.json that holds estimates; empty for any other."""
    if not isinstance(section, dict):
        return {}
    found = {key: value for key, value in section.items() if isinstance(value, dict) and "mean" in value}
    return {
        key: [_short(value.get(part)) for part in ("mean", "low", "high", "n")]
        for key, value in found.items()
        if _short(value["mean"]) is not None
    }


def _profiles(results: dict[str, Any]) -> dict[str, list[float | None]]:
    """Divergence -> its mean at each position of the sampled completions, of the student after training."""
    found = results.get("by_position", {}).get("student after", {})
    return {key: [_short(value) for value in values] for key, values in found.items()}


def _lengths(run: RunFolder) -> dict[str, list[list[int]]]:
    """Model -> [[words, rows], ...] of the greedy completions; more words than MOST_WORDS count as MOST_WORDS."""
    counts: dict[str, Counter[int]] = {}
    for row in predictions(run):
        for model, text in row.items():
            if model != "prompt":
                counts.setdefault(model, Counter())[min(len(str(text).split()), MOST_WORDS)] += 1
    return {model: [list(pair) for pair in sorted(found.items())] for model, found in counts.items()}


def _section(task: str, runs: Sequence[RunFolder], texts: Texts, rows: int, shift: int) -> dict[str, Any]:
    """One task: its notice, the settings that differ between its runs, and its texts."""
    finished = [run for run in runs if run.status is Status.finished]
    notices = dict.fromkeys(str((run.results or {}).get("notice") or "") for run in finished)
    different = {**({NAME: ()} if len({run.settings.get(NAME) for run in runs}) > 1 else {}), **differing(runs)}
    return {
        "label": task,
        "notice": " ".join(filter(None, notices)),
        "differing": {key: _by_group(runs, key) for key in different if key != SEED},
        "held_out": _shifted(held_out_rows(runs, texts, rows), shift),
        "training": _shifted(training_rows(runs, texts), shift),
    }


def _by_group(runs: Sequence[RunFolder], key: str) -> dict[str, str]:
    """Group -> its value of a setting as on the command line, at most 200 characters."""
    return {run.group: shown_setting(run.settings.get(key))[:200] for run in runs}


def _shifted(rows: list[dict[str, Any]], shift: int) -> list[dict[str, Any]]:
    """Rows with the run numbers of the whole page in place of those of the task."""
    return [{**row, "cells": {str(int(run) + shift): cell for run, cell in row["cells"].items()}} for row in rows]


def _is_problem(run: RunFolder) -> bool:
    return run.status in (Status.crashed, Status.unreadable)


def _problem(run: RunFolder, name: str) -> dict[str, Any]:
    return {"name": name, "status": run.status.value, "error": run.error}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> float | None:
    """A finite number with six digits, None for anything else (JSON of runs has nan and inf as text)."""
    if not _is_number(value) or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else float(np.format_float_positional(value, 6, fractional=False))
