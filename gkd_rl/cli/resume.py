"""`resume=FOLDER` and `resume=auto`: the command line of a run that was stopped, and the folder that it goes on in.

FOLDER needs nothing else: `command.json` there is what the run was started with, whole from its first second (Hydra's
own files are written anew by every start, and a kill can halve them). `auto` is for a command that is
started again by a machine: it goes on with the last unfinished run of the same settings, or starts a new one. Nothing
here imports torch.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gkd_rl.cli.sweeps import PLACE, RESULT, different_settings
from gkd_rl.errors import ConfigError
from gkd_rl.outputs.json_files import read_json, write_json
from gkd_rl.outputs.run_record import RECORD, is_alive

log = logging.getLogger(__name__)
RESUME, AUTO = "resume=", "auto"
CHECKPOINTS = "checkpoints"
COMMAND = "command.json"
SETTINGS = "config.yaml"
NOT_KEPT = ("hydra.run.", "hydra.sweep", "hydra/sweeper", "hydra/launcher", "hydra.launcher", "hydra.mode")


def command(folder: Path) -> str:
    """What goes on with the run in `folder`."""
    return f"python -m gkd_rl.run {shlex.quote(f'{RESUME}{folder}')}"


def with_resumed_run(config_dir: Path, arguments: list[str]) -> list[str]:
    """The command line with the settings and folder of the run that `resume` asks for; any other is left as it is.

    Raises:
        ConfigError: the folder holds no run that can go on, or settings are typed that it did not have.
    """
    asked = [text for text in arguments if text.startswith(RESUME)]
    value = asked[-1].removeprefix(RESUME).strip("'\"") if asked else "null"
    if value in ("", "null"):
        return arguments
    if "-m" in arguments or "--multirun" in arguments:
        raise ConfigError(
            [f"{asked[-1]} with -m: sweep.resume=FOLDER goes on with a sweep, and with each of its runs."]
        )
    if value == AUTO:
        others = [text for text in arguments if text not in asked]
        folder = _last_unfinished(config_dir, others)
        return others if folder is None else [*others, f"{RESUME}'{folder}'", _run_dir(folder)]
    folder = Path(value)
    _refuse(folder, asked[-1])
    former = _kept(folder, "task")
    typed = [text for text in arguments if "=" in text and not text.startswith(("-", RESUME))]
    new = [text for text in typed if text not in former and not text.startswith(("hydra.", "hydra/"))]
    if new:
        raise ConfigError([
            f"{' '.join(new)} beside {asked[-1]}: a run goes on with the settings that it began with "
            f"({' '.join(former)}). Leave it out, or start a new run."
        ])  # fmt: skip
    rest = [text for text in arguments if text not in former]
    return [*former, *_kept(folder, "hydra"), *rest, _run_dir(folder)]


def keep_command(folder: Path, task: Iterable[str], hydra: Iterable[str]) -> None:
    """Write down what a run is started with.

    Args:
        folder: of the run.
        task: its overrides.
        hydra: those of Hydra's own settings.
    """
    write_json(folder / COMMAND, {"task": list(task), "hydra": list(hydra)})


def refuse_other_settings(settings: DictConfig, folder: Path) -> None:
    """A run goes on with the settings that it began with.

    Raises:
        ConfigError: a file in conf/ or a variable of the environment gives others now.
    """
    if not (folder / SETTINGS).is_file():  # it was stopped before it wrote them
        return
    others = different_settings(settings, folder / SETTINGS, PLACE)
    if others:
        raise ConfigError([
            f"resume={folder}: its settings are no longer these ({', '.join(others[:3])}): a run goes on with the "
            "settings that it began with. Bring them back, or start a new run."
        ])  # fmt: skip


def refuse_to_overwrite(folder: Path) -> None:
    """A new run in the folder of one that can go on would lose it.

    Raises:
        ConfigError: the folder has checkpoints.
    """
    if (folder / CHECKPOINTS).is_dir():
        raise ConfigError([
            f"{folder} holds the checkpoints of a run that is not finished: {command(folder)} goes on with it. "
            f"Remove {folder / CHECKPOINTS} to start it anew, or choose another folder."
        ])  # fmt: skip


def _refuse(folder: Path, asked: str) -> None:
    """Folders of no run, of a finished one, and of one that goes on."""
    if not (folder / COMMAND).is_file():
        raise ConfigError(
            [f"{asked}: there is no {COMMAND} in it: resume takes a run's folder, outputs/NAME/TIME, or auto."]
        )
    if _is_finished(folder):
        raise ConfigError([f"{asked}: that run is finished, its results are in {folder / RESULT}. Start a new one."])
    if _goes_on(folder):
        raise ConfigError([f"{asked}: that run still goes on ({folder / RECORD}). Wait for its end, or stop it."])


def _is_finished(folder: Path) -> bool:
    """It has results, and they are not of an earlier run in the same folder."""
    result, record = folder / RESULT, read_json(folder / RECORD)
    return result.is_file() and (
        record.get("status") == "finished" or result.stat().st_mtime >= record.get("started", 0.0)
    )


def _goes_on(folder: Path) -> bool:
    record = read_json(folder / RECORD)
    return bool(record) and is_alive(record, folder)


def _kept(folder: Path, kind: str) -> list[str]:
    """Overrides that a run was started with, without those that a single resumed run has of its own."""
    texts: list[str] = read_json(folder / COMMAND)[kind]
    return [text for text in texts if not text.startswith((RESUME, "sweep=", "sweep.resume=", *NOT_KEPT))]


def _run_dir(folder: Path) -> str:
    return f"hydra.run.dir='{folder}'"


def _last_unfinished(config_dir: Path, arguments: list[str]) -> Path | None:
    """The youngest run with checkpoints, no results, no living process and these settings, where a new one would lie.

    A command line that does not compose is left to the check that says why.
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
    there = [own] if typed else sorted(own.parent.glob("*"), reverse=True)  # names are times
    for folder in there:
        unfinished = (folder / CHECKPOINTS).is_dir() and not _is_finished(folder)
        if unfinished and not _goes_on(folder) and not _others(composed, folder):
            return folder
    return None


def _others(composed: DictConfig, folder: Path) -> bool:
    path = folder / SETTINGS
    return not path.is_file() or bool(different_settings(composed, path, PLACE))
