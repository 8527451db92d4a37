"""The form of a study: conditions (overrides of one run each) by seeds, what to measure, and the claims it decides.

A study is one file in `experiments/studies/` that makes one `Study` and names it STUDY; `experiments.paper` finds it
there. Its docstring states the question and what is expected. Runs belong to no study: two studies whose conditions
have the same overrides read the same run.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import studies
from experiments.verdicts import Claim, Series

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One run: what is typed, and the seed."""

    overrides: Overrides
    seed: int

    @property
    def folder(self) -> str:
        """Below the suite's folder; the same for the same overrides, in whatever order they were typed."""
        typed = sorted(self.typed)
        digest = hashlib.sha256("\n".join(typed).encode()).hexdigest()[:10]
        name = next((one.partition("=")[2] for one in typed if one.startswith("experiment=")), "run")
        return f"{name}_{digest}/seed_{self.seed}"

    @property
    def typed(self) -> Overrides:
        """Of a setting that is there twice, the last."""
        return tuple({one.lstrip("+").partition("=")[0]: one for one in self.overrides}.values())

    def plus(self, extra: Overrides) -> Cell:
        """The same run with more overrides, which win."""
        return replace(self, overrides=(*self.overrides, *extra))


@dataclass(frozen=True)
class Gate:
    """Which students take part, decided before any of their runs on the validation split.

    Attributes:
        overrides: of the run whose student before training is judged.
        metric: of eval.json.
        low, high: a student takes part if low <= metric <= high.
        candidates: seeds, in the order in which they are tried.
        students: how many take part; the first that may.
    """

    overrides: Overrides
    metric: str
    low: float
    high: float
    candidates: tuple[int, ...]
    students: int

    def admitted(self, values: Mapping[int, float]) -> tuple[int, ...]:
        """Seeds that take part, from the validation metric of each candidate."""
        inside = [seed for seed in self.candidates if seed in values and self.low <= values[seed] <= self.high]
        return tuple(inside[: self.students])

    def standing(self, values: Mapping[int, float]) -> dict[int, str]:
        """What becomes of every candidate, in words."""
        chosen = self.admitted(values)

        def word(seed: int) -> str:
            if seed in chosen:
                return "takes part"
            if seed not in values:
                return "its supervised stage has no run"
            value = values[seed]
            return "failed" if value < self.low else "at the ceiling" if value > self.high else "not needed"

        return {seed: word(seed) for seed in self.candidates}


@dataclass(frozen=True)
class Study:
    """A question, and what answers it.

    Attributes:
        file: the study's `__file__`; names it.
        doc: its `__doc__`: the question in the first line, "Expected: ..." at the end.
        conditions: name -> overrides.
        seeds: of every condition; of a gated study, none.
        metrics: of eval.json, for the tables, with their headings.
        claims: decides them from the finished runs.
        gate: chooses the seeds instead.
    """

    file: str
    doc: str | None
    conditions: Mapping[str, Overrides]
    seeds: tuple[int, ...]
    metrics: Mapping[str, str]
    claims: Callable[[Results], list[Claim]]
    gate: Gate | None = None

    @property
    def name(self) -> str:
        """As in `python -m experiments.studies.NAME`."""
        return Path(self.file).stem

    @property
    def question(self) -> str:
        """The first line of its docstring."""
        return (self.doc or "").strip().splitlines()[0].removeprefix("Question: ")

    @property
    def expected(self) -> str:
        """What its docstring expects."""
        return " ".join((self.doc or "").partition("Expected:")[2].split())

    def gate_cells(self) -> list[Cell]:
        """Runs that decide who takes part."""
        return [] if self.gate is None else [Cell(self.gate.overrides, seed) for seed in self.gate.candidates]

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Every run of every condition."""
        return [Cell(overrides, seed) for seed in seeds for overrides in self.conditions.values()]


@dataclass(frozen=True)
class Results:
    """A study's finished runs.

    Attributes:
        runs: condition -> seed -> eval.json.
        seeds: that there should be.
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

    def cost(self, condition: str, name: str) -> Series:
        """A total of the run's own stage, e.g. time/total; all of flops/ for `flops`."""
        return self._series(condition, lambda results: _total(results["cost"], name))

    def _series(self, condition: str, read: Callable[[Mapping[str, Any]], float | None]) -> Series:
        runs = self.runs.get(condition, {})
        values = {seed: read(runs[seed]) for seed in self.seeds if seed in runs}
        found = {seed: value for seed, value in values.items() if value is not None}
        return Series(found, frozenset(f"{condition}, seed {seed}" for seed in self.seeds if seed not in found))


def _mean(results: Mapping[str, Any], model: str, metric: str) -> float | None:
    """A metric's mean over the rows, None where a run does not measure it."""
    entry = results.get(model, {}).get(metric)
    return None if entry is None else float(entry["mean"])


def _total(cost: Mapping[str, float], name: str) -> float | None:
    """One total, or the sum of all FLOPs."""
    if name == "flops":
        return sum(value for key, value in cost.items() if key.startswith("flops/"))
    return cost.get(name)


def all_studies() -> dict[str, Study]:
    """Every study of `experiments/studies/`, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(studies.__path__))
    modules = [importlib.import_module(f"experiments.studies.{name}") for name in names]
    return {module.STUDY.name: module.STUDY for module in modules}
