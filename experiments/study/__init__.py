"""The form of a study: conditions (overrides of one run each) by seeds, metrics to report, claims to decide.

A study file (`experiments/studies/`) makes one `Study` and names it STUDY, or several of one topic and names the tuple
STUDIES. A run does not belong to a study: two studies whose conditions have the same overrides and seed read the same
run.

Reading order: this file; `verdicts.py`, when a claim counts as shown; `plan.py`, which runs are needed and how they are
started; `runner.py`, from the command line to the result files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.study.verdicts import Claim, Series

Overrides = tuple[str, ...]
COSTS = {"time/total": "seconds", "flops": "FLOPs", "tokens/student_trained": "tokens trained on"}


@dataclass(frozen=True)
class Cell:
    """One run: overrides and seed."""

    overrides: Overrides
    seed: int

    @property
    def folder(self) -> str:
        """Folder below the studies' folder; it depends on the set of overrides, not on their order."""
        ordered = sorted(self.effective)
        digest = hashlib.sha256("\n".join(ordered).encode()).hexdigest()[:10]
        name = next((one.partition("=")[2] for one in ordered if one.startswith("experiment=")), "run")
        return f"{name}_{digest}/seed_{self.seed}"

    @property
    def effective(self) -> Overrides:
        """The overrides; of a key that occurs twice, the last."""
        return tuple({one.lstrip("+").partition("=")[0]: one for one in self.overrides}.values())

    def plus(self, extra: Overrides) -> Cell:
        """The same run with more overrides, which take precedence."""
        return replace(self, overrides=(*self.overrides, *extra))


@dataclass(frozen=True)
class Gate:
    """Which students take part: a rule on a metric of the validation split before any run of the conditions.

    Attributes:
        overrides: of the run whose student before training is measured.
        metric: key in eval.json.
        low, high: a student is admitted if low <= metric <= high.
        candidates: seeds, in the order in which they are considered.
        students: how many take part: the first that are admitted.
    """

    overrides: Overrides
    metric: str
    low: float
    high: float
    candidates: tuple[int, ...]
    students: int

    def admitted(self, values: Mapping[int, float]) -> tuple[int, ...]:
        """Seeds that take part, given the validation metric of each candidate."""
        inside = [seed for seed in self.candidates if seed in values and self.low <= values[seed] <= self.high]
        return tuple(inside[: self.students])

    def decisions(self, values: Mapping[int, float]) -> dict[int, str]:
        """Candidate -> whether it takes part, and if not, why."""
        chosen = self.admitted(values)

        def decision(seed: int) -> str:
            if seed in chosen:
                return "takes part"
            if seed not in values:
                return "its supervised stage has no run"
            value = values[seed]
            return "failed" if value < self.low else "at the ceiling" if value > self.high else "not needed"

        return {seed: decision(seed) for seed in self.candidates}


@dataclass(frozen=True)
class Study:
    """A question, and the runs and rules that answer it.

    Attributes:
        name: of its result files, and for `--study` and `--studies`.
        question: one sentence that ends in a question mark.
        expected: what was expected before any run.
        conditions: name -> overrides.
        seeds: of every condition; of a gated study, none.
        metrics: keys in eval.json -> headings of the tables; every run should have the first.
        claims: decides them from the finished runs.
        gate: selects the seeds instead.
        costs: totals of the training stage -> headings; `flops` is the sum over all phases.
        in_paper: whether `experiments.paper` runs it when no studies are named.
    """

    name: str
    question: str
    expected: str
    conditions: Mapping[str, Overrides]
    seeds: tuple[int, ...]
    metrics: Mapping[str, str]
    claims: Callable[[Results], list[Claim]]
    gate: Gate | None = None
    costs: Mapping[str, str] = field(default_factory=lambda: COSTS)
    in_paper: bool = True

    def gate_cells(self) -> list[Cell]:
        """Runs that decide which students take part."""
        return [] if self.gate is None else [Cell(self.gate.overrides, seed) for seed in self.gate.candidates]

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Every run of every condition."""
        return [Cell(overrides, seed) for seed in seeds for overrides in self.conditions.values()]


@dataclass(frozen=True)
class Results:
    """The finished runs of a study.

    Attributes:
        runs: condition -> seed -> eval.json.
        seeds: that every condition should have.
    """

    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]
    seeds: tuple[int, ...]

    def after(self, condition: str, metric: str) -> Series:
        """A metric of the trained student, by seed."""
        return self._series(condition, lambda results: _mean(results, "student after", metric))

    def before(self, condition: str, metric: str) -> Series:
        """A metric of the student before training, by seed."""
        return self._series(condition, lambda results: _mean(results, "student before", metric))

    def teacher(self, condition: str, metric: str) -> Series:
        """A metric of the teacher, by seed of the run."""
        return self._series(condition, lambda results: _mean(results, "teacher", metric))

    def change(self, condition: str, metric: str) -> Series:
        """After training minus before."""
        return self.after(condition, metric) - self.before(condition, metric)

    def cost(self, condition: str, key: str) -> Series:
        """A total of the training stage, e.g. time/total; `flops` is the sum over all phases."""
        return self._series(condition, lambda results: _total(results["cost"], key))

    def _series(self, condition: str, value_of: Callable[[Mapping[str, Any]], float | None]) -> Series:
        runs = self.runs.get(condition, {})
        values = {seed: value_of(runs[seed]) for seed in self.seeds if seed in runs}
        found = {seed: value for seed, value in values.items() if value is not None}
        return Series(found, frozenset(f"{condition}, seed {seed}" for seed in self.seeds if seed not in found))


def _mean(results: Mapping[str, Any], model: str, metric: str) -> float | None:
    """A metric's mean over the rows, None where a run does not measure it."""
    entry = results.get(model, {}).get(metric)
    return None if entry is None else float(entry["mean"])


def _total(cost: Mapping[str, float], key: str) -> float | None:
    """One total, or the sum of all FLOPs; a run without an entry for some tokens did not process any of them."""
    if key == "flops":
        return sum(value for name, value in cost.items() if name.startswith("flops/"))
    return cost.get(key, 0.0 if key.startswith("tokens/") else None)
