"""What benchmarks leave behind: results.json, a line for every sample, and a table."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gkd_rl.benchmarks.settings import BenchmarkConfig
from gkd_rl.checkpoint import folder_digest
from gkd_rl.environment import environment_record
from gkd_rl.json_files import JsonLines, write_json
from gkd_rl.report_table import results_table

KEPT = ("results", "groups", "n-samples", "n-shot", "versions", "configs", "higher_is_better")
COLUMNS = [("score", "score"), ("stderr", "standard error"), ("n", "rows"), ("shots", "examples in the prompt")]


def write_report(
    folder: Path, config: BenchmarkConfig, harness: dict[str, Any], mt_bench: dict[str, Any] | None, seconds: float
) -> None:
    """Write results.json and samples_TASK.jsonl; texts of the model stand in the latter only."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, samples in harness.get("samples", {}).items():
        lines = JsonLines(folder / f"samples_{task}.jsonl")
        lines.append(samples)
        lines.close()
    environment = environment_record()
    environment["packages"] |= {"lm_eval": version("lm_eval")}
    write_json(
        folder / "results.json",
        {
            "model": {"path": config.model, "sha256": folder_digest(config.model)},
            "settings": config,
            "harness": {key: harness[key] for key in KEPT if key in harness},
            "mt_bench": mt_bench,
            "seconds": seconds,
            "environment": environment,
        },
    )


def table(
    config: BenchmarkConfig, names: dict[str, list[str]], harness: dict[str, Any], mt_bench: dict[str, Any] | None
) -> str:
    """One row for each score of each suite."""
    rows = {label: cells for suite in names for name in names[suite] for label, cells in _scores(suite, name, harness)}
    rows |= {} if mt_bench is None else _mt_bench_rows(mt_bench)
    caption = f"lm-evaluation-harness {version('lm_eval')}"
    caption += "" if config.limit is None else f"; the first {config.limit} rows only"
    if mt_bench is not None:
        caption += (
            f"; MT-Bench by {config.mt_bench.judge.model}, of 10, {mt_bench['unreadable']} of {mt_bench['verdicts']} "
            "verdicts unreadable and left out"
        )
    return results_table(rows, COLUMNS, config.model, caption)


def _scores(suite: str, name: str, harness: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Row label -> cells of each metric of one task or group."""
    scores = harness["results"][name]
    counts = [count["effective"] for task, count in harness["n-samples"].items() if task in _members(name, harness)]
    shots = sorted({harness["n-shot"][task] for task in _members(name, harness)})
    for key, value in scores.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = scores.get(f"{metric}_stderr,{kind}")
        words = [suite, "" if name == suite else name, metric, "" if kind == "none" else f"({kind})"]
        yield (
            " ".join(word for word in words if word),
            {
                "score": f"{value:.4f}",
                "stderr": f"{stderr:.4f}" if isinstance(stderr, int | float) else "-",
                "n": str(sum(counts)),
                "shots": ", ".join(map(str, shots)),
            },
        )


def _members(name: str, harness: dict[str, Any]) -> set[str]:
    """The tasks under a group, or the task itself."""
    children = harness.get("group_subtasks", {}).get(name, [])
    return set().union(*(_members(child, harness) for child in children)) if children else {name}


def _mt_bench_rows(mt_bench: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Turns, categories and all of them."""
    return {
        f"mt_bench {name}": {
            "score": "-" if cells["mean"] is None else f"{cells['mean']:.2f}",
            "stderr": "-" if cells["stderr"] is None else f"{cells['stderr']:.2f}",
            "n": str(cells["n"]),
            "shots": "0",
        }
        for name, cells in mt_bench["scores"].items()
    }
