"""What is wrong with a sweep as a whole: plugins that are not installed, directions, the ends of what is searched.

One run of a sweep: its share of the machine's threads, what it did before the sweep broke, and its failure.

Nothing here imports torch. A run that fails is noted in its folder and tells the sweeper nothing, so that the others
go on; `cli/sweeps.py` names it at the end.

A sweep as a folder: what it was started with, finishing it after it broke, and its failed runs by name.

`sweep.json` lies in the folder from the first second. `sweep.resume=FOLDER` reads it back, so that the command needs
nothing else; which runs are finished is for each run to say (`cli/sweeps.py`).
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from gkd_rl.config import Config
from gkd_rl.config.launch import is_main_process, processes
from gkd_rl.errors import ConfigError, GkdRlError
from gkd_rl.outputs.json_files import write_json


def missing_plugins(hydra: DictConfig) -> Iterator[str]:
    """Launchers and sweepers of packages that are not installed."""
    for part in ("launcher", "sweeper"):
        package, _, rest = str(hydra[part]._target_).partition(".")
        plugin = rest.partition(".")[0]
        if package == "hydra_plugins" and not (find_spec(package) and find_spec(f"{package}.{plugin}")):
            extra = plugin.removeprefix("hydra_").rpartition("_")[0]
            chosen = hydra.runtime.choices[f"hydra/{part}"]
            yield f'hydra/{part}={chosen} needs {plugin}, which is not installed: pip install "gkd_rl[{extra}]".'


def directions(hydra: DictConfig, configs: list[Config]) -> Iterator[str]:
    """A sweeper that searches takes one direction for each objective."""
    if not configs or "direction" not in hydra.sweeper:
        return
    given, names = hydra.sweeper.direction, configs[0].sweep.objectives
    count = len(given) if isinstance(given, ListConfig) else 1
    if count != len(names):
        directions = ",".join(["maximize"] * len(names))
        yield (
            f"hydra.sweeper.direction={given} is {count} of them for {len(names)} objectives (sweep.objectives="
            f"{names}): give each its own, e.g. 'hydra.sweeper.direction=[{directions}]'."
        )


def ends(swept: list[Override]) -> list[list[str]]:
    """Two jobs of a search: the first or lowest value of everything that is searched, and the last or highest.

    Args:
        swept: of the sweeper's parameters and of the command line; a later one wins.
    """
    found: dict[str, tuple[str, str]] = {}
    for one in swept:
        value = one.value()
        if isinstance(value, IntervalSweep):
            low, high = str(value.start), str(value.end)
        elif one.is_sweep_override():
            values = list(one.sweep_string_iterator())
            low, high = values[0], values[-1]
        else:
            low = high = one.get_value_element_as_str()
        found[one.get_key_element()] = (low, high)
    return [[f"{key}={pair[end]}" for key, pair in found.items()] for end in (0, 1)]


log = logging.getLogger(__name__)
FAILURE = "error.txt"  # its first line says what went wrong
RESULT = "eval.json"  # the last file that a run writes
PLACE = ("cache_dir", "threads")  # names of settings that say where and how a run is started, and not what it does


def share_threads(settings: DictConfig, hydra: HydraConf) -> None:
    """Divide `scale.threads` by the runs that go on at once on this machine, or cut it to the processors of a task.

    A number of threads that was typed is each run's own, and is left alone; so is 0, torch's own choice: joblib and Ray
    tell their workers how many OpenMP threads each may take.
    """
    at_once, processors = (_first(hydra, keys) for keys in (("n_jobs",), ("cpus_per_task", "ray.remote.num_cpus")))
    if at_once is not None and at_once < 0:  # joblib counts back from all processors
        at_once = max(1, (os.cpu_count() or 1) + 1 + at_once)
    typed = any(text.startswith("scale.threads=") for text in hydra.overrides.task)
    if settings.scale.threads > 0 and not typed:
        shared = max(1, settings.scale.threads // (at_once or 1))
        settings.scale.threads = min(shared, processors or shared)


def _first(hydra: HydraConf, keys: tuple[str, ...]) -> int | None:
    """The first of the launcher's settings that it has."""
    values = (OmegaConf.select(cast(DictConfig, hydra), f"launcher.{key}") for key in keys)
    return next((value for value in values if value is not None), None)


@contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Write what an error was to `folder`, and go on; of several processes, end all."""
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, GkdRlError) else f"{type(error).__name__}: {error}"
        line = " ".join(said.split())
        (folder / FAILURE).write_text(f"{line}\n\n{traceback.format_exc()}", encoding="utf-8")
        log.error("This run failed, the others go on: %s (%s)", line, folder / FAILURE)
        if processes() > 1:
            raise


def numbers_from_before(settings: DictConfig, folder: Path) -> dict[str, float] | None:
    """What a run found before its sweep broke; None where it was not finished.

    Its folder is then empty, or has the checkpoints that it goes on from.

    Args:
        settings: of the run now.
        folder: of the run in the sweep that is resumed.

    Raises:
        ConfigError: the finished run there is one of other settings.
    """
    if not (folder / RESULT).is_file():
        if is_main_process() and not (folder / "checkpoints").is_dir():
            _clear(folder)
        return None
    others = different_settings(settings, folder / "config.yaml", PLACE)
    if others:
        raise ConfigError([
            f"{folder} holds a finished run of other settings ({', '.join(others[:3])}): sweep.resume finishes a sweep "
            "as it began. "
            "Start a new one, or move that folder away to run it again."
        ])  # fmt: skip
    log.info("Finished before, not run again: %s", folder)
    return stored_numbers(folder / RESULT)


def different_settings(settings: DictConfig, file: Path, passed_over: tuple[str, ...]) -> list[str]:
    """Which settings of a run are not those in its `file`, each with both values.

    Args:
        settings: of the run now.
        file: config.yaml of the run before.
        passed_over: last names of keys that may differ.
    """
    there = _flat(OmegaConf.to_container(OmegaConf.load(file)))
    here = _flat(OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(settings, resolve=True))))
    others = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return [
        f"{key} is {there.get(key)} there and {here.get(key)} here"
        for key in others
        if key.rpartition(".")[2] not in passed_over
    ]


def stored_numbers(file: Path) -> dict[str, float]:
    """`objective` and the metrics of the student after training, as the run returned them."""
    results = json.loads(file.read_text(encoding="utf-8"))
    means = {name: float(estimate["mean"]) for name, estimate in results["student after"].items()}
    return {"objective": float(results["objective"]), **means}


def chosen(numbers: Mapping[str, float], objectives: list[str]) -> float | list[float]:
    """The number that a sweeper searches for, or the list of them where there are several.

    Raises:
        ConfigError: the run measured no such number.
    """
    unknown = [name for name in objectives if name not in numbers]
    if unknown:
        raise ConfigError([
            f"sweep.objectives={unknown} was not measured: it takes names of {', '.join(sorted(numbers))}."
        ])  # fmt: skip
    values = [numbers[name] for name in objectives]
    return values if len(values) > 1 else values[0]


def _clear(folder: Path) -> None:
    """Remove what an unfinished run left, but for Hydra's own files and the log, which Hydra holds open."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == ".hydra" or path.suffix == ".log":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a plain container."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    rows: dict[str, Any] = {}
    for name, child in node.items():
        rows |= _flat(child, f"{prefix}.{name}" if prefix else str(name))
    return rows


RECORD = "sweep.json"
RESUME = "sweep.resume="


class SweepRecord(Callback):
    """Hydra's callback at the start of a sweep: keeps the overrides in its folder.

    Attributes:
        folder: of the sweep that this process runs, None before it starts.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Write the record, and say how a broken sweep is finished."""
        folder = SweepRecord.folder = Path(config.hydra.sweep.dir)
        task, hydra = config.hydra.overrides.task, config.hydra.overrides.hydra
        write_json(folder / RECORD, {"task": _kept(task), "hydra": _kept(hydra)})
        log.info("Sweep folder: %s", folder)
        log.info("If the sweep breaks, this finishes it: %s", resuming(folder))


def _kept(overrides: Any) -> list[str]:
    """Overrides without those that a resumed sweep has of its own."""
    return [text for text in map(str, overrides) if _key(text) not in ("sweep.resume", "hydra.sweep.dir", "hydra.mode")]


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")


def resuming(folder: Path) -> str:
    """The command that finishes a sweep."""
    return f"python -m gkd_rl.run {shlex.quote(f'{RESUME}{folder}')}"


def with_former_overrides(arguments: list[str]) -> list[str]:
    """The command line with all that the sweep of `sweep.resume` was started with; any other is left as it is.

    Settings of Hydra may be typed anew: a sweep can be finished by another launcher.

    Raises:
        ConfigError: the folder is no sweep's, or a setting of the runs is typed that the sweep did not have.
    """
    asked = [text for text in arguments if text.startswith(RESUME) and text not in (RESUME, f"{RESUME}null")]
    if not asked:
        return arguments
    folder = Path(asked[-1].removeprefix(RESUME).strip("'\""))
    record = folder / RECORD
    if not record.is_file():
        raise ConfigError([
            f"{asked[-1]}: there is no {RECORD} in that folder: sweep.resume takes the folder of a sweep, "
            "multirun/NAME/TIME."
        ])  # fmt: skip
    former = json.loads(record.read_text(encoding="utf-8"))
    typed = [text for text in arguments if "=" in text and not text.startswith(("-", RESUME))]
    hydra = [text for text in typed if _key(text).startswith(("hydra.", "hydra/"))]
    new = [text for text in typed if text not in hydra and text not in former["task"]]
    if new:
        raise ConfigError([
            f"{' '.join(new)} beside sweep.resume: a sweep is finished with the settings that it began with "
            f"({' '.join(former['task'])}). Leave it out, or start a new sweep."
        ])  # fmt: skip
    known = {_key(text) for text in hydra}
    rest = [text for text in arguments if text not in typed and text not in ("-m", "--multirun")]
    kept = [text for text in former["hydra"] if _key(text) not in known]
    return ["-m", *former["task"], *kept, *hydra, *rest, f"hydra.sweep.dir={folder}"]


@contextmanager
def naming_failed_runs() -> Iterator[None]:
    """Name the runs of a sweep that failed once it is over, however it ended.

    Raises:
        SystemExit: with status 1, if a run failed.
    """
    try:
        yield
    except Exception as error:
        failed, finished = _failed_and_finished()
        _name(failed, len(failed) + len(finished))
        if failed and not finished:  # the error is what the sweeper makes of a sweep without a result
            raise SystemExit(1) from error
        raise
    failed, finished = _failed_and_finished()
    _name(failed, len(failed) + len(finished))
    if failed:
        raise SystemExit(1)


def _failed_and_finished() -> tuple[list[Path], list[Path]]:
    """Folders of the runs of this process's sweep that failed, and of those that did not; none if it has no sweep."""
    if SweepRecord.folder is None or not is_main_process():
        return [], []
    runs = [path.parent.parent for path in SweepRecord.folder.glob("*/.hydra/overrides.yaml")]
    runs.sort(key=lambda path: (len(path.name), path.name))  # 2 before 10
    failed = [path for path in runs if (path / FAILURE).exists() or not (path / RESULT).exists()]
    return failed, [path for path in runs if path not in failed]


def _name(failed: list[Path], count: int) -> None:
    """One line on stderr for each of the `failed` of `count` runs."""
    if not failed:
        return
    lines = [f"{len(failed)} of {count} runs failed:"]
    lines += [f"  {path}: {' '.join(_overrides(path))}: {_said(path)}" for path in failed]
    lines += [f"To run them again: {resuming(failed[0].parent)}"]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _overrides(run: Path) -> list[str]:
    """What made this run differ."""
    return _kept(OmegaConf.load(run / ".hydra" / "overrides.yaml"))


def _said(run: Path) -> str:
    """The error in one line."""
    note = run / FAILURE
    if note.exists():
        return note.read_text(encoding="utf-8").partition("\n")[0]
    return "it ended without a word (killed, or out of memory?)"
