"""What the page's script does with its object, for the still figures: groups, lines and means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gkd_rl.uncertainty import estimate

BEFORE, AFTER, TEACHER = "student before", "student after", "teacher"
RESAMPLES = 4000
RunEntry = dict[str, Any]  # one of the payload's runs


@dataclass(frozen=True)
class Level:
    """A mean with its interval: over seeds, or over rows where there is one run; low and high are NaN without one."""

    mean: float
    low: float
    high: float

    @property
    def bars(self) -> np.ndarray:
        """Lengths of the error bar below and above, shape (2, 1)."""
        return np.nan_to_num(np.array([[self.mean - self.low], [self.high - self.mean]]).clip(0))


def level(runs: Sequence[RunEntry], model: str, metric: str) -> Level | None:
    """A metric of a model over runs; None where no run has it."""
    found = [run["values"][model][metric] for run in runs if metric in run["values"].get(model, {})]
    if not found:
        return None
    if len(found) == 1:
        return Level(*(np.nan if value is None else float(value) for value in found[0][:3]))
    over = estimate(np.array([one[0] for one in found]), RESAMPLES, 0)
    return Level(over.mean, over.low, over.high)


def finished(runs: Sequence[RunEntry]) -> list[RunEntry]:
    """Runs with results."""
    return [run for run in runs if AFTER in run["values"]]


def metrics_of(runs: Sequence[RunEntry]) -> set[str]:
    """Metrics of the student after training, of any run."""
    return {metric for run in finished(runs) for metric in run["values"][AFTER]}


def grouped(runs: Sequence[RunEntry], label_of: Callable[[RunEntry], str]) -> dict[str, list[RunEntry]]:
    """Label -> runs, by the lowest alpha of each and then by the label."""
    groups: dict[str, list[RunEntry]] = {}
    for run in runs:
        groups.setdefault(label_of(run), []).append(run)

    def alpha(run: RunEntry) -> float:
        value = run["settings"]["alpha"]
        return 2.0 if value is None else float(value)

    return dict(sorted(groups.items(), key=lambda item: (min(map(alpha, item[1])), item[0])))


def groups_of(runs: Sequence[RunEntry]) -> dict[str, list[RunEntry]]:
    """Runs that differ in their seed alone."""
    return grouped(runs, lambda run: run["group"])


def lines_of(figure: dict[str, Any], runs: Sequence[RunEntry]) -> dict[str, dict[str, list[RunEntry]]]:
    """Line of a figure -> its groups, in the order of the setting that varies along it."""

    def along(item: tuple[str, list[RunEntry]]) -> float:
        value = item[1][0]["settings"].get(figure["along"])
        return 0.0 if value is None else float(value)

    lines = grouped(runs, lambda run: run["lines"][figure["key"]])
    return {label: dict(sorted(groups_of(own).items(), key=along)) for label, own in lines.items()}
