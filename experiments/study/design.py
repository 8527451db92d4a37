"""The form of a study: conditions (overrides of one run each) by seeds, what to measure, and the claims it decides.

A study is one file in `experiments/studies/` that makes one `Study` and names it STUDY; `experiments.paper` finds it
there. Its docstring states the question and what is expected. Runs belong to no study: two studies whose conditions
have the same overrides read the same run.

Settings that studies share, so that they share runs: same overrides and seed, one run.

Two tasks. News: summaries of generated articles, a T5 of 13,000 weights at its plateau, ROUGE-2 and exact faithfulness.
Walk: number walks of some 40 tokens, a Llama of 40,000 weights that has seen few references, exact answers. The sizes
are what lets all studies end in three hours on two cores: 120 (news) or 250 (walk) steps of 64 sequences, 500 or 1,000
test rows. Learning rates of the news are those of `methods.py`, chosen on validation rows with seeds 3 and 4; the seeds
here had no part in it.
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
from experiments.study.verdicts import Claim, Series

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


SEEDS = (5, 6, 7, 8, 9)
FEW = SEEDS[:3]  # of studies that answer none of the paper's statements
QUIET = ("tracking=none", "save_model=false", "scale.threads=1", "evaluation.bootstrap_samples=200")
NEWS: Overrides = (
    "reward=faithfulness",
    "student=t5_narrow",
    "trainer.steps=120",
    "task.test_size=500",
    "evaluation.rollout_prompts=250",
    *QUIET,
)
DISTIL = "trainer.learning_rate=1.0e-3"  # of runs without a reward; those with one take trainer=embedded's
TEMPERATURES = (1.0, 0.5, 0.3, 0.1)  # of samples
DIVERGENCES: dict[str, Overrides] = {  # from mode-covering to mode-seeking
    "forward KL": ("divergence=forward_kl",),
    "JSD(0.1)": ("divergence.beta=0.1",),
    "JSD(0.5)": ("divergence.beta=0.5",),
    "JSD(0.9)": ("divergence.beta=0.9",),
    "reverse KL": ("divergence=reverse_kl",),
}
NEWS_METRICS = {
    "rouge2": "ROUGE-2",
    "sampled/rouge2": "ROUGE-2, sampled",
    "reward/all_supported": "faithfulness",
    "sampled/reward": "faithfulness, sampled",
    "sampled/forward_kl": "forward KL to teacher",
    "sampled/divergence": "D",
    "self_bleu": "Self-BLEU",
    "completion_tokens": "length",
}


def method(experiment: str, *overrides: str) -> Overrides:
    """A method on the news that has no reward."""
    return (*NEWS, DISTIL, f"experiment={experiment}", *overrides)


def gkd(divergence: str, lmbda: float = 1.0) -> Overrides:
    """GKD on the news; on-policy students are measured at several temperatures."""
    more = f"evaluation.temperatures=[{','.join(map(str, TEMPERATURES))}]" if lmbda == 1 else f"lmbda={lmbda:g}"
    return method("gkd", *DIVERGENCES[divergence], more)


def rewarded(experiment: str, alpha: float, *overrides: str) -> Overrides:
    """A method on the news that has a reward."""
    return (*NEWS, f"experiment={experiment}", f"alpha={alpha:g}", *overrides)


WALK_STEPS = 250
WALK_TASK: Overrides = ("task=walk", *QUIET, "evaluation.self_bleu_prompts=0")
WALK_METRICS = {
    "reward": "accuracy",
    "sampled/reward": "accuracy, sampled",
    "reward/progress": "targets hit",
    "sampled/forward_kl": "forward KL to teacher",
    "sampled/divergence": "D",
    "completion_tokens": "length",
}
# Fixed before any run: a student takes part if it solves 5% to 90% of 500 validation walks after its supervised stage.
WALK_GATE = Gate(
    overrides=(
        *WALK_TASK,
        *("experiment=sft", "trainer.steps=1", "evaluation.split=validation"),
        *("task.validation_size=500", "evaluation.rollout_prompts=100"),
    ),
    metric="reward",
    low=0.05,
    high=0.9,
    candidates=tuple(range(12)),
    students=8,
)


def walk_method(experiment: str, *overrides: str, steps: int = WALK_STEPS) -> Overrides:
    """A method on the walk."""
    sizes = (f"trainer.steps={steps}", "task.test_size=1000", "evaluation.rollout_prompts=300")
    return (*WALK_TASK, *sizes, f"experiment={experiment}", *overrides)


def walk(divergence: str, lmbda: float, *overrides: str, steps: int = WALK_STEPS) -> Overrides:
    """GKD on the walk."""
    return walk_method("gkd", *DIVERGENCES[divergence], f"lmbda={lmbda:g}", *overrides, steps=steps)
