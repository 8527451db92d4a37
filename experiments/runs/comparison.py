"""Tables over runs: levels and paired differences of groups, and learning curves at equal cost.

`tidy` makes one row for each run, model and metric; metrics are taken as they occur in the files, no list of them is
kept here. `by_group` averages over seeds and subtracts runs of the same seed. `equal_cost` evaluates learning curves at
the largest cost that every run reached: one step's metric is a mean over one batch, so the trailing mean over a window
of logged values is used, interpolated linearly between the steps around that cost.

Intervals are percentile bootstraps over seeds (`gkd_rl.evaluation.uncertainty`): how far another student would end up.
The intervals in eval.json are over the held-out rows of one student.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import yaml

from experiments.runs import AXES, COSTS, RunFolder, Status, curves, differing, distinct, shown_setting
from gkd_rl.errors import DataError
from gkd_rl.evaluation.uncertainty import estimate
from gkd_rl.outputs.tables import Estimate

RESAMPLES = 10_000
TRAINING = "training"  # takes the place of the model in the table, beside "student after"
NOT_METRICS = ("time/", "tokens/", "flops/")
COLUMNS = ("run", "group", "seed", "model", "metric", "mean", "low", "high", "n")


def tidy(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """One row for each finished run, model and metric.

    Returns:
        Columns run (its folder), group, seed, model, metric, mean, low, high (95% bootstrap interval over the held-out
        rows), n (rows); one column for each setting that differs between the runs; and the run's cost: steps,
        student_tokens (trained on), teacher_tokens (generated and scored by the teacher), seconds.
    """
    finished = [run for run in runs if run.status is Status.finished]
    keys = list(differing(finished))
    rows = []
    for run in finished:
        facts = {"run": str(run.path), "group": run.group, "seed": run.seed}
        tail = {**{key: run.settings.get(key) for key in keys}, **costs(run)}
        rows += [{**facts, **row, **tail} for row in _estimates(run.results or {})]
    frame = pd.DataFrame(rows, columns=None if rows else pd.Index([*COLUMNS, *AXES]))
    return frame.assign(**{key: _one_type(frame[key]) for key in keys if rows})


def costs(run: RunFolder) -> dict[str, float]:
    """A finished run's cost on each of `AXES`."""
    totals = (run.results or {}).get("cost", {})
    spent = {axis: float(sum(totals.get(name, 0.0) for name in names)) for axis, names in COSTS.items()}
    steps = curves(run)["step"].to_numpy()
    return {
        "steps": float(steps[-1]) if len(steps) else float("nan"),
        **spent,
        "seconds": float(totals.get("time/total", float("nan"))),
    }


def _estimates(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of eval.json: every section with estimates counts as a model, whatever its name and metrics."""
    for model, section in results.items():
        if not isinstance(section, Mapping) or not any(map(_is_estimate, section.values())):
            continue
        for metric, value in section.items():
            if _is_estimate(value):
                yield {"model": model, "metric": metric, **{key: _number(value.get(key)) for key in COLUMNS[5:]}}
            elif isinstance(value, (int, float)):
                yield {"model": model, "metric": metric, "mean": float(value), "low": None, "high": None, "n": None}


def _is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and "mean" in value


def _number(value: Any) -> float | None:
    """A number; JSON has nan and inf as text."""
    return None if value is None else float(value)


def _one_type(column: Any) -> Any:
    """A column of one type, as parquet needs it: numbers, or settings as on the command line."""
    kinds = {type(value) for value in column}
    if kinds <= {int, float, type(None)} or kinds <= {bool} or kinds <= {str, type(None)}:
        return column
    return column.map(shown_setting)


def baseline_group(runs: Sequence[RunFolder], wanted: str) -> str:
    """The group with the label `wanted`, or the only group with the settings `wanted`, e.g. `alpha=0 divergence=jsd`.

    Raises:
        DataError: no group matches, or several do.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    if wanted in groups:
        return wanted
    pairs = [term.partition("=") for term in wanted.split()]
    matching = [run.group for run in runs if all(sign and _has(run, key, value) for key, sign, value in pairs)]
    matching = list(dict.fromkeys(matching)) if pairs else []
    if len(matching) == 1:
        return matching[0]
    fault = f"it matches {len(matching)} groups ({'; '.join(matching)})" if matching else "no finished run has it"
    raise DataError(f"--baseline {wanted!r}: {fault}; it takes settings or a label of one of: {'; '.join(groups)}.")


def _has(run: RunFolder, key: str, value: str) -> bool:
    """Whether a run has a setting, given as on the command line."""
    found = run.settings.get(f"{key}.name", run.settings.get(key))
    try:
        wanted = float(value)  # YAML parses 1e-3 as text
    except ValueError:
        wanted = yaml.safe_load(value)
    return len(distinct([found, wanted])) == 1


def by_group(table: pd.DataFrame, baseline: str | None) -> pd.DataFrame:
    """Levels and paired differences of every model, metric and group.

    Args:
        table: rows of `tidy`; several runs of one group and seed count as their mean.
        baseline: group that is subtracted from the others, seed by seed; None for no comparison.

    Returns:
        Columns model, metric, group, level (Estimate over seeds), change (Estimate of group - baseline over the seeds
        that both have, None without them), up (seeds in which it is positive).
    """
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for row in table.to_dict("records"):
        if math.isfinite(row["mean"]):
            seeds = found.setdefault((row["model"], row["metric"]), {}).setdefault(row["group"], {})
            seeds.setdefault(row["seed"], []).append(row["mean"])
    rows = []
    for (model, metric), groups in found.items():
        means = {group: {seed: fmean(values) for seed, values in seeds.items()} for group, seeds in groups.items()}
        for group, by_seed in means.items():
            base = {} if baseline is None or group == baseline else means.get(baseline, {})
            change = [value - base[seed] for seed, value in by_seed.items() if seed in base]
            level, up = _estimate(list(by_seed.values())), sum(value > 0 for value in change)
            rows.append((model, metric, group, level, _estimate(change) if change else None, up))
    return pd.DataFrame(rows, columns=pd.Index(["model", "metric", "group", "level", "change", "up"]))


def _estimate(values: list[float]) -> Estimate:
    """Estimate over seeds."""
    return estimate(np.array(values), RESAMPLES, 0)


@dataclass(frozen=True)
class EqualCost:
    """Metrics of the training at one cost.

    Attributes:
        axis: one of `AXES`.
        at: the largest cost that every run reached.
        table: columns run, group, seed, model, metric, mean, by (the axis), at.
        without: runs without any cost on this axis, which are not in the table.
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
    """Columns of a learning curve that are not costs."""
    return [str(name) for name in table if name not in ("step", *AXES) and not str(name).startswith(NOT_METRICS)]
