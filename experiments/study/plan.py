"""Which runs a set of studies needs, each once, how long they take, and running them.

Two stages: first the runs of studies without a gate and the gates themselves, then the runs of the students that the
gates admit. The time estimate is for one thread of the machine that made the tables in `experiments/results`; it is
scaled by what the finished runs took.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.runs import Status, read_run
from experiments.study import Cell, Overrides, Study
from gkd_rl.config import Config, ModelConfig
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError
from gkd_rl.outputs.run_record import RECORD
from gkd_rl.run import find_config_dir

START = {"t5": 18.0, "llama": 17.0}  # seconds for imports, data and the evaluation of three models
SAMPLED_STEP = {"t5": 0.12, "llama": 0.16}  # seconds of a step on 64 sampled completions
FIXED_STEP = {"t5": 0.1, "llama": 0.075}  # seconds of a step on 64 given completions
ENTAILMENT_STEP = 0.1  # seconds added by a reward that is a model
SUPERVISED_STEP = {("t5", 16): 0.03, ("t5", 24): 0.035, ("t5", 64): 0.14, ("llama", 32): 0.05, ("llama", 64): 0.1}
UNKNOWN_STEP = 0.2


@dataclass(frozen=True)
class Job:
    """One command: its folder, relative to the studies' folder, and its overrides."""

    folder: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Runs in the order in which they are started.

    Attributes:
        cells: each run once.
        users: folder -> names of the studies that read the run.
        seconds: folder -> estimate, with the supervised stages of which the run is the first user.
    """

    cells: tuple[Cell, ...]
    users: dict[str, tuple[str, ...]]
    seconds: dict[str, float]

    def jobs(self) -> list[Job]:
        """The commands, for `run_jobs`."""
        return [Job(cell.folder, (*cell.effective, f"seed={cell.seed}")) for cell in self.cells]

    def seconds_left(self, folder: Path) -> float:
        """Estimated seconds of the runs without an eval.json, scaled by what the finished runs took."""
        took = {cell.folder: wall_seconds(folder / cell.folder) for cell in self.cells}
        known = {name: value for name, value in took.items() if value is not None}
        factor = sum(known.values()) / sum(self.seconds[name] for name in known) if known else 1.0
        unfinished = [name for name in self.seconds if not (folder / name / "eval.json").is_file()]
        return factor * sum(self.seconds[name] for name in unfinished)


def plan_of(requests: Iterable[tuple[str, Cell]], extra: Overrides) -> Plan:
    """The union of the runs that studies need.

    The first run of each family of models is started first, so that no two workers wait for one teacher; then family by
    family and seed by seed, so that an interrupted study has complete seeds.

    Args:
        requests: study and run, in the order in which the studies name them.
        extra: overrides of every run, which take precedence.

    Raises:
        SystemExit: a condition is not a valid configuration; every problem is named.
    """
    users: dict[str, list[str]] = {}
    cells: dict[str, Cell] = {}
    for name, cell in requests:
        full = cell.plus(extra)
        cells.setdefault(full.folder, full)
        if name not in users.setdefault(full.folder, []):
            users[full.folder].append(name)
    families = {cell: _model_family(composed(cell.effective)) for cell in cells.values()}
    order = list(dict.fromkeys(families.values()))
    ordered = sorted(families, key=lambda cell: (order.index(families[cell]), cell.seed))
    firsts = [next(cell for cell in ordered if families[cell] == family) for family in order]
    ordered = firsts + [cell for cell in ordered if cell not in firsts]
    return Plan(tuple(ordered), {key: tuple(names) for key, names in users.items()}, _estimates(ordered))


def requested(studies: Sequence[Study], seeds: Mapping[str, Sequence[int]]) -> list[tuple[str, Cell]]:
    """Study and run of everything that the studies need: every condition with the given seeds, and all gates.

    Args:
        studies: all of them.
        seeds: study -> seeds of its conditions.
    """
    pairs = [(study.name, cell) for study in studies for cell in study.cells(seeds[study.name])]
    return pairs + [(study.name, cell) for study in studies for cell in study.gate_cells()]


def first_stage_seeds(studies: Sequence[Study]) -> dict[str, tuple[int, ...]]:
    """Study -> seeds that need no gate; a gated study has none yet."""
    return {study.name: study.seeds for study in studies}


def most_seeds(studies: Sequence[Study]) -> dict[str, tuple[int, ...]]:
    """Study -> as many seeds as it can have, to estimate the cost before any gate has decided."""
    return {
        study.name: study.seeds if study.gate is None else study.gate.candidates[: study.gate.students]
        for study in studies
    }


def admitted(study: Study, folder: Path, extra: Overrides) -> tuple[int, ...]:
    """Seeds that take part in a study: its own, or those that its gate admits."""
    return study.seeds if study.gate is None else study.gate.admitted(gate_values(study, folder, extra))


def gate_values(study: Study, folder: Path, extra: Overrides) -> dict[int, float]:
    """The gate's metric of each candidate whose run is finished."""
    if study.gate is None:
        return {}
    paths = {cell.seed: folder / cell.plus(extra).folder for cell in study.gate_cells()}
    found = {seed: read_run(path).results for seed, path in paths.items() if path.is_dir()}
    return {seed: results["student before"][study.gate.metric]["mean"] for seed, results in found.items() if results}


def run_jobs(jobs: Sequence[Job], folder: Path, workers: int) -> list[str]:
    """Run every job that has no eval.json yet, `workers` at a time; the output of each goes to its run.log.

    Returns:
        Folders of the jobs that failed.
    """
    failed: list[str] = []
    lock = threading.Lock()
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}

    def run(job: Job) -> None:
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
        list(pool.map(run, jobs))
    return failed


def wall_seconds(path: Path) -> float | None:
    """Seconds that a finished run took, supervised stages included; None for any other run."""
    if not path.is_dir() or read_run(path).status is not Status.finished or not (path / RECORD).is_file():
        return None
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    return None if record["ended"] is None else float(record["ended"] - record["started"])


@functools.cache
def composed(overrides: Overrides) -> Config:
    """Overrides as a configuration, validated.

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


def _model_family(config: Config) -> str:
    """Task and architecture; runs that agree in both share a teacher."""
    return f"{config.task['_target_']} {(config.student.architecture or {}).get('model_type')}"


def _estimates(cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds of each run; a supervised model counts for the first run that needs it."""
    trained: set[str] = set()
    seconds = {}
    for cell in cells:
        config = composed(cell.effective)
        kind = str((config.student.architecture or {}).get("model_type"))
        sampled, fixed = (table.get(kind, UNKNOWN_STEP) for table in (SAMPLED_STEP, FIXED_STEP))
        step = config.lmbda * sampled + (1 - config.lmbda) * fixed
        step += ENTAILMENT_STEP if config.reward.weights.get("entailment") and config.alpha < 1 else 0.0
        total = START.get(kind, 20.0) + config.trainer.steps * step
        for model, seed in ((config.student, cell.seed), (config.teacher, -1)):
            if model is None or model.sft is None:
                continue
            key = f"{_model_family(config)} {model.architecture} {model.sft} {seed}"
            if key not in trained:
                trained.add(key)
                total += _supervised_seconds(model)
        seconds[cell.folder] = total
    return seconds


def _supervised_seconds(model: ModelConfig) -> float:
    """Seconds of a supervised stage."""
    shape = model.architecture or {}
    width = shape.get("d_model", shape.get("hidden_size"))
    steps = 0 if model.sft is None else model.sft.steps
    return steps * SUPERVISED_STEP.get((str(shape.get("model_type")), int(width or 0)), UNKNOWN_STEP)
