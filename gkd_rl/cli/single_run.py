"""One run in its folder, for the command line and for Python: preflight, folder checks, several processes, messages.

`run.py` takes a configuration that Hydra composed, `run_experiment` composes one from a list of overrides. Both refuse
wrong settings, checkpoints and data files before a folder is made, and import torch only once the settings are valid.

Of several processes (`accelerate launch`) the main one checks the settings while the others wait for it. The others
print errors only and write to a temporary folder.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gkd_rl.cli.command_line import check_command_line, register_schema
from gkd_rl.cli.resume import (
    refuse_other_settings,
    refuse_to_overwrite,
    resume_command,
    with_resumed_run,
    write_command,
)
from gkd_rl.cli.sweeps import SweepRecord, sweep_resume_command
from gkd_rl.config import Config
from gkd_rl.config.choices import Quantization
from gkd_rl.config.launch import Stopped, is_main_process, processes
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError, GkdRlError, explained, explaining_faults
from gkd_rl.outputs.run_record import recorded

if TYPE_CHECKING:
    from gkd_rl.pipeline.results import Results

WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # read before the command sets it for Hydra
LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # of Hydra's log files
register_schema()


def find_config_dir() -> Path:
    """conf/ inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


# --- from Python -----------------------------------------------------------------------------------------------------


def run_experiment(overrides: Sequence[str] = (), output_dir: str | Path | None = None) -> Results:
    """Train and evaluate one run, as `python -m gkd_rl.run OVERRIDES` does, and return its results.

    The run has the same folder, files and final table as that of the command. Its log goes to `gkd_rl.log` in the
    folder, and to the console if the caller has not configured logging.

    Args:
        overrides: settings as on the command line, e.g. `["experiment=xsum_rl", "alpha=0.5"]`.
        output_dir: the run's folder; None makes a new one, `outputs/NAME/TIME`.

    Returns:
        Evaluations of the teacher and of the student before and after training, with intervals, costs and completions.

    Raises:
        ConfigError: a setting is refused, with every problem; nothing was written.
        GkdRlError: a checkpoint or data file cannot be used (nothing was written), or the run itself failed.
        Stopped: a signal ended the run; no Exception.
    """
    if isinstance(overrides, str):
        raise TypeError(f'overrides is a list, e.g. ["{overrides}"].')
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `run.cli`
    arguments = with_resumed_run(find_config_dir(), _arguments(overrides, output_dir))
    configs = check_command_line(find_config_dir(), arguments) if is_main_process() else []
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        settings = compose("config", arguments, return_hydra_config=True)
    if settings.hydra.mode is RunMode.MULTIRUN:
        raise ConfigError(["run_experiment starts one run: type a sweep on the command line, python -m gkd_rl.run -m."])
    check_files(configs)
    own_folder, given = Path(settings.hydra.run.dir), settings.hydra.overrides
    with read_write(settings), open_dict(settings):
        del settings["hydra"]
    config = validated(settings)
    with beside_the_main_process() as temporary, explaining_faults():
        folder = (temporary or own_folder).absolute()
        resumes = resumes_here(config, settings, folder)
        if is_main_process():
            check_folder(settings, folder, resumes, (given.task, given.hydra))
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name, saved in (("config", settings), ("overrides", given.task)):
            OmegaConf.save(saved, folder / ".hydra" / f"{name}.yaml")
        with _logging_to(folder / "gkd_rl.log"):
            return replace(run_in_folder(config, settings, folder, resumes), folder=folder)


def _arguments(overrides: Sequence[str], output_dir: str | Path | None) -> list[str]:
    """The command line.

    Raises:
        ConfigError: there is a flag, or a sweep is to be resumed.
    """
    for text in overrides:
        if text.startswith(("-", "sweep.resume=")):
            raise ConfigError([f"{text}: run_experiment takes the settings of one run, e.g. alpha=0.5."])
    return [*overrides, *([] if output_dir is None else [f"hydra.run.dir='{output_dir}'"])]


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Within the block, this project's messages are in `file`, and on the console if nothing else handles them."""
    to_file, to_console = logging.FileHandler(file, encoding="utf-8"), logging.StreamHandler(sys.stdout)
    to_file.setFormatter(logging.Formatter(LOG_FORMAT))
    configured = bool(logging.getLogger().handlers)
    handlers = [to_file] if configured else [to_file, to_console]
    loggers = [logging.getLogger(name) for name in ("gkd_rl", "reward_models")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = configured  # libraries may add a handler of their own meanwhile
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            for handler in handlers:
                logger.removeHandler(handler)
        to_file.close()


# --- one run ---------------------------------------------------------------------------------------------------------


def validated(settings: DictConfig) -> Config:
    """The typed configuration.

    Raises:
        ConfigError: a setting is refused.
    """
    config = OmegaConf.to_object(settings)
    assert isinstance(config, Config)
    validate(config)
    return config


def resumes_here(config: Config, settings: DictConfig, folder: Path) -> bool:
    """Whether `resume` asks for the run in `folder`; `resume` is removed from `settings`.

    A resumed run thus has the settings of one that was never stopped.

    Raises:
        ConfigError: `resume` names another folder.
    """
    resumed, settings.resume = config.resume, None
    if resumed is not None and is_main_process() and Path(resumed).absolute() != folder.absolute():
        raise ConfigError([f"resume={resumed} stands in a file: it is typed on the command line, resume=FOLDER."])
    return resumed is not None


def run_in_folder(config: Config, settings: DictConfig, folder: Path, resumes: bool) -> Results:
    """Train and evaluate; `run.json` tells the state of the run, a signal ends it with the command that resumes it.

    Args:
        config: the validated configuration.
        settings: the same as composed, written to config.yaml.
        folder: of the run.
        resumes: continue from the checkpoints in `folder`.
    """
    config.resume = str(folder) if resumes else None
    OmegaConf.set_readonly(settings, True)
    with ending_together(), recorded(folder), _naming_the_resume_command(folder):
        from gkd_rl.pipeline.experiment import run_configured

        return run_configured(config, settings, folder)


def check_folder(settings: DictConfig, folder: Path, resumes: bool, overrides: tuple[Sequence[str], ...]) -> None:
    """Refuse to resume with other settings and to overwrite checkpoints; keep the overrides of a new run.

    Args:
        settings: of the run.
        folder: of the run.
        resumes: whether the run continues from its checkpoints.
        overrides: those of the run and those of Hydra's own settings.

    Raises:
        ConfigError: the settings differ, or a new run would overwrite checkpoints.
    """
    if resumes:
        refuse_other_settings(settings, folder)
    else:
        refuse_to_overwrite(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_command(folder, *overrides)


@contextmanager
def _naming_the_resume_command(folder: Path) -> Iterator[None]:
    """If a signal ends the block, print the command that resumes the run or its sweep."""
    try:
        yield
    except Stopped as stopped:
        if is_main_process():
            sweep = SweepRecord.folder
            how = resume_command(folder) if sweep is None else sweep_resume_command(sweep)
            sys.stderr.write(f"\n{stopped}. To resume: {how}\n")
            sys.stderr.flush()
        raise


def check_files(configs: Sequence[Config]) -> None:
    """Preflight of checkpoints and data files, before a folder is made; torch is imported only if there are any.

    Raises:
        GkdRlError: one of them cannot be used.
    """
    models = [one for config in configs for one in (config.student, config.teacher) if one is not None]
    teachers = [config.teacher for config in configs if config.teacher is not None]
    placed = any(one.device is not None or one.quantization is not Quantization.none for one in teachers)
    if placed or any(one.path or one.tokenizer for one in models):
        from gkd_rl.pipeline.preflight import check_checkpoints

        check_checkpoints(configs)
    if any(config.task.get("data_files") for config in configs):
        from gkd_rl.pipeline.preflight import check_data

        check_data(configs)


# --- several processes -----------------------------------------------------------------------------------------------


@contextmanager
def beside_the_main_process() -> Iterator[Path | None]:
    """Within the block, all processes of the run have met; all but the main one are silent.

    Yields:
        The temporary folder that this process writes to; None for the main process and for a single one.
    """
    if processes() == 1:
        yield None
        return
    from gkd_rl.training.processes import start_processes, stop_processes

    start_processes()
    with nullcontext() if is_main_process() else _silent() as folder:
        yield folder
    stop_processes()


@contextmanager
def _silent() -> Iterator[Path]:
    """No lines on the console but warnings and errors; yields a temporary folder."""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield Path(folder)


@contextmanager
def ending_together() -> Iterator[None]:
    """An error of one process ends all of them, with one message.

    The exit is no Exception, so that Hydra does not start the next job of a sweep without the others.
    """
    try:
        yield
    except Exception as error:
        if processes() == 1:
            raise
        from gkd_rl.training.processes import is_first_failure

        if is_first_failure():
            shown = explained(error) or error
            refused = isinstance(shown, GkdRlError) and not WANTS_TRACEBACK
            sys.stderr.write(message(shown) if refused else traceback.format_exc())
            sys.stderr.flush()  # before the end of another process ends this one
        raise SystemExit(1) from error


def message(error: BaseException) -> str:
    """The text on stderr: this package's error if there is one in the chain, one line for each problem."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GkdRlError):
        cause = cause.__cause__
    shown = cause or error
    if isinstance(shown, ConfigError):
        lines = "".join(f"  - {problem}\n" for problem in shown.problems)
        return f"These settings are refused:\n{lines}"
    hint = "" if cause else "\nHYDRA_FULL_ERROR=1 shows the traceback."
    return f"{shown}{hint}\n"
