"""Which settings tell runs apart, and the words a group of runs is called by.

Runs are of one group when all their settings agree but the seed, what follows it, and what cannot change a number.

Run folders, read back: what was asked for, how it went, what came out. Whatever reads runs reads them through this.

A run is finished when its eval.json is there. Otherwise its run.json tells whether its process still runs; if not, the
run crashed, with the error where there was time to write one. Files of other runs or revisions may lack any of these.
Tables over many runs are in `run_tables.py`, what tells runs apart in `run_groups.py`.
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

from gkd_rl.errors import DataError
from gkd_rl.outputs.run_record import RECORD, is_alive

SEED = "seed"
NAME = "name"
METHOD = ("alpha", "lmbda", "divergence.name", "divergence.beta", "divergence.skew")  # what labels never leave out
MANY = 4  # settings that a label names before it leaves out the usual ones
TRIVIAL = ("cache_dir", "save_model", "threads", "notice", "log_every", "samples_per_log", "memory_gib")
TRIVIAL_PARTS = ("tracking", "hydra")
Settings = Mapping[str, Any]


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"trainer": {"steps": 3}} -> {"trainer.steps": 3}; an empty mapping stays one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(dotted(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value})
    return flat


def differing_settings(runs: Sequence[Settings]) -> dict[str, tuple[Any, ...]]:
    """Dotted key -> distinct values in the order of the runs, for the settings that differ.

    Left out are the seed, keys that are the seed in every run (student.seed), and what cannot change a number: names,
    caches, logging, tracking. A key that a run does not have counts as None.
    """
    keys = dict.fromkeys(key for settings in runs for key in settings)
    found = {key: distinct([settings.get(key) for settings in runs]) for key in keys if not _is_trivial(key)}
    return {key: values for key, values in found.items() if len(values) > 1 and not _is_seed(key, runs)}


def distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    """Values without repetition, in the order of their first places; 1 and 1.0 are one, 1 and true are two."""
    return tuple(
        {_identity(value): value for value in reversed(values)}[key] for key in dict.fromkeys(map(_identity, values))
    )


def labels(runs: Sequence[Settings], typed: Collection[str] = ()) -> list[str]:
    """One label a run, equal for the runs of a group and for no others: `alpha=0.5 divergence=jsd`, `xsum_rl alpha=1`.

    All differing settings tell the groups apart; a label says only what is needed for it: the runs' names where these
    follow the groups, then settings that the user typed, then the shallow ones. Of more than `MANY` it leaves out what
    most groups share, but for the method's own: to say nothing of a setting means that one.

    Args:
        runs: dotted settings of each run.
        typed: dotted keys that stand in the overrides of a run, which are preferred.
    """
    different = list(differing_settings(runs))
    wanted = _parts(runs, different)
    keys = sorted(different, key=lambda key: (key not in typed, key.count("."), different.index(key)))
    needed = [NAME] if _parts(runs, [NAME]) > 1 and _parts(runs, [NAME, *different]) == wanted else []
    for key in keys:
        if _parts(runs, [*needed, key]) > _parts(runs, needed):
            needed.append(key)
    for key in [one for one in needed if one != NAME]:  # a later one can make an earlier one needless
        if _parts(runs, rest := [one for one in needed if one != key]) == wanted:
            needed = rest
    usual = _usual(runs, needed) if len(needed) > MANY else {}
    said = [[key for key in needed if key not in usual or _identity(one.get(key)) != usual[key]] for one in runs]
    return [
        " ".join(_word(key, one.get(key)) for key in keys) or "all runs" for one, keys in zip(runs, said, strict=True)
    ]


def _usual(runs: Sequence[Settings], needed: Sequence[str]) -> dict[str, str]:
    """Setting -> its value in more than half of the groups, where there is one."""
    groups = {tuple(_identity(settings.get(key)) for key in needed) for settings in runs}
    found = {}
    for key, values in zip(needed, zip(*groups, strict=True), strict=True):
        (value, count) = Counter(values).most_common(1)[0]
        if count > len(groups) / 2 and key not in (NAME, *METHOD):
            found[key] = value
    return found


def shown_setting(value: Any) -> str:
    """A setting as it is typed: 0.5, null, [a,b]."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def _parts(runs: Sequence[Settings], keys: Sequence[str]) -> int:
    """How many groups these keys tell apart."""
    return len({tuple(_identity(settings.get(key)) for key in keys) for settings in runs})


def _word(key: str, value: Any) -> str:
    """`alpha=0.5`; `divergence=jsd` for divergence.name, as it is chosen on the command line; a name is itself."""
    return shown_setting(value) if key == NAME else f"{key.removesuffix('.name')}={shown_setting(value)}"


def _identity(value: Any) -> str:
    """Equal for equal settings."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


def _is_trivial(key: str) -> bool:
    """Whether a setting cannot change a number, or is the seed itself."""
    parts = key.split(".")
    return key in (SEED, NAME) or parts[-1] in TRIVIAL or parts[0] in TRIVIAL_PARTS


def _is_seed(key: str, runs: Sequence[Settings]) -> bool:
    """Whether a setting follows the seed."""
    return key.endswith(f".{SEED}") and all(settings.get(key) in (None, settings.get(SEED)) for settings in runs)


MARKS = ("eval.json", RECORD, ".hydra")  # a folder with one of these is a run's
PASSED_OVER = ("wandb", "model", "checkpoints")  # folders of a run that hold no runs
COSTS = {
    "student_tokens": ("tokens/student_trained",),
    "teacher_tokens": ("tokens/teacher_generated", "tokens/teacher_scored"),
}
AXES = ("steps", *COSTS, "seconds")

log = logging.getLogger(__name__)


class Status(Enum):
    """How a run stands."""

    finished = "finished"
    running = "running"
    crashed = "crashed"
    unreadable = "unreadable"


@dataclass(frozen=True)
class RunFolder:
    """One run.

    Attributes:
        path: its folder.
        status: how it stands.
        error: one line that says why it is crashed or unreadable.
        config: the resolved configuration, empty where there is none.
        overrides: what was typed, `key=value` each.
        settings: `config` with dotted keys.
        results: eval.json of a finished run, else None.
        group: label of the runs that differ in nothing but the seed; it depends on the runs read with it.
        seed: None where there is no configuration.
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
        DataError: a folder is not there.
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
    """The runs with the labels of the groups that they form together; those without a configuration are in none."""
    known = [run for run in runs if run.settings]
    typed = {override.lstrip("+~").partition("=")[0] for run in known for override in run.overrides}
    keys = [*typed, *(f"{key}.name" for key in typed)]
    named = dict(zip([run.path for run in known], labels([run.settings for run in known], keys), strict=True))
    return [replace(run, group=named.get(run.path, "")) for run in runs]


def differing(runs: Sequence[RunFolder]) -> dict[str, tuple[Any, ...]]:
    """Dotted key -> its distinct values, for the settings that differ between the runs; no seeds, no trivial ones."""
    return differing_settings([run.settings for run in runs if run.settings])


def read_run(path: Path) -> RunFolder:
    """One run folder; its group is still empty."""
    try:
        config = _mapping(path / "config.yaml", yaml.safe_load)
        overrides = _parsed(path / ".hydra" / "overrides.yaml", yaml.safe_load) or []
        run = RunFolder(path, Status.unreadable, None, config, tuple(map(str, overrides)), dotted(config))
        run = replace(run, seed=config.get("seed"))
        record = _mapping(path / RECORD, json.loads)
        if (path / "eval.json").exists() and not _is_older(path, record):
            results = _mapping(path / "eval.json", json.loads)
            if not config:
                return replace(run, error="there is no config.yaml beside eval.json")
            return replace(run, status=Status.finished, results=results)
        alive = bool(record) and is_alive(record, path)
    except (DataError, KeyError) as error:
        return RunFolder(
            path, Status.unreadable, f"{RECORD} lacks {error}" if isinstance(error, KeyError) else str(error)
        )
    if alive:
        return replace(run, status=Status.running)
    silent = "it ended without a word (killed, or the machine went down)" if record else f"no eval.json and no {RECORD}"
    return replace(run, status=Status.crashed, error=record.get("error") or silent)


def curves(run: RunFolder) -> pd.DataFrame:
    """metrics.jsonl, one row a step: `step`, every metric, and what was spent up to it on each of `AXES`.

    The words nan and inf are numbers again; a metric that a step lacks is NaN. Where a resumed run went back to an
    earlier step, its steps replace the old ones from there on. Seconds include the teacher's samples, written before.
    """
    rows = _without_abandoned(_lines(run.path / "metrics.jsonl"), again=True)
    raw = pd.DataFrame(rows if rows else {"step": []})
    frame = pd.DataFrame({name: pd.to_numeric(raw[name], errors="coerce") for name in raw})
    before = (run.results or {}).get("cost", {}).get("time/teacher_samples", 0.0)
    spent = {axis: _sums(frame, names) for axis, names in COSTS.items()}
    seconds = before + _sums(frame, [str(name) for name in frame if str(name).startswith("time/")])
    return frame.assign(steps=frame["step"], **spent, seconds=seconds)


def samples(run: RunFolder) -> list[dict[str, Any]]:
    """Lines of samples.jsonl: step, prompt, completion, reference, source, reward, rewards (what a run has of them)."""
    rows = _without_abandoned(_lines(run.path / "samples.jsonl"), again=False)
    return list({(row["step"], row.get("prompt")): row for row in rows}.values())


def predictions(run: RunFolder) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl: the reference and every model's completion, by row of the held-out split."""
    return list(_lines(run.path / "predictions.jsonl"))


def _sums(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """What had been spent on all of `names` after each step; a column that is not there is 0."""
    columns = [frame[name].fillna(0.0).to_numpy(dtype=float) for name in names if name in frame]
    return np.cumsum(np.sum(columns, axis=0)) if columns else np.zeros(len(frame))


def _run_paths(folder: Path) -> Iterator[Path]:
    """Folders of runs, in the order of their paths."""
    for place, folders, files in os.walk(folder):
        if any(mark in files or mark in folders for mark in MARKS):
            yield Path(place)
        folders[:] = sorted(name for name in folders if name not in PASSED_OVER and not name.startswith("."))


def _parsed(path: Path, parse: Any) -> Any:
    """A file's content, None where there is no file; what cannot be read is a DataError of one line."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """As `_parsed`, but the content has to be a mapping; empty where there is no file."""
    content = _parsed(path, parse)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DataError(f"{path.name} holds no mapping but {type(content).__name__}")
    return content


def _is_older(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether eval.json is of an earlier run in the same folder than the run.json of one that has not finished."""
    return bool(record) and record["status"] != "finished" and (path / "eval.json").stat().st_mtime < record["started"]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file of JSON lines; the last may be half-written, a broken one before it gets a warning."""
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


def _without_abandoned(records: Iterator[dict[str, Any]], again: bool) -> list[dict[str, Any]]:
    """Records by step; those that a resumed run came to again, and all after them, give way to its own.

    Args:
        records: each with its step.
        again: the same step twice in a row is a repetition too, not a second record of one step.
    """
    kept: list[dict[str, Any]] = []
    for record in records:
        while kept and (kept[-1]["step"] > record["step"] or (again and kept[-1]["step"] == record["step"])):
            kept.pop()
        kept.append(record)
    return kept
