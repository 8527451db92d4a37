"""Groups of runs against each other: means over seeds, and differences between runs of the same seed.

Intervals are percentile bootstraps over seeds (`gkd_rl.uncertainty`), so they say how far another student would end up;
the intervals in eval.json are over the held-out rows of one student.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd
import yaml

from experiments.run_groups import distinct
from experiments.runs import RunFolder
from gkd_rl.errors import DataError
from gkd_rl.uncertainty import Estimate, estimate

RESAMPLES = 10_000


def baseline_group(runs: Sequence[RunFolder], wanted: str) -> str:
    """The group that `wanted` names: its label, or settings such as `alpha=0 divergence=jsd` that it alone has.

    Raises:
        DataError: no group is meant, or several are.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    if wanted in groups:
        return wanted
    pairs = [word.partition("=") for word in wanted.split()]
    meant = [run.group for run in runs if all(sign and _has(run, key, value) for key, sign, value in pairs)]
    meant = list(dict.fromkeys(meant)) if pairs else []
    if len(meant) == 1:
        return meant[0]
    fault = f"it is said of {len(meant)} groups ({'; '.join(meant)})" if meant else "no group of finished runs has it"
    raise DataError(f"--baseline {wanted!r}: {fault}; it takes settings or a label of one of: {'; '.join(groups)}.")


def _has(run: RunFolder, key: str, value: str) -> bool:
    """Whether a run has a setting, typed as on the command line."""
    found = run.settings.get(f"{key}.name", run.settings.get(key))
    try:
        wanted = float(value)  # YAML takes 1e-3 for a word
    except ValueError:
        wanted = yaml.safe_load(value)
    return len(distinct([found, wanted])) == 1


def by_group(table: pd.DataFrame, baseline: str | None) -> pd.DataFrame:
    """Levels and paired differences of every model, metric and group.

    Args:
        table: rows as `run_tables.tidy` makes them; several runs of one group and seed count as their mean.
        baseline: group that the others are compared with, seed by seed; None for no comparison.

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
    """Over seeds."""
    return estimate(np.array(values), RESAMPLES, 0)
