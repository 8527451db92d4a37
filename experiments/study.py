"""What studies share: running many commands on a few workers, reading finished runs, paired differences over seeds."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import Status, find_runs
from gkd_rl.errors import DataError
from gkd_rl.json_files import write_json
from gkd_rl.uncertainty import Estimate, estimate

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
