"""Run folders read back: settings, status, results, curves, texts, and the groups that runs form.

A run is finished when its eval.json exists. Otherwise its run.json tells whether its process is alive; if not, the run
crashed, with the error if there was time to write one. Files of other runs or revisions may lack any of these; metrics
that had another name then get their present one (`gkd_rl/config/moved_targets.py`).

Runs are of one group if all their settings agree but the seed, settings that are the seed, and settings that cannot
change a number. A group's label names the settings that distinguish it.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from gkd_rl.config.moved_targets import with_current_metrics, with_current_targets
from gkd_rl.errors import DataError
from gkd_rl.outputs.run_record import RECORD, is_alive

MARKS = ("eval.json", RECORD, ".hydra")  # a folder with one of these is a run's
NOT_SEARCHED = ("wandb", "model", "checkpoints")  # folders of a run that hold no runs
# former names in metrics.jsonl and in the cost of eval.json -> present ones
COSTS = {
    "student_tokens": ("tokens/student_trained",),
    "teacher_tokens": ("tokens/teacher_generated", "tokens/teacher_scored"),
}
AXES = ("steps", *COSTS, "seconds")
SEED = "seed"
NAME = "name"
METHOD = ("alpha", "lmbda", "divergence.name", "divergence.beta", "divergence.skew")  # settings that labels always name
MANY = 4  # a label of more settings leaves out those that most groups share
TRIVIAL = ("cache_dir", "save_model", "threads", "notice", "log_every", "samples_per_log", "memory_gib")
TRIVIAL_PARTS = ("tracking", "hydra")
Settings = Mapping[str, Any]

log = logging.getLogger(__name__)


class Status(Enum):
    """Status of a run."""

    finished = "finished"
    running = "running"
    crashed = "crashed"
    unreadable = "unreadable"


@dataclass(frozen=True)
class RunFolder:
    """One run.

    Attributes:
        path: its folder.
        status: finished, running, crashed or unreadable.
        error: one line: why it crashed or cannot be read.
        config: the resolved configuration, empty if there is none.
        overrides: of the command line, `key=value` each.
        settings: `config` with dotted keys.
        results: eval.json of a finished run, else None.
        group: label of the runs that differ in the seed only; it depends on the runs that are read together.
        seed: None if there is no configuration.
    """

    path: Path
    status: Status
    error: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] | None = None
    group: str = ""
    seed: int | None = None


def find_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """Every run in and below the folders, sorted by path within each, with the groups that they form together.

    Raises:
        DataError: a folder does not exist.
    """
    paths: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"{folder} is no folder: name run folders, or folders that hold them, e.g. multirun/xsum_rl."
            )
        paths |= dict.fromkeys(_run_paths(folder))
    return grouped([read_run(path) for path in paths])


def grouped(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The runs with the labels of the groups that they form together; a run without a configuration is in no group."""
    known = [run for run in runs if run.settings]
    typed = {override.lstrip("+~").partition("=")[0] for run in known for override in run.overrides}
    keys = [*typed, *(f"{key}.name" for key in typed)]
    named = dict(zip([run.path for run in known], labels([run.settings for run in known], keys), strict=True))
    return [replace(run, group=named.get(run.path, "")) for run in runs]


def differing(runs: Sequence[RunFolder]) -> dict[str, tuple[Any, ...]]:
    """Dotted key -> distinct values, for the settings that differ between the runs; see `differing_settings`."""
    return differing_settings([run.settings for run in runs if run.settings])


def read_run(path: Path) -> RunFolder:
    """One run folder; its group is empty until `grouped`."""
    try:
        config = _mapping(path / "config.yaml", lambda text: yaml.safe_load(with_current_targets(text)))
        overrides = _parsed(path / ".hydra" / "overrides.yaml", yaml.safe_load) or []
        run = RunFolder(path, Status.unreadable, None, config, tuple(map(str, overrides)), dotted(config))
        run = replace(run, seed=config.get("seed"))
        record = _mapping(path / RECORD, json.loads)
        if (path / "eval.json").exists() and not _is_older(path, record):
            results = _mapping(path / "eval.json", json.loads)
            if not config:
                return replace(run, error="there is no config.yaml beside eval.json")
            if isinstance(results.get("cost"), dict):
                results["cost"] = with_current_metrics(results["cost"])
            return replace(run, status=Status.finished, results=results)
        alive = bool(record) and is_alive(record, path)
    except (DataError, KeyError) as error:
        return RunFolder(
            path, Status.unreadable, f"{RECORD} lacks {error}" if isinstance(error, KeyError) else str(error)
        )
    if alive:
        return replace(run, status=Status.running)
    no_error = (
        "it ended without an error (killed, or the machine stopped)" if record else f"no eval.json and no {RECORD}"
    )
    return replace(run, status=Status.crashed, error=record.get("error") or no_error)


def curves(run: RunFolder) -> pd.DataFrame:
    """metrics.jsonl, one row a step: `step`, every metric, and the cost up to the step on each of `AXES`.

    "nan" and "inf" become numbers; a metric that a step does not have is NaN. If a resumed run went back to an earlier
    step, its steps replace the old ones from there on. Seconds include those of sampling from the teacher, before
    training.
    """
    kept = _without_abandoned(_lines(run.path / "metrics.jsonl"), one_a_step=True)
    rows = [with_current_metrics(row) for row in kept]
    raw = pd.DataFrame(rows if rows else {"step": []})
    frame = pd.DataFrame({name: pd.to_numeric(raw[name], errors="coerce") for name in raw})
    before = (run.results or {}).get("cost", {}).get("time/teacher_samples", 0.0)
    spent = {axis: _sums(frame, names) for axis, names in COSTS.items()}
    seconds = before + _sums(frame, [str(name) for name in frame if str(name).startswith("time/")])
    return frame.assign(steps=frame["step"], **spent, seconds=seconds)


def samples(run: RunFolder) -> list[dict[str, Any]]:
    """Lines of samples.jsonl: step, prompt, completion, reference, source, reward, rewards (those that a run has)."""
    rows = _without_abandoned(_lines(run.path / "samples.jsonl"), one_a_step=False)
    return list({(row["step"], row.get("prompt")): row for row in rows}.values())


def predictions(run: RunFolder) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl: the reference and every model's completion, by row of the held-out split."""
    return list(_lines(run.path / "predictions.jsonl"))


def _sums(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Cumulative sum of all of `names` after each step; a column that does not exist is 0."""
    columns = [frame[name].fillna(0.0).to_numpy(dtype=float) for name in names if name in frame]
    return np.cumsum(np.sum(columns, axis=0)) if columns else np.zeros(len(frame))


def _run_paths(folder: Path) -> Iterator[Path]:
    """Folders of runs, in the order of their paths."""
    for place, folders, files in os.walk(folder):
        if any(mark in files or mark in folders for mark in MARKS):
            yield Path(place)
        folders[:] = sorted(name for name in folders if name not in NOT_SEARCHED and not name.startswith("."))


def _parsed(path: Path, parse: Any) -> Any:
    """A file's content, None if it does not exist; a file that cannot be read is a DataError of one line."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """As `_parsed`, but the content has to be a mapping; empty if the file does not exist."""
    content = _parsed(path, parse)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DataError(f"{path.name} holds no mapping but {type(content).__name__}")
    return content


def _is_older(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether eval.json is from an earlier run in the folder than run.json, whose run has not finished."""
    return bool(record) and record["status"] != "finished" and (path / "eval.json").stat().st_mtime < record["started"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file of JSON lines; an incomplete last line is skipped, any other broken line with a warning."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            if line.strip() and number < len(lines):
                log.warning("%s: line %d is no JSON and is left out.", path, number)
            continue
        if isinstance(record, dict):
            yield record


def _without_abandoned(records: Iterator[dict[str, Any]], *, one_a_step: bool) -> list[dict[str, Any]]:
    """Records in the order of steps; a step that a resumed run repeats replaces the old one and all after it.

    Args:
        records: each with its step.
        one_a_step: a second record of the same step replaces the first; else a step has several records.
    """
    kept: list[dict[str, Any]] = []
    for record in records:
        while kept and (kept[-1]["step"] > record["step"] or (one_a_step and kept[-1]["step"] == record["step"])):
            kept.pop()
        kept.append(record)
    return kept


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"trainer": {"steps": 3}} -> {"trainer.steps": 3}; an empty mapping stays one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(dotted(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value})
    return flat


def differing_settings(runs: Sequence[Settings]) -> dict[str, tuple[Any, ...]]:
    """Dotted key -> distinct values in the order of the runs, for the settings that differ.

    Left out are the seed, keys whose value is the seed in every run (student.seed), and settings that cannot change a
    number: names, caches, logging, tracking. A key that a run does not have counts as None.
    """
    keys = dict.fromkeys(key for settings in runs for key in settings)
    found = {key: distinct([settings.get(key) for settings in runs]) for key in keys if not _is_trivial(key)}
    return {key: values for key, values in found.items() if len(values) > 1 and not _is_seed(key, runs)}


def distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    """Values without repetition, in the order of first occurrence; 1 and 1.0 are equal, 1 and true are not."""
    return tuple(
        {_identity(value): value for value in reversed(values)}[key] for key in dict.fromkeys(map(_identity, values))
    )


def labels(runs: Sequence[Settings], typed: Collection[str] = ()) -> list[str]:
    """One label a run, equal for the runs of a group and for no others: `alpha=0.5 divergence=jsd`, `xsum_rl alpha=1`.

    All differing settings define the groups; a label names no more of them than it needs: the runs' names if these
    follow the groups, then settings of the command line, then keys with few dots. A label of more than `MANY` settings
    leaves out values that most groups share, except those of `METHOD`: a setting that is not named has that value.

    Args:
        runs: dotted settings of each run.
        typed: dotted keys in the overrides of a run, which are preferred.
    """
    different = list(differing_settings(runs))
    groups = _group_count(runs, different)
    keys = sorted(different, key=lambda key: (key not in typed, key.count("."), different.index(key)))
    needed = [NAME] if _group_count(runs, [NAME]) > 1 and _group_count(runs, [NAME, *different]) == groups else []
    for key in keys:
        if _group_count(runs, [*needed, key]) > _group_count(runs, needed):
            needed.append(key)
    for key in [one for one in needed if one != NAME]:  # a later one can make an earlier one unnecessary
        if _group_count(runs, rest := [one for one in needed if one != key]) == groups:
            needed = rest
    usual = _usual(runs, needed) if len(needed) > MANY else {}
    named = [[key for key in needed if key not in usual or _identity(one.get(key)) != usual[key]] for one in runs]
    return [
        " ".join(_term(key, one.get(key)) for key in keys) or "all runs" for one, keys in zip(runs, named, strict=True)
    ]


def _usual(runs: Sequence[Settings], needed: Sequence[str]) -> dict[str, str]:
    """Setting -> its value in more than half of the groups, if there is one."""
    groups = {tuple(_identity(settings.get(key)) for key in needed) for settings in runs}
    found = {}
    for key, values in zip(needed, zip(*groups, strict=True), strict=True):
        (value, count) = Counter(values).most_common(1)[0]
        if count > len(groups) / 2 and key not in (NAME, *METHOD):
            found[key] = value
    return found


def shown_setting(value: Any) -> str:
    """A setting as on the command line: 0.5, null, [a,b]."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _group_count(runs: Sequence[Settings], keys: Sequence[str]) -> int:
    """Number of groups by the values of these keys."""
    return len({tuple(_identity(settings.get(key)) for key in keys) for settings in runs})


def _term(key: str, value: Any) -> str:
    """`alpha=0.5`; `divergence=jsd` for divergence.name, as on the command line; a name alone for the name."""
    return shown_setting(value) if key == NAME else f"{key.removesuffix('.name')}={shown_setting(value)}"


def _identity(value: Any) -> str:
    """A text that is equal for equal settings."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


def _is_trivial(key: str) -> bool:
    """Whether a setting cannot change a number, or is the seed itself."""
    parts = key.split(".")
    return key in (SEED, NAME) or parts[-1] in TRIVIAL or parts[0] in TRIVIAL_PARTS


def _is_seed(key: str, runs: Sequence[Settings]) -> bool:
    """Whether a setting's value is the seed in every run."""
    return key.endswith(f".{SEED}") and all(settings.get(key) in (None, settings.get(SEED)) for settings in runs)
