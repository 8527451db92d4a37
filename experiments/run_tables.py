"""Tables over runs: one row for each run, model and metric. Metrics are taken as they come, none is known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.run_groups import shown_setting
from experiments.runs import AXES, COSTS, RunFolder, Status, curves, differing

CHANGE = "after - before"
COLUMNS = ("run", "group", "seed", "model", "metric", "mean", "low", "high", "n")


def tidy(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """One row for each finished run, model and metric.

    Returns:
        Columns run (its folder), group, seed, model, metric, mean, low, high (95% bootstrap interval over the held-out
        rows), n (rows); one column for each setting that differs between the runs; and what the run cost:
        steps, student_tokens (that it was trained on), teacher_tokens (written and read by it), seconds.
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
    """What a finished run spent on each of `AXES`."""
    totals = (run.results or {}).get("cost", {})
    spent = {axis: float(sum(totals.get(name, 0.0) for name in names)) for axis, names in COSTS.items()}
    steps = curves(run)["step"].to_numpy()
    return {
        "steps": float(steps[-1]) if len(steps) else float("nan"),
        **spent,
        "seconds": float(totals.get("time/total", float("nan"))),
    }


def _estimates(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of eval.json: sections that hold estimates are models, whatever their names and metrics."""
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
    """JSON has nan and inf as words."""
    return None if value is None else float(value)


def _one_type(column: Any) -> Any:
    """A column that parquet takes: numbers, or the words that would be typed."""
    kinds = {type(value) for value in column}
    if kinds <= {int, float, type(None)} or kinds <= {bool} or kinds <= {str, type(None)}:
        return column
    return column.map(shown_setting)
