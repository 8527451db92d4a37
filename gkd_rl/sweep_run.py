"""One run of a sweep: its share of the machine's threads, what it did before the sweep broke, and its failure.

Nothing here imports torch. A run that fails is noted in its folder and tells the sweeper nothing, so that the others
go on; `sweep_folder.py` names it at the end.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from gkd_rl.errors import ConfigError, GkdRlError
from gkd_rl.launched import is_main_process, processes

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
