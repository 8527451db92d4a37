"""Studies from the command line to result files: plan, run, read, summarise, write.

    python -m experiments.studies.FILE                   # the first study of a file; experiments.paper runs all
    python -m experiments.studies.FILE --study NAME      # another study of the file
    python -m experiments.studies.FILE --plan            # prints what would be run and how long it takes
    python -m experiments.studies.FILE --read            # results of the finished runs; runs nothing
    python -m experiments.studies.FILE trainer.steps=50  # further overrides for every run

Studies that run in one folder share runs. Finished runs are kept: the same command continues an interrupted one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import markdown_rows
from experiments.runs import Status, read_run
from experiments.study import Cell, Results, Study
from experiments.study.plan import (
    Plan,
    admitted,
    first_stage_seeds,
    gate_values,
    most_seeds,
    plan_of,
    requested,
    run_jobs,
    wall_seconds,
)
from experiments.study.verdicts import Series
from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.tables import Estimate

FOLDER = Path("multirun/paper")
SCALE = "scale=embedded"


@dataclass(frozen=True)
class Outcome:
    """Results of a set of studies.

    Attributes:
        summaries: study -> its JSON.
        facts: about the runs: how many, which are missing, revisions, seconds.
    """

    summaries: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def main(*studies: Study) -> None:
    """Command line of a study file: runs the first of its studies, or the one that --study names."""
    names = [study.name for study in studies]
    made = parser("One study: its runs, a verdict for each of its claims, and its tables.")
    made.add_argument("--study", choices=names, default=names[0], help=f"of this file; {names[0]} if not given")
    arguments = made.parse_args()
    study = studies[names.index(arguments.study)]
    found = conduct([study], arguments)
    if found is None:
        return
    write(found, [study], out_of(arguments))
    sys.stdout.write(markdown(study, found.summaries[study.name]) + "\n")
    exit_if_failed(found)


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that one study and all studies share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--folder", type=Path, default=FOLDER, help=f"where runs are kept; {FOLDER} if not given")
    made.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    made.add_argument("--plan", action="store_true", help="print what would be run, and run nothing")
    made.add_argument("--read", action="store_true", help="results of the finished runs; run nothing")
    made.add_argument("--seeds", help="instead of the study's own, e.g. 0,1,2; not for a study with a gate")
    made.add_argument("--out", type=Path, help="folder for the results; results/ in --folder if not given")
    made.add_argument("overrides", nargs="*", help=f"further overrides for every run; {SCALE} is the only scale")
    return made


def conduct(studies: Sequence[Study], arguments: argparse.Namespace) -> Outcome | None:
    """Run what is missing, in two stages, and read everything; None if only the plan was requested.

    Raises:
        SystemExit: another scale, seeds for a study with a gate, or a condition that is not valid.
    """
    extra, folder = extra_overrides(arguments.overrides), arguments.folder.absolute()
    studies = with_seeds(studies, arguments.seeds)
    everything = plan_of(requested(studies, most_seeds(studies)), extra)
    log(description_of(studies, everything, folder, arguments.workers))
    if arguments.plan:
        return None
    failed: list[str] = []
    if not arguments.read:
        first = plan_of(requested(studies, first_stage_seeds(studies)), extra)
        failed += run_jobs(first.jobs(), folder, arguments.workers)
        rest = plan_of(requested(studies, {study.name: admitted(study, folder, extra) for study in studies}), extra)
        tried = set(failed)
        failed += run_jobs([job for job in rest.jobs() if job.folder not in tried], folder, arguments.workers)
    return read(studies, folder, extra, failed)


def read(studies: Sequence[Study], folder: Path, extra: tuple[str, ...], failed: Sequence[str]) -> Outcome:
    """Read every finished run and summarise every study."""
    seeds = {study.name: admitted(study, folder, extra) for study in studies}
    plan = plan_of(requested(studies, seeds), extra)
    known = {cell.folder: read_run(folder / cell.folder) for cell in plan.cells if (folder / cell.folder).is_dir()}
    finished = {name: run for name, run in known.items() if run.status is Status.finished}
    summaries = {}
    for study in studies:
        runs: dict[str, dict[int, Any]] = {name: {} for name in study.conditions}
        for name, overrides in study.conditions.items():
            for seed in seeds[study.name]:
                run = finished.get(Cell(overrides, seed).plus(extra).folder)
                if run is not None and run.results is not None:
                    runs[name][seed] = run.results
        gate = gate_values(study, folder, extra)
        summaries[study.name] = summarise(study, Results(runs, seeds[study.name]), gate)
    took = [wall_seconds(folder / name) for name in finished]
    facts = {
        "runs": len(plan.cells),
        "finished": len(finished),
        "failed": list(failed),
        "missing": [cell.folder for cell in plan.cells if cell.folder not in finished],
        "revisions": sorted({revision for name in finished if (revision := _revision(folder / name))}),
        "run seconds": sum(value for value in took if value is not None),
        "overrides": list(extra),
    }
    return Outcome(summaries, facts)


def summarise(study: Study, results: Results, gate: Mapping[int, float]) -> dict[str, Any]:
    """A study's numbers and verdicts as JSON.

    Args:
        study: the study.
        results: its finished runs.
        gate: the gate's metric by seed.
    """
    names = list(study.conditions)

    def entries(series_of: Callable[[str, str], Series]) -> dict[str, dict[str, Any]]:
        """Condition -> every metric that some run has."""
        found = {name: {key: series_of(name, key) for key in study.metrics} for name in names}
        return {
            name: {key: _entry(series) for key, series in row.items() if series.by_seed} for name, row in found.items()
        }

    main_metric = next(iter(study.metrics))
    missing = sorted(frozenset().union(*(results.after(name, main_metric).missing for name in names)))
    return {
        "question": study.question,
        "expected": study.expected,
        "command": f"python -m experiments.paper --studies {study.name}",
        "conditions": {name: list(overrides) for name, overrides in study.conditions.items()},
        "seeds": list(results.seeds),
        "students": students(study, gate),
        "student after": entries(results.after),
        "change": entries(results.change),
        "student before": entries(results.before),
        "teacher": entries(results.teacher),
        "cost": {name: {key: _entry(results.cost(name, key)) for key in study.costs} for name in names},
        "claims": [claim.as_dict() for claim in study.claims(results)],
        "missing": missing,
    }


def students(study: Study, gate: Mapping[int, float]) -> dict[str, Any] | None:
    """The candidates of a gated study: what was measured, and whether each takes part."""
    if study.gate is None:
        return None
    rule = f"{study.gate.metric} before training, on validation rows, from {study.gate.low:g} to {study.gate.high:g}"
    decisions = study.gate.decisions(gate)
    return {"rule": rule, "candidates": {seed: {"value": gate.get(seed), "": text} for seed, text in decisions.items()}}


def write(found: Outcome, studies: Sequence[Study], out: Path) -> None:
    """JSON and Markdown of every study."""
    for study in studies:
        summary = found.summaries[study.name]
        write_json(out / f"{study.name}.json", {**summary, "facts": found.facts})
        (out / f"{study.name}.md").write_text(markdown(study, summary) + "\n", encoding="utf-8")


def markdown(study: Study, summary: Mapping[str, Any]) -> str:
    """A study as text: question, expectation, tables, claims."""
    lines = [f"**{summary['question']}**", "", f"`{summary['command']}`. Expected: {summary['expected']}", ""]
    if summary["students"] is not None:
        found = summary["students"]["candidates"].items()
        rows = [[str(seed), "-" if one["value"] is None else f"{one['value']:.3f}", one[""]] for seed, one in found]
        lines += [f"Students: {summary['students']['rule']}.", "", *markdown_rows(["seed", "value", ""], rows), ""]
        lines += ["Each student after training (in brackets: forward KL to the teacher on own samples):", ""]
        lines += [*_by_student(summary), ""]
    lines += ["Trained students (mean over seeds, 95% interval):", ""]
    lines += [*_table(summary["student after"], study.metrics, cell), ""]
    lines += ["After - before:", "", *_table(summary["change"], study.metrics, cell), ""]
    lines += ["Cost of the training stage (mean over seeds):", ""]
    lines += [*_table(summary["cost"], study.costs, lambda entry: f"{entry['mean']:.3g}" if entry["n"] else "-"), ""]
    lines += claim_rows(summary["claims"])
    if summary["missing"]:
        lines += ["", f"Missing: {'; '.join(summary['missing'])}."]
    return "\n".join(lines)


def claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of claims."""
    rows = [[str(one["statement"] or "-"), one["claim"], measured(one), one["verdict"]] for one in claims]
    return markdown_rows(["statement", "claim", "measured", ""], rows)


def measured(claim: Mapping[str, Any]) -> str:
    """A claim's effects in one cell of a table."""
    effects = [
        f"{label}: {cell(entry)}" if len(claim["effects"]) > 1 else cell(entry)
        for label, entry in claim["effects"].items()
    ]
    missing = f" ({len(claim['missing'])} runs missing)" if claim["missing"] else ""
    unit = f" {claim['unit']}" if claim["unit"] else ""
    return "; ".join(effects) + unit + missing


def cell(entry: Mapping[str, Any]) -> str:
    """`mean [low, high]`, or a dash without any number."""
    return str(Estimate(*(entry[key] for key in ("mean", "low", "high", "n")))) if entry["n"] else "-"


def _entry(series: Series) -> dict[str, Any]:
    """A series as JSON."""
    return {**series.estimate.as_dict(), "by_seed": dict(series.by_seed)}


def _by_student(summary: Mapping[str, Any]) -> list[str]:
    """The first metric and the forward KL of every student under every condition."""

    def numbers(name: str, seed: int) -> str:
        row = summary["student after"][name]
        metric = next(iter(row), "")
        found = [row[key]["by_seed"].get(seed) if key in row else None for key in (metric, "sampled/forward_kl")]
        return "-" if found[0] is None else f"{found[0]:.3f}" + (f" ({found[1]:.3f})" if found[1] is not None else "")

    names = list(summary["conditions"])
    rows = [[str(seed), *(numbers(name, seed) for name in names)] for seed in summary["seeds"]]
    return markdown_rows(["seed", *names], rows)


def _table(
    rows: Mapping[str, Any], columns: Mapping[str, str], text_of: Callable[[Mapping[str, Any]], str]
) -> list[str]:
    """A row for each condition."""
    cells = [[name, *(text_of(row[key]) if key in row else "-" for key in columns)] for name, row in rows.items()]
    return markdown_rows(["", *columns.values()], cells)


def description_of(studies: Sequence[Study], plan: Plan, folder: Path, workers: int) -> str:
    """The plan as text: each study's conditions and runs, and the estimated time."""
    lines = []
    for study in studies:
        own = [name for name, users in plan.users.items() if study.name in users]
        shared = sum(len(plan.users[name]) > 1 for name in own)
        hours = sum(plan.seconds[name] for name in own) / 3600
        who = f"{len(study.seeds)} seeds" if study.gate is None else f"up to {study.gate.students} students"
        line = f"{study.name:24} {len(study.conditions):3} conditions x {who}: {len(own)} runs"
        lines.append(f"{line}, {shared} of them shared, {hours:.1f} h of one thread")
    done = sum((folder / one.folder / "eval.json").is_file() for one in plan.cells)
    left = plan.seconds_left(folder) / 3600 / workers
    lines.append(f"in all {len(plan.cells)} runs, {done} of them finished; {left:.1f} h left with {workers} workers")
    return "\n".join(lines)


def extra_overrides(typed: Sequence[str]) -> tuple[str, ...]:
    """Overrides of the command line without the scale, which is the default.

    Raises:
        SystemExit: another scale.
    """
    scales = [one for one in typed if one.partition("=")[0] == "scale"]
    if any(one != SCALE for one in scales):
        raise SystemExit(
            f"{' '.join(scales)}: studies have settings for generated tasks only; type {SCALE}, or nothing."
        )
    return tuple(one for one in typed if one != SCALE)


def with_seeds(studies: Sequence[Study], typed: str | None) -> list[Study]:
    """The studies with the seeds of the command line; None keeps their own.

    Raises:
        SystemExit: no list of whole numbers, or a study whose gate selects its seeds.
    """
    if typed is None:
        return list(studies)
    gated = [study.name for study in studies if study.gate is not None]
    if gated:
        raise SystemExit(f"--seeds {typed}: the seeds of {', '.join(gated)} are selected by a gate; leave --seeds out.")
    try:
        seeds = tuple(dict.fromkeys(int(seed) for seed in typed.split(",")))
    except ValueError as error:
        raise SystemExit(f"--seeds {typed}: takes whole numbers with commas between them, e.g. 0,1,2.") from error
    return [replace(study, seeds=seeds) for study in studies]


def out_of(arguments: argparse.Namespace) -> Path:
    """The folder for results."""
    return arguments.out or arguments.folder / "results"


def exit_if_failed(found: Outcome) -> None:
    """End with exit status 1 if a run failed.

    Raises:
        SystemExit: with the folders of the failed runs.
    """
    failed = found.facts["failed"]
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, see their run.log: {', '.join(failed)}")


def log(text: str) -> None:
    """Print to standard error."""
    sys.stderr.write(text + "\n")


def _revision(path: Path) -> str | None:
    """The revision that made a run, with a plus if files had changed."""
    file = path / "environment.json"
    git = json.loads(file.read_text(encoding="utf-8")).get("git") if file.is_file() else None
    return None if git is None else git["revision"][:10] + ("+" if git["dirty"] else "")
