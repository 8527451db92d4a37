"""Sweeps: checks before the first run, one run of a sweep, and the sweep's folder.

A run that fails does not end its sweep: the error is written to the run's folder, the sweeper receives no objective,
and the failed runs are listed at the end. `sweep.json` holds the overrides of the sweep; `sweep.resume=FOLDER` reads it
and runs what is missing. Nothing here imports torch.
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

from gkd_rl.cli.resume import CHECKPOINTS, RESULTS_FILE, SETTINGS_FILE, different_settings
from gkd_rl.config import Config
from gkd_rl.config.launch import is_main_process, processes
from gkd_rl.config.moved_targets import with_current_targets
from gkd_rl.errors import ConfigError, GkdRlError
from gkd_rl.outputs.json_files import write_json

log = logging.getLogger(__name__)

SWEEP_RESUME = "sweep.resume="
SWEEP_FILE = "sweep.json"  # in the sweep's folder
ERROR_FILE = "error.txt"  # in the folder of a failed run; the first line is the error
_RAY_CPUS = "ray.remote.num_cpus"

# --- before the first run --------------------------------------------------------------------------------------------


def missing_plugins(hydra: DictConfig) -> Iterator[str]:
    """One message for each launcher or sweeper whose package is not installed."""
    for part in ("launcher", "sweeper"):
        package, _, rest = str(hydra[part]._target_).partition(".")
        plugin = rest.partition(".")[0]
        if package == "hydra_plugins" and not (find_spec(package) and find_spec(f"{package}.{plugin}")):
            extra = plugin.removeprefix("hydra_").rpartition("_")[0]
            choice = hydra.runtime.choices[f"hydra/{part}"]
            yield f'hydra/{part}={choice} needs {plugin}, which is not installed: pip install "gkd_rl[{extra}]".'


def wrong_directions(hydra: DictConfig, configs: list[Config]) -> Iterator[str]:
    """A message if the sweeper's directions are not one for each objective."""
    if not configs or "direction" not in hydra.sweeper:
        return
    given, names = hydra.sweeper.direction, configs[0].sweep.objectives
    count = len(given) if isinstance(given, ListConfig) else 1
    if count != len(names):
        directions = ",".join(["maximize"] * len(names))
        yield (
            f"hydra.sweeper.direction={given} has {count} directions for {len(names)} objectives (sweep.objectives="
            f"{names}): give one for each, e.g. 'hydra.sweeper.direction=[{directions}]'."
        )


def search_bounds(swept: list[Override]) -> list[list[str]]:
    """Two jobs at the bounds of a search: every searched value at its lowest or first, and at its highest or last.

    Args:
        swept: overrides of the sweeper's parameters and of the command line; a later one replaces an earlier one.
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


# --- one run ---------------------------------------------------------------------------------------------------------


def share_threads(settings: DictConfig, hydra: HydraConf) -> None:
    """Divide `scale.threads` by the number of parallel runs on this machine, at most the processors of a task.

    A number of threads that was typed applies to each run and is kept. So is 0, torch's own choice: joblib and Ray set
    the number of OpenMP threads of their workers.
    """
    parallel, processors = (_launcher_value(hydra, keys) for keys in (("n_jobs",), ("cpus_per_task", _RAY_CPUS)))
    if parallel is not None and parallel < 0:  # joblib: -1 is all processors, -2 all but one
        parallel = max(1, (os.cpu_count() or 1) + 1 + parallel)
    typed = any(text.startswith("scale.threads=") for text in hydra.overrides.task)
    if settings.scale.threads > 0 and not typed:
        shared = max(1, settings.scale.threads // (parallel or 1))
        settings.scale.threads = min(shared, processors or shared)


def _launcher_value(hydra: HydraConf, keys: tuple[str, ...]) -> int | None:
    """The first of the launcher's settings that exists."""
    values = (OmegaConf.select(cast(DictConfig, hydra), f"launcher.{key}") for key in keys)
    return next((value for value in values if value is not None), None)


@contextmanager
def recording_failure(folder: Path) -> Iterator[None]:
    """Write an error in the block to `folder` and suppress it; with several processes, raise it in all of them."""
    (folder / ERROR_FILE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = str(error) if isinstance(error, GkdRlError) else f"{type(error).__name__}: {error}"
        line = " ".join(text.split())
        (folder / ERROR_FILE).write_text(f"{line}\n\n{traceback.format_exc()}", encoding="utf-8")
        log.error("This run failed, the others continue: %s (%s)", line, folder / ERROR_FILE)
        if processes() > 1:
            raise


def finished_numbers(settings: DictConfig, folder: Path) -> dict[str, float] | None:
    """Results of a run that finished before its sweep was interrupted; None if it did not.

    The folder of an unfinished run without checkpoints is emptied.

    Args:
        settings: of the run now.
        folder: of the run in the sweep that is resumed.

    Raises:
        ConfigError: the finished run there has other settings.
    """
    if not (folder / RESULTS_FILE).is_file():
        if is_main_process() and not (folder / CHECKPOINTS).is_dir():
            _clear(folder)
        return None
    others = different_settings(settings, folder / SETTINGS_FILE)
    if others:
        raise ConfigError([
            f"{folder} holds a finished run of other settings ({', '.join(others[:3])}): sweep.resume continues a "
            "sweep with the settings that it was started with. "
            "Start a new one, or move that folder away to run it again."
        ])  # fmt: skip
    log.info("Finished before, not run again: %s", folder)
    return _stored_numbers(folder / RESULTS_FILE)


def _stored_numbers(file: Path) -> dict[str, float]:
    """`objective` and the metrics of the student after training, as the run returned them."""
    results = json.loads(file.read_text(encoding="utf-8"))
    means = {name: float(estimate["mean"]) for name, estimate in results["student after"].items()}
    return {"objective": float(results["objective"]), **means}


def _clear(folder: Path) -> None:
    """Remove the files of an unfinished run except Hydra's own and the log, which Hydra holds open."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == ".hydra" or path.suffix == ".log":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def objective_values(numbers: Mapping[str, float], objectives: list[str]) -> float | list[float]:
    """The number that a sweeper optimises, or the list of them for several objectives.

    Raises:
        ConfigError: the run did not measure one of them.
    """
    unknown = [name for name in objectives if name not in numbers]
    if unknown:
        raise ConfigError([
            f"sweep.objectives={unknown} was not measured: it takes names of {', '.join(sorted(numbers))}."
        ])  # fmt: skip
    values = [numbers[name] for name in objectives]
    return values if len(values) > 1 else values[0]


# --- the sweep's folder ----------------------------------------------------------------------------------------------


class SweepRecord(Callback):
    """Hydra's callback at the start of a sweep: writes the overrides to sweep.json.

    Attributes:
        folder: of the sweep that this process runs, None before it starts.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Write the record, and print the command that resumes the sweep."""
        folder = SweepRecord.folder = Path(config.hydra.sweep.dir)
        task, hydra = config.hydra.overrides.task, config.hydra.overrides.hydra
        write_json(folder / SWEEP_FILE, {"task": _sweep_overrides(task), "hydra": _sweep_overrides(hydra)})
        log.info("Sweep folder: %s", folder)
        log.info("If the sweep is interrupted, this resumes it: %s", sweep_resume_command(folder))


def sweep_resume_command(folder: Path) -> str:
    """The command that resumes the sweep in `folder`."""
    return f"python -m gkd_rl.run {shlex.quote(f'{SWEEP_RESUME}{folder}')}"


def with_resumed_sweep(arguments: list[str]) -> list[str]:
    """The command line with the overrides and the folder of the sweep that `sweep.resume` names.

    Settings of Hydra may be typed anew: a sweep can be resumed with another launcher.

    Args:
        arguments: the command line; returned unchanged if it resumes no sweep.

    Raises:
        ConfigError: the folder holds no sweep, or a typed setting is not one of that sweep's.
    """
    asked = [text for text in arguments if text.startswith(SWEEP_RESUME)]
    asked = [text for text in asked if text not in (SWEEP_RESUME, f"{SWEEP_RESUME}null")]
    if not asked:
        return arguments
    folder = Path(asked[-1].removeprefix(SWEEP_RESUME).strip("'\""))
    record = folder / SWEEP_FILE
    if not record.is_file():
        raise ConfigError([
            f"{asked[-1]}: there is no {SWEEP_FILE} in that folder: sweep.resume takes the folder of a sweep, "
            "multirun/NAME/TIME."
        ])  # fmt: skip
    stored = json.loads(with_current_targets(record.read_text(encoding="utf-8")))
    arguments = [with_current_targets(text) for text in arguments]
    typed = [text for text in arguments if "=" in text and not text.startswith(("-", SWEEP_RESUME))]
    hydra = [text for text in typed if _key(text).startswith(("hydra.", "hydra/"))]
    new = [text for text in typed if text not in hydra and text not in stored["task"]]
    if new:
        raise ConfigError([
            f"{' '.join(new)} beside sweep.resume: a sweep is resumed with the settings that it was started with "
            f"({' '.join(stored['task'])}). Leave it out, or start a new sweep."
        ])  # fmt: skip
    replaced = {_key(text) for text in hydra}
    rest = [text for text in arguments if text not in typed and text not in ("-m", "--multirun")]
    kept = [text for text in stored["hydra"] if _key(text) not in replaced]
    return ["-m", *stored["task"], *kept, *hydra, *rest, f"hydra.sweep.dir={folder}"]


def _sweep_overrides(overrides: Any) -> list[str]:
    """Overrides without those that every start of a sweep sets itself."""
    return [text for text in map(str, overrides) if _key(text) not in ("sweep.resume", "hydra.sweep.dir", "hydra.mode")]


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")


@contextmanager
def listing_failed_runs() -> Iterator[None]:
    """Print the failed runs of a sweep once it has ended, also if an error ended it.

    Raises:
        SystemExit: with status 1, if a run failed.
    """
    try:
        yield
    except Exception as error:
        failed, finished = _failed_and_finished()
        _print_failed(failed, len(failed) + len(finished))
        if failed and not finished:  # the error is then that of a sweeper without any objective
            raise SystemExit(1) from error
        raise
    failed, finished = _failed_and_finished()
    _print_failed(failed, len(failed) + len(finished))
    if failed:
        raise SystemExit(1)


def _failed_and_finished() -> tuple[list[Path], list[Path]]:
    """Folders of the failed and of the finished runs of this process's sweep; none without a sweep."""
    if SweepRecord.folder is None or not is_main_process():
        return [], []
    runs = [path.parent.parent for path in SweepRecord.folder.glob("*/.hydra/overrides.yaml")]
    runs.sort(key=lambda path: (len(path.name), path.name))  # 2 before 10
    failed = [path for path in runs if (path / ERROR_FILE).exists() or not (path / RESULTS_FILE).exists()]
    return failed, [path for path in runs if path not in failed]


def _print_failed(failed: list[Path], count: int) -> None:
    """One line on stderr for each of the `failed` of `count` runs: folder, overrides, error."""
    if not failed:
        return
    lines = [f"{len(failed)} of {count} runs failed:"]
    for path in failed:
        overrides = _sweep_overrides(OmegaConf.load(path / ".hydra" / "overrides.yaml"))
        lines.append(f"  {path}: {' '.join(overrides)}: {_first_error_line(path)}")
    lines.append(f"To run them again: {sweep_resume_command(failed[0].parent)}")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _first_error_line(run: Path) -> str:
    """The error of a failed run in one line."""
    file = run / ERROR_FILE
    if file.exists():
        return file.read_text(encoding="utf-8").partition("\n")[0]
    return "it ended without an error message (killed, or out of memory?)"
