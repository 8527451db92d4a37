"""Question: what does alpha trade, reward against closeness to the teacher, and is it more than extra training steps?

    python -m experiments.alpha_tradeoff                      # runs everything, then prints the tables
    python -m experiments.alpha_tradeoff --read FOLDER...     # tables from finished runs

Runs experiment=xsum_rl over alpha and seed, and experiment=sft (as many optimiser steps and sequences, on the
references) for the same seeds. Every difference is paired: the run's student after minus the same seed's student
before, or minus the same seed's supervised control, on the same rows with the same random numbers. Intervals are
bootstraps over seeds; "seeds up" counts the seeds in which the difference is positive.
Expected: D falls and ROUGE-2 rises at alpha = 1; reward rises at alpha <= 0.5; reward falls and ROUGE-2 rises in alpha.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gkd_rl.json_files import write_json
from gkd_rl.uncertainty import Estimate, estimate

METRICS = {
    "rouge2": "ROUGE-2",
    "reward/all_supported": "all supported",
    "reward/supported_share": "supported share",
    "sampled/rouge2": "ROUGE-2, sampled",
    "sampled/reward": "reward, sampled",
    "sampled/divergence": "D, sampled",
    "sampled/reverse_kl": "reverse KL, sampled",
    "self_bleu": "Self-BLEU",
    "completion_tokens": "tokens",
}
BOOTSTRAP_SAMPLES = 10_000
CONTROL = "more SFT"


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


def read_runs(folders: list[Path]) -> list[Run]:
    """Every finished run below the folders."""
    runs = []
    for folder in folders:
        for file in sorted(folder.rglob("eval.json")):
            config = yaml.safe_load((file.parent / "config.yaml").read_text(encoding="utf-8"))
            control = config["divergence"]["name"] == "cross_entropy"
            method = CONTROL if control else f"alpha = {config['alpha']:g}"
            runs.append(Run(method, int(config["seed"]), json.loads(file.read_text(encoding="utf-8"))))
    if not runs:
        raise SystemExit(f"No finished run (eval.json) below {', '.join(map(str, folders))}.")
    return sorted(runs, key=lambda run: (run.method, run.seed))


def levels(runs: list[Run], model: str) -> dict[str, Estimate]:
    """Mean over the runs' seeds of one model's metrics."""
    columns = {metric: [value for run in runs if (value := run.value(model, metric)) is not None] for metric in METRICS}
    return {metric: estimate(np.array(values), BOOTSTRAP_SAMPLES, 0) for metric, values in columns.items() if values}


def changes(runs: list[Run], others: dict[int, Run], model: str) -> dict[str, dict[str, Any]]:
    """Per metric: this run's student after minus `model` of the same seed's other run, over seeds and for each seed."""
    table: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        by_seed = {
            run.seed: after - before
            for run in runs
            if run.seed in others
            and (after := run.value("student after", metric)) is not None
            and (before := others[run.seed].value(model, metric)) is not None
        }
        if by_seed:
            values = np.array(list(by_seed.values()))
            table[metric] = {**estimate(values, BOOTSTRAP_SAMPLES, 0).as_dict(), "by_seed": by_seed}
    return table


def summarise(runs: list[Run]) -> dict[str, Any]:
    """The study's result: levels of every model and paired changes of every method."""
    methods = {name: [run for run in runs if run.method == name] for name in dict.fromkeys(run.method for run in runs)}
    one_method = next(iter(methods.values()))
    taught = {name: rows for name, rows in methods.items() if "teacher" in rows[0].results}
    summary: dict[str, Any] = {"settings": {name: rows[0].results["settings"] for name, rows in methods.items()}}
    rows = {"teacher": levels(next(iter(taught.values())), "teacher")} if taught else {}
    rows |= {"student before": levels(one_method, "student before")}
    rows |= {name: levels(group, "student after") for name, group in methods.items()}
    summary["levels"] = {name: {key: one.as_dict() for key, one in row.items()} for name, row in rows.items()}
    before = {
        name: changes(group, {run.seed: run for run in group}, "student before") for name, group in methods.items()
    }
    summary["against the student before"] = before
    control = {run.seed: run for run in methods.get(CONTROL, [])}
    summary["against more SFT"] = {
        name: table
        for name, group in methods.items()
        if name != CONTROL and (table := changes(group, control, "student after"))
    }
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """Levels with intervals over seeds, then paired differences with the number of seeds that went up."""
    header = "| | " + " | ".join(METRICS.values()) + " |\n|" + "---|" * (len(METRICS) + 1)
    lines = ["Levels (mean over seeds, 95% interval over seeds):", "", header]
    for name, row in summary["levels"].items():
        cells = [str(Estimate(**row[metric])) if metric in row else "-" for metric in METRICS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for comparison in ("against the student before", "against more SFT"):
        lines += ["", f"Paired difference {comparison} (seeds up / seeds):", "", header]
        for name, row in summary[comparison].items():
            cells = [_change(row[metric]) if metric in row else "-" for metric in METRICS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _change(entry: dict[str, Any]) -> str:
    up = sum(value > 0 for value in entry["by_seed"].values())
    shown = Estimate(*(entry[key] for key in ("mean", "low", "high", "n")))
    return f"{shown} ({up}/{entry['n']})"


def run_sweeps(alphas: str, seeds: str, folder: Path, overrides: list[str]) -> None:
    """The sweep over alpha and the supervised control, each as one multirun below `folder`."""
    for experiment, dial in (("xsum_rl", [f"alpha={alphas}"]), ("sft", [])):
        command = [sys.executable, "-m", "gkd_rl.run", "-m", f"experiment={experiment}", *dial, f"seed={seeds}"]
        subprocess.run([*command, f"hydra.sweep.dir={folder / experiment}", *overrides], check=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alphas", default="0,0.25,0.5,0.75,1", help="comma-separated alphas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated seeds")
    parser.add_argument("--read", type=Path, nargs="+", help="folders with finished runs; nothing is run")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    parser.add_argument("overrides", nargs="*", help="further overrides for every run, e.g. task.seed=7")
    arguments = parser.parse_args()
    folders = arguments.read
    if folders is None:
        folders = [Path("multirun") / "alpha_tradeoff" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")]
        run_sweeps(arguments.alphas, arguments.seeds, folders[0], arguments.overrides)
    summary = summarise(read_runs(folders))
    if arguments.out is not None:
        write_json(arguments.out, summary)
    sys.stdout.write(markdown(summary) + "\n")


if __name__ == "__main__":
    main()
