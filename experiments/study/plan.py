"""What studies share: running many commands on a few workers, reading finished runs, paired differences over seeds.

Which runs a set of studies needs, each of them once, and how long that takes.

Two stages: runs that need no gate and the gates themselves, then the runs of the students that the gates admit. The
estimate is of one thread on the machine of README's tables; runs that are finished correct it by what they took.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.runs.folders import Status, find_runs, read_run
from experiments.study.design import Cell, Overrides, Study
from gkd_rl.config import Config, ModelConfig
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError, DataError
from gkd_rl.evaluation.uncertainty import estimate
from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.run_record import RECORD
from gkd_rl.outputs.tables import Estimate
from gkd_rl.run import find_config_dir

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Run:
    """One finished run: which method and seed, and its eval.json."""

    method: str
    seed: int
    results: dict[str, Any]

    def value(self, model: str, metric: str) -> float | None:
        """Mean of a metric over the rows, None where the run does not have it."""
        entry = self.results[model].get(metric)
        return None if entry is None else float(entry["mean"])


@dataclass(frozen=True)
class Job:
    """One command: its folder, relative to the study's, and its overrides."""

    folder: str
    overrides: tuple[str, ...]


def read_runs(folders: Sequence[Path], method_of: Callable[[dict[str, Any], Path], str]) -> list[Run]:
    """Every finished run below the folders, sorted by method and seed.

    Args:
        folders: searched for runs.
        method_of: names a run from its configuration and folder.

    Raises:
        SystemExit: no run is finished, a folder is not there, or a run cannot be read.
    """
    try:
        found = find_runs(folders)
    except DataError as error:
        raise SystemExit(str(error)) from error
    bad = [f"{run.path}: {run.error}" for run in found if run.status is Status.unreadable]
    if bad:
        raise SystemExit("\n".join(bad))
    runs = [Run(method_of(run.config, run.path), int(run.config["seed"]), run.results) for run in found if run.results]
    if not runs:
        raise SystemExit(f"No finished run (eval.json) below {', '.join(map(str, folders))}.")
    return sorted(runs, key=lambda run: (run.method, run.seed))


def run_jobs(jobs: Sequence[Job], folder: Path, workers: int) -> list[str]:
    """Run every job that has no eval.json yet, `workers` at a time; the output of each goes to its run.log.

    Returns:
        Folders of the jobs that failed.
    """
    failed: list[str] = []
    lock = threading.Lock()
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}

    def work(job: Job) -> None:
        target = folder / job.folder
        if (target / "eval.json").is_file():
            return
        target.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "gkd_rl.run", *job.overrides, f"hydra.run.dir={target}"]
        with (target / "run.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
        with lock:
            sys.stderr.write(f"{job.folder}: {'done' if done.returncode == 0 else 'failed, see its run.log'}\n")
            if done.returncode != 0:
                failed.append(job.folder)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, jobs))
    return failed


def levels(runs: Sequence[Run], model: str, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean and interval over the runs' seeds of one model's metrics, as JSON."""
    columns = {metric: [value for run in runs if (value := run.value(model, metric)) is not None] for metric in metrics}
    return {
        metric: estimate(np.array(values), BOOTSTRAP_SAMPLES, 0).as_dict()
        for metric, values in columns.items()
        if values
    }


def changes(
    runs: Sequence[Run], others: dict[int, Run], model: str, metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Per metric: this run's student after minus `model` of the same seed's other run, over seeds and for each seed."""
    table: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        by_seed = {
            run.seed: after - before
            for run in runs
            if run.seed in others
            and (after := run.value("student after", metric)) is not None
            and (before := others[run.seed].value(model, metric)) is not None
        }
        if by_seed:
            table[metric] = over_seeds(by_seed)
    return table


def over_seeds(by_seed: dict[int, float]) -> dict[str, Any]:
    """Mean and interval over seeds, and the value of each seed, as JSON."""
    return {**estimate(np.array(list(by_seed.values())), BOOTSTRAP_SAMPLES, 0).as_dict(), "by_seed": by_seed}


def shown(entry: dict[str, Any]) -> str:
    """`mean [low, high]`."""
    return str(Estimate(*(entry[key] for key in ("mean", "low", "high", "n"))))


def shown_change(entry: dict[str, Any]) -> str:
    """`mean [low, high] (seeds up / seeds)`."""
    up = sum(value > 0 for value in entry["by_seed"].values())
    return f"{shown(entry)} ({up}/{entry['n']})"


def markdown_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def report(summary: dict[str, Any], tables: str, out: Path | None) -> None:
    """Print the tables; with `out`, write the summary there as JSON and the tables beside it as Markdown."""
    sys.stdout.write(tables + "\n")
    if out is not None:
        write_json(out, summary)
        out.with_suffix(".md").write_text(tables + "\n", encoding="utf-8")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a study that runs a table of methods over seeds."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--folder", type=Path, help="the study's folder; finished runs in it are kept")
    parser.add_argument("--read", type=Path, help="a folder with finished runs; nothing is run")
    parser.add_argument("--out", type=Path, help="write the result here as JSON, and the tables beside it as Markdown")
    parser.add_argument("overrides", nargs="*", help="further overrides for every run, e.g. task.seed=7")
    return parser


def conduct(
    arguments: argparse.Namespace,
    name: str,
    jobs_of_seeds: Callable[[list[int]], list[Job]],
    method_of: Callable[[dict[str, Any], Path], str],
    summarise: Callable[[list[Run]], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
) -> None:
    """Run or read a study as the command line says, and report it.

    Raises:
        SystemExit: no run is finished, or some failed.
    """
    folder, failed, start = arguments.read, [], time.monotonic()
    if folder is None:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        folder = (arguments.folder or Path("multirun") / name / stamp).absolute()
        failed = run_jobs(jobs_of_seeds([int(seed) for seed in arguments.seeds.split(",")]), folder, arguments.workers)
    summary = summarise(read_runs([folder], method_of))
    report(summary, markdown(summary), arguments.out)
    sys.stderr.write(f"{(time.monotonic() - start) / 60:.1f} minutes\n")
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}")


START = {"t5": 18.0, "llama": 17.0}  # seconds for imports, data and the evaluation of three models
SAMPLED_STEP = {"t5": 0.12, "llama": 0.16}  # of 64 sequences on student rollouts
FIXED_STEP = {"t5": 0.1, "llama": 0.075}  # on given text
ENTAILMENT_STEP = 0.1  # more, where a model gives the reward
SUPERVISED_STEP = {("t5", 16): 0.03, ("t5", 24): 0.035, ("t5", 64): 0.14, ("llama", 32): 0.05, ("llama", 64): 0.1}
UNKNOWN_STEP = 0.2


@dataclass(frozen=True)
class Plan:
    """Runs in the order in which they are started.

    Attributes:
        cells: each run once.
        users: folder -> names of the studies that read it.
        seconds: folder -> estimate, the supervised stages that it is the first to need included.
    """

    cells: tuple[Cell, ...]
    users: dict[str, tuple[str, ...]]
    seconds: dict[str, float]

    def jobs(self) -> list[Job]:
        """For `study.run_jobs`."""
        return [Job(cell.folder, (*cell.typed, f"seed={cell.seed}")) for cell in self.cells]

    def left(self, folder: Path) -> float:
        """Seconds that the runs without an eval.json take, by the estimate and by what the finished ones took."""
        took = {cell.folder: wall_seconds(folder / cell.folder) for cell in self.cells}
        known = {name: value for name, value in took.items() if value is not None}
        factor = sum(known.values()) / sum(self.seconds[name] for name in known) if known else 1.0
        open_ = [name for name in self.seconds if not (folder / name / "eval.json").is_file()]
        return factor * sum(self.seconds[name] for name in open_)


def plan_of(asked: Iterable[tuple[str, Cell]], extra: Overrides) -> Plan:
    """The union of the runs that studies ask for.

    The first run of each task goes first, so that no two workers wait for one teacher; then task by task and seed by
    seed, so that what is there after an interruption is whole.

    Args:
        asked: study and run, in the order in which the studies name them.
        extra: overrides of every run, which win.

    Raises:
        SystemExit: a condition is no valid configuration; every problem is named.
    """
    users: dict[str, list[str]] = {}
    cells: dict[str, Cell] = {}
    for name, cell in asked:
        full = cell.plus(extra)
        cells.setdefault(full.folder, full)
        if name not in users.setdefault(full.folder, []):
            users[full.folder].append(name)
    kinds = {cell: _kind(composed(cell.typed)) for cell in cells.values()}
    places = list(dict.fromkeys(kinds.values()))
    ordered = sorted(kinds, key=lambda cell: (places.index(kinds[cell]), cell.seed))
    firsts = [next(cell for cell in ordered if kinds[cell] == kind) for kind in places]
    ordered = firsts + [cell for cell in ordered if cell not in firsts]
    return Plan(tuple(ordered), {key: tuple(names) for key, names in users.items()}, _estimates(ordered))


def asked_by(studies: Sequence[Study], seeds: Mapping[str, Sequence[int]]) -> list[tuple[str, Cell]]:
    """Study and run of everything that the studies need: all gates, and every condition with the given seeds.

    Args:
        studies: all of them.
        seeds: study -> seeds of its conditions.
    """
    asked = [(study.name, cell) for study in studies for cell in study.cells(seeds[study.name])]
    return asked + [(study.name, cell) for study in studies for cell in study.gate_cells()]


def seeds_before(studies: Sequence[Study], ungated: bool) -> dict[str, tuple[int, ...]]:
    """Seeds of each study before its gate has decided.

    Args:
        studies: all of them.
        ungated: a gated study has none yet; otherwise as many as it may admit, to know the cost.
    """
    return {
        study.name: study.seeds
        if study.gate is None
        else study.gate.candidates[: 0 if ungated else study.gate.students]
        for study in studies
    }


def admitted(study: Study, folder: Path, extra: Overrides) -> tuple[int, ...]:
    """Seeds that take part in a study: its own, or those that its gate admits."""
    return study.seeds if study.gate is None else study.gate.admitted(gate_values(study, folder, extra))


def gate_values(study: Study, folder: Path, extra: Overrides) -> dict[int, float]:
    """What the gate measured of each candidate whose run is finished."""
    if study.gate is None:
        return {}
    paths = {cell.seed: folder / cell.plus(extra).folder for cell in study.gate_cells()}
    found = {seed: read_run(path).results for seed, path in paths.items() if path.is_dir()}
    return {seed: results["student before"][study.gate.metric]["mean"] for seed, results in found.items() if results}


def wall_seconds(path: Path) -> float | None:
    """How long a finished run took, supervised stages included; None where it has not finished here."""
    if not path.is_dir() or read_run(path).status is not Status.finished or not (path / RECORD).is_file():
        return None
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    return None if record["ended"] is None else float(record["ended"] - record["started"])


@functools.cache
def composed(overrides: Overrides) -> Config:
    """A condition as a configuration, checked before any run.

    Raises:
        SystemExit: it is not valid; every problem is named.
    """
    try:
        with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
            config = OmegaConf.to_object(compose("config", [*overrides, "seed=0"]))
        assert isinstance(config, Config)
        validate(config)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise SystemExit(f"{' '.join(overrides)}:\n{error}") from error
    return config


def _kind(config: Config) -> str:
    """What a run's models are, which tells the tasks apart: runs of one share a teacher."""
    return str((config.student.architecture or {}).get("model_type"))


def _estimates(cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds of each run; a supervised model counts for the first run that needs it."""
    trained: set[str] = set()
    seconds = {}
    for cell in cells:
        config, kind = composed(cell.typed), _kind(composed(cell.typed))
        sampled, fixed = (table.get(kind, UNKNOWN_STEP) for table in (SAMPLED_STEP, FIXED_STEP))
        step = config.lmbda * sampled + (1 - config.lmbda) * fixed
        step += ENTAILMENT_STEP if config.reward.weights.get("entailment") and config.alpha < 1 else 0.0
        total = START.get(kind, 20.0) + config.trainer.steps * step
        for model, seed in ((config.student, cell.seed), (config.teacher, -1)):
            key = "" if model is None or model.sft is None else f"{model.architecture} {model.sft} {seed}"
            if model is not None and key and key not in trained:
                trained.add(key)
                total += _supervised(model)
        seconds[cell.folder] = total
    return seconds


def _supervised(model: ModelConfig) -> float:
    """Seconds of a supervised stage."""
    shape = model.architecture or {}
    width = shape.get("d_model", shape.get("hidden_size"))
    steps = 0 if model.sft is None else model.sft.steps
    return steps * SUPERVISED_STEP.get((str(shape.get("model_type")), int(width or 0)), UNKNOWN_STEP)
