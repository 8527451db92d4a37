"""A study's result: levels, paired changes, costs and claims, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.design import Results, Study
from experiments.study import markdown_rows, shown
from experiments.verdicts import Series

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
