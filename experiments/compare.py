"""Runs in one table: status, mean and interval over seeds, paired differences, training metrics at equal cost.

    python -m experiments.compare multirun/xsum_rl/DATE --baseline "alpha=0"
    python -m experiments.compare FOLDER... --metric "rouge*" --metric sampled/reward --by teacher_tokens --out report
    python -m experiments.compare wandb:ENTITY/PROJECT/GROUP       # runs that were uploaded

Only finished runs are counted; running and crashed ones are listed. With --out the rows (one for each run, model and
metric) are written to table.parquet and table.csv, and the printed tables to compare.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

from experiments import markdown_rows
from experiments.runs import AXES, RunFolder, Status, find_runs
from experiments.runs.comparison import TRAINING, EqualCost, baseline_group, by_group, costs, equal_cost, tidy
from experiments.sync import SCHEME, fetch
from gkd_rl.errors import GkdRlError


def status_lines(runs: Sequence[RunFolder]) -> list[str]:
    """How many runs have which status, and a row with the error for each that is not finished."""
    counts = [f"{sum(run.status is status for run in runs)} {status.value}" for status in Status]
    lines = [f"{len(runs)} runs: {', '.join(counts)}. Only finished runs are counted."]
    rest = [run for run in runs if run.status is not Status.finished]
    rows = [[str(run.path), run.group, run.status.value, _cell(run.error or "-")] for run in rest]
    return [*lines, "", *markdown_rows(["run", "group", "status", "error"], rows)] if rows else lines


def comparison(table: pd.DataFrame, baseline: str | None) -> list[str]:
    """One line for each metric and group."""
    headings = ["metric", "group", "seeds", "mean"] + ([f"minus {baseline} (seeds up)"] if baseline else [])
    rows = []
    for row in by_group(table, baseline).to_dict("records"):
        level, change = row["level"], row["change"]
        cells = [str(row["metric"]), str(row["group"]), str(level.n), str(level)]
        shown = "-" if change is None else f"{change} ({row['up']}/{change.n})"
        rows.append([*cells, shown] if baseline else cells)
    return markdown_rows(headings, rows)


def cost_rows(runs: Sequence[RunFolder]) -> list[str]:
    """Mean cost of the training stage by group."""
    groups: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(costs(run))
    rows = [[group, *(f"{fmean(one[axis] for one in spent):,.0f}" for axis in AXES)] for group, spent in groups.items()]
    return markdown_rows(["group", *(axis.replace("_", " ") for axis in AXES)], rows)


def at_equal_cost(equal: EqualCost, table: pd.DataFrame, baseline: str | None, window: int) -> list[str]:
    """Training metrics at one cost."""
    axis = equal.axis.replace("_", " ")
    text = f"Training metrics after {equal.at:,.0f} {axis}, the most that every run reached "
    text += f"(means of the last {window} logged values, interpolated):"
    none = [f"Left out, without any {axis}: {', '.join(str(run.path) for run in equal.without)}."]
    return [text, *(none if equal.without else []), "", *comparison(table, baseline)]


def report(runs: Sequence[RunFolder], arguments: argparse.Namespace) -> tuple[str, pd.DataFrame]:
    """The text that is printed, and the table of all rows."""
    finished = [run for run in runs if run.status is Status.finished]
    blocks = [status_lines(runs)]
    if not finished:
        return "\n".join([*blocks[0], "", "There is nothing to compare yet."]), tidy(runs)
    baseline = baseline_group(finished, arguments.baseline) if arguments.baseline else None
    equal = equal_cost(finished, arguments.by, arguments.window)
    table = pd.concat([tidy(runs), equal.table], ignore_index=True)
    models = set(map(str, table["model"])) - {TRAINING}
    if arguments.model not in models:
        raise GkdRlError(f"--model {arguments.model!r}: no run has it; it takes {', '.join(sorted(models))}.")
    printed = {model: rows_of(table, model, arguments.metric) for model in (arguments.model, TRAINING)}
    if not any(map(len, printed.values())):
        names = ", ".join(sorted(set(map(str, table["metric"]))))
        raise GkdRlError(f"--metric {' '.join(arguments.metric)}: no run has it; there are {names}.")
    heading = f"{arguments.model}, mean and 95% bootstrap interval over seeds (too narrow if there are few seeds):"
    blocks.append([heading, "", *comparison(printed[arguments.model], baseline)])
    blocks.append(at_equal_cost(equal, printed[TRAINING], baseline, arguments.window))
    blocks.append(["Cost of the training stage, mean over a group's runs:", "", *cost_rows(finished)])
    return "\n\n".join("\n".join(block) for block in blocks), table


def rows_of(table: pd.DataFrame, model: str, patterns: Sequence[str]) -> pd.DataFrame:
    """A model's rows of the metrics that match a pattern; all metrics without patterns."""
    metrics = list(table["metric"])
    matches = [not patterns or any(fnmatchcase(name, pattern) for pattern in patterns) for name in metrics]
    return table.loc[np.array(matches, dtype=bool) & (table["model"] == model).to_numpy()]


def _cell(text: str) -> str:
    """A text that does not break a Markdown table."""
    return text.replace("|", "\\|")


def write(folder: Path, text: str, table: pd.DataFrame) -> None:
    """table.parquet, table.csv and compare.md."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "table.parquet", index=False)
    table.to_csv(folder / "table.csv", index=False)
    (folder / "compare.md").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def runs_of(sources: Sequence[str], folder: Path) -> list[RunFolder]:
    """Runs of all sources; runs of W&B are downloaded into the folder.

    Raises:
        GkdRlError: a source cannot be read, or none has a run.
    """
    folders = [fetch(one, folder) if one.startswith(SCHEME) else Path(one) for one in sources]
    runs = find_runs(folders)
    if not runs:
        raise GkdRlError(f"There is no run in {', '.join(sources)}: a run's folder has eval.json, run.json or .hydra/.")
    return runs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument(
        "sources", nargs="+", metavar="FOLDER", help="run folders, sweeps, or wandb:ENTITY/PROJECT[/GROUP]"
    )
    made.add_argument("--baseline", help='group to subtract: settings or its label, e.g. "alpha=0"')
    made.add_argument(
        "--metric", action="append", default=[], help="only metrics of this name; * and ? are wildcards; repeatable"
    )
    made.add_argument("--model", default="student after", help="whose metrics are printed; the table has all")
    made.add_argument("--by", choices=AXES, default="steps", help="cost at which learning curves are compared")
    made.add_argument("--window", type=int, default=10, help="logged values behind a point of a learning curve")
    made.add_argument("--out", type=Path, help="folder for table.parquet, table.csv and compare.md")
    return made


def main() -> None:
    """Command line; exit status 1 with one message if the runs cannot be compared."""
    arguments = parser().parse_args()
    try:
        if arguments.window < 1:
            raise GkdRlError(f"--window {arguments.window}: it takes a whole number >= 1.")
        with tempfile.TemporaryDirectory() as temporary:
            text, table = report(runs_of(arguments.sources, Path(temporary)), arguments)
        if arguments.out is not None:
            write(arguments.out, text, table)
    except GkdRlError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
