"""`resume=FOLDER` and `resume=auto`: the command line of an interrupted run, and checks before it continues.

FOLDER needs no other setting: `command.json` there holds the overrides that the run was started with. It is written
once, before anything else; Hydra's own files are rewritten by every start, and a kill can truncate them. `auto` is for
a command that a scheduler repeats: it resumes the last unfinished run of the same settings, or starts a new one.
Nothing here imports torch.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gkd_rl.config.moved_targets import with_current_targets
from gkd_rl.errors import ConfigError
from gkd_rl.outputs.json_files import read_json, write_json
from gkd_rl.outputs.run_record import RECORD, is_alive

log = logging.getLogger(__name__)

RESUME, AUTO = "resume=", "auto"
CHECKPOINTS, COMMAND_FILE, SETTINGS_FILE = "checkpoints", "command.json", "config.yaml"  # in a run's folder
RESULTS_FILE = "eval.json"  # the last file that a run writes
_NOT_STORED = ("hydra.run.", "hydra.sweep", "hydra/sweeper", "hydra/launcher", "hydra.launcher", "hydra.mode")
_NOT_COMPARED = ("cache_dir", "threads")  # last parts of keys that may differ: where and how a run is executed

# --- the command line ------------------------------------------------------------------------------------------------


def resume_command(folder: Path) -> str:
    """The command that resumes the run in `folder`."""
    return f"python -m gkd_rl.run {shlex.quote(f'{RESUME}{folder}')}"


def write_command(folder: Path, task: Iterable[str], hydra: Iterable[str]) -> None:
    """Store the overrides that a run is started with.

    Args:
        folder: of the run.
        task: overrides of the run's settings.
        hydra: overrides of Hydra's own settings.
    """
    write_json(folder / COMMAND_FILE, {"task": list(task), "hydra": list(hydra)})


def with_resumed_run(config_dir: Path, arguments: list[str]) -> list[str]:
    """The command line with the overrides and the folder of the run that `resume` names.

    Args:
        config_dir: the absolute folder of `config.yaml`.
        arguments: the command line; returned unchanged if it resumes no run.

    Raises:
        ConfigError: the folder holds no run that can be resumed, or a typed setting is not one of that run's.
    """
    asked = [text for text in arguments if text.startswith(RESUME)]
    value = asked[-1].removeprefix(RESUME).strip("'\"") if asked else "null"
    if value in ("", "null"):
        return arguments
    if "-m" in arguments or "--multirun" in arguments:
        raise ConfigError([f"{asked[-1]} with -m: sweep.resume=FOLDER resumes a sweep and each of its runs."])
    if value == AUTO:
        others = [text for text in arguments if text not in asked]
        folder = _last_unfinished(config_dir, others)
        return others if folder is None else [*others, f"{RESUME}'{folder}'", _run_dir(folder)]
    folder = Path(value)
    _refuse_unless_interrupted(folder, asked[-1])
    stored = _stored_overrides(folder, "task")
    arguments = [with_current_targets(text) for text in arguments]
    typed = [text for text in arguments if "=" in text and not text.startswith(("-", RESUME))]
    new = [text for text in typed if text not in stored and not text.startswith(("hydra.", "hydra/"))]
    if new:
        raise ConfigError([
            f"{' '.join(new)} beside {asked[-1]}: a run is resumed with the settings that it was started with "
            f"({' '.join(stored)}). Leave it out, or start a new run."
        ])  # fmt: skip
    rest = [text for text in arguments if text not in stored]
    return [*stored, *_stored_overrides(folder, "hydra"), *rest, _run_dir(folder)]


def _stored_overrides(folder: Path, kind: str) -> list[str]:
    """Overrides in command.json without those of a sweep or of one start only; moved targets by their new names."""
    texts: list[str] = read_json(folder / COMMAND_FILE)[kind]
    omitted = (RESUME, "sweep=", "sweep.resume=", *_NOT_STORED)
    return [with_current_targets(text) for text in texts if not text.startswith(omitted)]


def _run_dir(folder: Path) -> str:
    return f"hydra.run.dir='{folder}'"


def _last_unfinished(config_dir: Path, arguments: list[str]) -> Path | None:
    """The newest run with checkpoints, no results, no running process and these settings, in the default output folder.

    A command line that does not compose gives None; the check of the command line reports the error.
    """
    overrides = [text for text in arguments if "=" in text and not text.startswith("-")]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            composed = compose("config", overrides, return_hydra_config=True)
            own = Path(composed.hydra.run.dir)
        except Exception as error:
            log.debug("resume=auto: %s", error)
            return None
    OmegaConf.set_struct(composed, False)
    del composed.hydra
    typed = any(text.startswith("hydra.run.dir=") for text in overrides)
    candidates = [own] if typed else sorted(own.parent.glob("*"), reverse=True)  # the names are times
    for folder in candidates:
        unfinished = (folder / CHECKPOINTS).is_dir() and not _is_finished(folder)
        if unfinished and not _is_running(folder) and _has_settings(folder, composed):
            return folder
    return None


def _has_settings(folder: Path, composed: DictConfig) -> bool:
    """The run in `folder` was started with the composed settings."""
    file = folder / SETTINGS_FILE
    return file.is_file() and not different_settings(composed, file)


# --- the state of a run's folder -------------------------------------------------------------------------------------


def _refuse_unless_interrupted(folder: Path, asked: str) -> None:
    """Refuse a folder without a run, with a finished run, or with one that is still running."""
    if not (folder / COMMAND_FILE).is_file():
        raise ConfigError([
            f"{asked}: there is no {COMMAND_FILE} in it: resume takes a run's folder, outputs/NAME/TIME, or auto."
        ])  # fmt: skip
    if _is_finished(folder):
        raise ConfigError(
            [f"{asked}: that run is finished, its results are in {folder / RESULTS_FILE}. Start a new one."]
        )
    if _is_running(folder):
        raise ConfigError([f"{asked}: that run is still running ({folder / RECORD}). Wait for its end, or stop it."])


def _is_finished(folder: Path) -> bool:
    """It has results, and they are not those of an earlier run in the same folder."""
    result, record = folder / RESULTS_FILE, read_json(folder / RECORD)
    return result.is_file() and (
        record.get("status") == "finished" or result.stat().st_mtime >= record.get("started", 0.0)
    )


def _is_running(folder: Path) -> bool:
    """Its run.json names a process that is alive."""
    record = read_json(folder / RECORD)
    return bool(record) and is_alive(record, folder)


def refuse_to_overwrite(folder: Path) -> None:
    """Refuse a new run in a folder with checkpoints, which it would overwrite.

    Raises:
        ConfigError: the folder has checkpoints.
    """
    if (folder / CHECKPOINTS).is_dir():
        raise ConfigError([
            f"{folder} holds the checkpoints of an unfinished run: {resume_command(folder)} resumes it. "
            f"Remove {folder / CHECKPOINTS} to start again, or choose another folder."
        ])  # fmt: skip


# --- comparison of settings ------------------------------------------------------------------------------------------


def refuse_other_settings(settings: DictConfig, folder: Path) -> None:
    """Refuse to resume a run with other settings than it was started with.

    Raises:
        ConfigError: a file in conf/ or an environment variable now gives other values.
    """
    if not (folder / SETTINGS_FILE).is_file():  # the run was interrupted before it wrote them
        return
    others = different_settings(settings, folder / SETTINGS_FILE)
    if others:
        raise ConfigError([
            f"resume={folder}: its settings have changed since ({', '.join(others[:3])}): a run is resumed with the "
            "settings that it was started with. Restore them, or start a new run."
        ])  # fmt: skip


def different_settings(settings: DictConfig, file: Path) -> list[str]:
    """Settings of a run that differ from those of an earlier one, each with both values.

    A class that has moved since counts as the same, see `config/moved_targets.py`.

    Args:
        settings: of the run now.
        file: config.yaml of the earlier run.
    """
    there, here = (
        _dotted(OmegaConf.to_container(OmegaConf.create(with_current_targets(text))))
        for text in (file.read_text(encoding="utf-8"), OmegaConf.to_yaml(settings, resolve=True))
    )
    others = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return [
        f"{key} is {there.get(key)} there and {here.get(key)} here"
        for key in others
        if key.rpartition(".")[2] not in _NOT_COMPARED
    ]


def _dotted(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of the leaves of a plain container."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    rows: dict[str, Any] = {}
    for name, child in node.items():
        rows |= _dotted(child, f"{prefix}.{name}" if prefix else str(name))
    return rows
