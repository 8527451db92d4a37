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
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.study.plan import Run, changes, levels, markdown_rows, read_runs, report, shown, shown_change

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
CONTROL = "more SFT"


def method_of(config: dict[str, Any], _: Path) -> str:
    """The alpha of a run, or that it is the control."""
    return CONTROL if config["divergence"]["name"] == "cross_entropy" else f"alpha = {config['alpha']:g}"


def summarise(runs: list[Run]) -> dict[str, Any]:
    """The study's result: levels of every model and paired changes of every method."""
    methods = {name: [run for run in runs if run.method == name] for name in dict.fromkeys(run.method for run in runs)}
    one_method = next(iter(methods.values()))
    taught = {name: rows for name, rows in methods.items() if "teacher" in rows[0].results}
    summary: dict[str, Any] = {"settings": {name: rows[0].results["settings"] for name, rows in methods.items()}}
    keys = list(METRICS)
    rows = {"teacher": levels(next(iter(taught.values())), "teacher", keys)} if taught else {}
    rows |= {"student before": levels(one_method, "student before", keys)}
    rows |= {name: levels(group, "student after", keys) for name, group in methods.items()}
    summary["levels"] = rows
    summary["against the student before"] = {
        name: changes(group, {run.seed: run for run in group}, "student before", keys)
        for name, group in methods.items()
    }
    control = {run.seed: run for run in methods.get(CONTROL, [])}
    summary["against more SFT"] = {
        name: table
        for name, group in methods.items()
        if name != CONTROL and (table := changes(group, control, "student after", keys))
    }
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """Levels with intervals over seeds, then paired differences with the number of seeds that went up."""
    headings = ["", *METRICS.values()]

    def table(rows: dict[str, Any], cell: Callable[[dict[str, Any]], str]) -> list[str]:
        cells = [[name, *(cell(row[key]) if key in row else "-" for key in METRICS)] for name, row in rows.items()]
        return markdown_rows(headings, cells)

    lines = ["Levels (mean over seeds, 95% interval over seeds):", "", *table(summary["levels"], shown)]
    for comparison in ("against the student before", "against more SFT"):
        lines += ["", f"Paired difference {comparison} (seeds up / seeds):", ""]
        lines += table(summary[comparison], shown_change)
    return "\n".join(lines)


def run_sweeps(alphas: str, seeds: str, folder: Path, overrides: list[str]) -> None:
    """The sweep over alpha and the supervised control, each as one multirun below `folder`."""
    for experiment, dial in (("xsum_rl", [f"alpha={alphas}"]), ("sft", [])):
        command = [sys.executable, "-m", "gkd_rl.run", "-m", f"experiment={experiment}", "reward=faithfulness", *dial]
        command += [f"seed={seeds}", f"hydra.sweep.dir={folder / experiment}", *overrides]
        subprocess.run(command, check=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alphas", default="0,0.25,0.5,0.75,1", help="comma-separated alphas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="comma-separated seeds")
    parser.add_argument("--read", type=Path, nargs="+", help="folders with finished runs; nothing is run")
    parser.add_argument("--out", type=Path, help="write the result here as JSON, and the tables beside it as Markdown")
    parser.add_argument("overrides", nargs="*", help="further overrides for every run, e.g. task.seed=7")
    arguments = parser.parse_args()
    folders = arguments.read
    if folders is None:
        folders = [Path("multirun") / "alpha_tradeoff" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")]
        run_sweeps(arguments.alphas, arguments.seeds, folders[0], arguments.overrides)
    summary = summarise(read_runs(folders, method_of))
    report(summary, markdown(summary), arguments.out)


if __name__ == "__main__":
    main()
