"""A study's result: levels, paired changes, costs and claims, as JSON and as Markdown.

Runs a set of studies to their results: plan, run, read, write. What is finished in the folder is kept.

    python -m experiments.studies.NAME                   # one study; experiments.paper runs all of them
    python -m experiments.studies.NAME --plan            # what it would run, and for how long
    python -m experiments.studies.NAME --read            # results of what is finished; nothing is run
    python -m experiments.studies.NAME trainer.steps=50  # further overrides for every run

Studies that run in one folder share runs. The same command goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs.folders import Status, read_run
from experiments.study.design import Cell, Results, Study
from experiments.study.plan import (
    Plan,
    admitted,
    asked_by,
    gate_values,
    markdown_rows,
    plan_of,
    run_jobs,
    seeds_before,
    shown,
    wall_seconds,
)
from experiments.study.verdicts import Series
from gkd_rl.outputs.json_files import write_json

COSTS = ("time/total", "flops", "tokens/student_trained")


def summarise(study: Study, results: Results, gate: Mapping[int, float]) -> dict[str, Any]:
    """Everything that the study's runs say, as JSON.

    Args:
        study: the study.
        results: its finished runs.
        gate: what its gate measured, by seed.
    """
    names = list(study.conditions)
    claims = study.claims(results)
    tables = {
        "student after": {name: _entries(study, lambda key, name=name: results.after(name, key)) for name in names},
        "change": {name: _entries(study, lambda key, name=name: results.change(name, key)) for name in names},
        "student before": {name: _entries(study, lambda key, name=name: results.before(name, key)) for name in names},
        "teacher": {name: _entries(study, lambda key, name=name: results.teacher(name, key)) for name in names},
    }
    missing = sorted(frozenset().union(*(results.after(name, next(iter(study.metrics))).missing for name in names)))
    return {
        "question": study.question,
        "expected": study.expected,
        "command": f"python -m experiments.studies.{study.name}",
        "conditions": {name: list(overrides) for name, overrides in study.conditions.items()},
        "seeds": list(results.seeds),
        "students": students(study, gate),
        **tables,
        "cost": {name: {key: _entry(results.cost(name, key)) for key in COSTS} for name in names},
        "claims": [claim.as_dict() for claim in claims],
        "missing": missing,
    }


def students(study: Study, gate: Mapping[int, float]) -> dict[str, Any] | None:
    """Of a gated study: every candidate, what was measured, and whether it takes part."""
    if study.gate is None:
        return None
    rule = f"{study.gate.metric} before training, on validation rows, from {study.gate.low:g} to {study.gate.high:g}"
    standing = study.gate.standing(gate)
    return {"rule": rule, "candidates": {seed: {"value": gate.get(seed), "": word} for seed, word in standing.items()}}


def markdown(summary: Mapping[str, Any], metrics: Mapping[str, str]) -> str:
    """The study as text: what it asks, what was expected, tables, claims."""
    lines = [f"**{summary['question']}**", "", f"`{summary['command']}`. Expected: {summary['expected']}", ""]
    if summary["students"] is not None:
        found = summary["students"]["candidates"].items()
        cells = [[str(seed), "-" if one["value"] is None else f"{one['value']:.3f}", one[""]] for seed, one in found]
        lines += [f"Students: {summary['students']['rule']}.", "", *markdown_rows(["seed", "value", ""], cells), ""]
        lines += [
            "Each student after training (in brackets D, forward KL on own samples):",
            "",
            *_by_student(summary),
            "",
        ]
    lines += ["Trained students (mean over seeds, 95% interval):", "", *_table(summary["student after"], metrics), ""]
    lines += ["After minus before:", "", *_table(summary["change"], metrics), ""]
    lines += [*claim_rows(summary["claims"])]
    if summary["missing"]:
        lines += ["", f"Missing: {'; '.join(summary['missing'])}."]
    return "\n".join(lines)


def claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of claims."""
    rows = [[str(one["statement"] or "-"), one["claim"], measured(one), one["verdict"]] for one in claims]
    return markdown_rows(["statement", "claim", "measured", ""], rows)


def measured(claim: Mapping[str, Any]) -> str:
    """A claim's effects in a cell of a table."""
    effects = [
        f"{label}: {cell(entry)}" if len(claim["effects"]) > 1 else cell(entry)
        for label, entry in claim["effects"].items()
    ]
    missing = f" ({len(claim['missing'])} runs missing)" if claim["missing"] else ""
    unit = f" {claim['unit']}" if claim["unit"] else ""
    return "; ".join(effects) + unit + missing


def cell(entry: Mapping[str, Any]) -> str:
    """`mean [low, high]`, or a dash where there is no number."""
    return shown(dict(entry)) if entry["n"] else "-"


def _entries(study: Study, read: Any) -> dict[str, Any]:
    """Every metric of the study that some run has."""
    found = {key: read(key) for key in study.metrics}
    return {key: _entry(series) for key, series in found.items() if series.by_seed}


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
    return markdown_rows(
        ["seed", *names], [[str(seed), *(numbers(name, seed) for name in names)] for seed in summary["seeds"]]
    )


def _table(rows: Mapping[str, Any], metrics: Mapping[str, str]) -> list[str]:
    """A row for each condition."""
    cells = [[name, *(cell(row[key]) if key in row else "-" for key in metrics)] for name, row in rows.items()]
    return markdown_rows(["", *metrics.values()], cells)


SCALE = "scale=embedded"


@dataclass(frozen=True)
class Outcome:
    """What a set of studies came to.

    Attributes:
        summaries: study -> its JSON.
        facts: of the runs: how many, which are missing, revisions, seconds.
    """

    summaries: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def parser(doc: str | None, folder: Path) -> argparse.ArgumentParser:
    """The command line that every set of studies has."""
    made = argparse.ArgumentParser(description=(doc or "").strip().splitlines()[0])
    made.add_argument("--folder", type=Path, default=folder, help=f"where runs are kept, {folder}")
    made.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each")
    made.add_argument("--plan", action="store_true", help="print what would be run, and run nothing")
    made.add_argument("--read", action="store_true", help="results of what is finished; nothing is run")
    made.add_argument("--out", type=Path, help="folder for the results; the default is results/ below --folder")
    made.add_argument("overrides", nargs="*", help="further overrides for every run; scale=embedded is the only scale")
    return made


def conduct(studies: Sequence[Study], arguments: argparse.Namespace) -> Outcome | None:
    """Run what is missing, in two stages, and read everything; None where only the plan was asked for.

    Raises:
        SystemExit: another scale, or a condition that is not valid.
    """
    extra, folder = extra_overrides(arguments.overrides), arguments.folder.absolute()
    whole = plan_of(asked_by(studies, seeds_before(studies, ungated=False)), extra)
    say(described(studies, whole, folder, arguments.workers))
    if arguments.plan:
        return None
    failed: list[str] = []
    if not arguments.read:
        first = plan_of(asked_by(studies, seeds_before(studies, ungated=True)), extra)
        failed += run_jobs(first.jobs(), folder, arguments.workers)
        rest = plan_of(asked_by(studies, {study.name: admitted(study, folder, extra) for study in studies}), extra)
        tried = set(failed)
        failed += run_jobs([job for job in rest.jobs() if job.folder not in tried], folder, arguments.workers)
    return outcome(studies, folder, extra, failed)


def outcome(studies: Sequence[Study], folder: Path, extra: tuple[str, ...], failed: Sequence[str]) -> Outcome:
    """Read every finished run, and let each study say what it says."""
    seeds = {study.name: admitted(study, folder, extra) for study in studies}
    plan = plan_of(asked_by(studies, seeds), extra)
    read = {cell.folder: read_run(folder / cell.folder) for cell in plan.cells if (folder / cell.folder).is_dir()}
    finished = {name: run for name, run in read.items() if run.status is Status.finished}
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


def write(found: Outcome, studies: Sequence[Study], out: Path) -> None:
    """JSON and Markdown of every study."""
    for study in studies:
        summary = found.summaries[study.name]
        write_json(out / f"{study.name}.json", {**summary, "facts": found.facts})
        text = markdown(summary, study.metrics)
        (out / f"{study.name}.md").write_text(text + "\n", encoding="utf-8")


def main(study: Study) -> None:
    """Command line of one study."""
    arguments = parser(study.doc, Path("multirun/paper")).parse_args()
    found = conduct([study], arguments)
    if found is None:
        return
    write(found, [study], out_of(arguments))
    sys.stdout.write(markdown(found.summaries[study.name], study.metrics) + "\n")
    stop_if_failed(found)


def out_of(arguments: argparse.Namespace) -> Path:
    """Where results are written."""
    return arguments.out or arguments.folder / "results"


def stop_if_failed(found: Outcome) -> None:
    """Exit status 1 where a run failed.

    Raises:
        SystemExit: with the folders of the failed runs.
    """
    if found.facts["failed"]:
        raise SystemExit(
            f"{len(found.facts['failed'])} runs failed, see their run.log: {', '.join(found.facts['failed'])}"
        )


def described(studies: Sequence[Study], plan: Plan, folder: Path, workers: int) -> str:
    """The plan in words: each study's conditions and runs, and how long everything takes."""
    lines = []
    for study in studies:
        own = [name for name, users in plan.users.items() if study.name in users]
        shared = sum(len(plan.users[name]) > 1 for name in own)
        hours = sum(plan.seconds[name] for name in own) / 3600
        who = f"{len(study.seeds)} seeds" if study.gate is None else f"up to {study.gate.students} students"
        line = f"{study.name:24} {len(study.conditions):3} conditions x {who}: {len(own)} runs"
        lines.append(f"{line}, {shared} of them shared, {hours:.1f} h of one thread")
    done = sum((folder / cell.folder / "eval.json").is_file() for cell in plan.cells)
    left = plan.left(folder) / 3600 / workers
    lines.append(f"in all {len(plan.cells)} runs, {done} of them finished; {left:.1f} h left with {workers} workers")
    return "\n".join(lines)


def extra_overrides(typed: Sequence[str]) -> tuple[str, ...]:
    """What the user typed, without the scale that is the default.

    Raises:
        SystemExit: another scale.
    """
    scales = [one for one in typed if one.partition("=")[0] == "scale"]
    if any(one != SCALE for one in scales):
        raise SystemExit(
            f"{' '.join(scales)}: the studies' settings are those of generated tasks; type {SCALE}, or nothing."
        )
    return tuple(one for one in typed if one != SCALE)


def _revision(path: Path) -> str | None:
    """The revision that a run was made with, with a plus where files had changed."""
    file = path / "environment.json"
    git = json.loads(file.read_text(encoding="utf-8")).get("git") if file.is_file() else None
    return None if git is None else git["revision"][:10] + ("+" if git["dirty"] else "")


def say(text: str) -> None:
    """To the person who waits."""
    sys.stderr.write(text + "\n")
