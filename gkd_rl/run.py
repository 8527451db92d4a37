"""Entry point: `python -m gkd_rl.run experiment=xsum_rl alpha=0.5`, or `gkd-rl` once installed.

Composes the configuration with Hydra, refuses what is wrong before torch is imported or a folder is made, and hands the
rest to `pipeline/experiment.py`. A run returns what `sweep.objectives` names, for Hydra's sweepers to search for. A run that fails
does not end its sweep (`cli/sweeps.py`, `cli/sweeps.py`).

Of several processes (`accelerate launch`) the main one checks the command line while the others wait for it. Those
write to a folder that goes away with them, and are silent but for their errors.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gkd_rl.cli.command_line import check_command_line
from gkd_rl.cli.resume import (
    CHECKPOINTS,
    command,
    keep_command,
    refuse_other_settings,
    refuse_to_overwrite,
    with_resumed_run,
)
from gkd_rl.cli.sweeps import (
    SweepRecord,
    chosen,
    naming_failed_runs,
    noting_failure,
    numbers_from_before,
    resuming,
    share_threads,
    with_former_overrides,
)
from gkd_rl.config import Config
from gkd_rl.config.choices import Quantization
from gkd_rl.config.launch import Stopped, is_main_process, processes
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError, GkdRlError, explained, explaining_faults
from gkd_rl.outputs.run_record import recorded


def find_config_dir() -> Path:
    """conf/ inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"  # before `cli` sets it for Hydra
ConfigStore.instance().store(name="schema", node=Config)


@hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name="config")
def main(settings: DictConfig) -> float | list[float] | None:
    """One run in its own folder.

    Returns:
        What a sweeper is told; None of a run of a sweep that failed.
    """
    hydra_settings = HydraConfig.get()
    folder = Path(hydra_settings.runtime.output_dir)
    if hydra_settings.mode is not RunMode.MULTIRUN:
        return _run(settings, folder)
    told = None
    with noting_failure(folder):
        share_threads(settings, hydra_settings)
        told = _run(settings, folder)
    return told


def _run(settings: DictConfig, folder: Path) -> float | list[float]:
    """Refuse what is wrong, then run, unless a sweep is resumed that has this run's numbers."""
    config = OmegaConf.to_object(settings)
    assert isinstance(config, Config)
    validate(config)
    numbers, resumed = None, config.sweep.resume
    goes_on, settings.resume = config.resume is not None, None  # what is resumed has the settings of the undisturbed
    if goes_on and is_main_process() and Path(str(config.resume)).absolute() != folder.absolute():
        raise ConfigError([f"resume={config.resume} stands in a file: it is typed on the command line, resume=FOLDER."])
    if resumed is not None:
        settings.sweep.resume = config.sweep.resume = None
        before = Path(resumed) / HydraConfig.get().sweep.subdir
        numbers, goes_on = numbers_from_before(settings, before), (before / CHECKPOINTS).is_dir()
    if numbers is None:
        config.resume = str(folder) if goes_on else None
        if is_main_process():
            _look_at_folder(settings, folder, goes_on)
        OmegaConf.set_readonly(settings, True)
        with _ending_together(), recorded(folder), _saying_how_to_go_on(folder):
            from gkd_rl.pipeline.experiment import run_experiment

            numbers = run_experiment(config, settings, folder)
    return chosen(numbers, config.sweep.objectives)


def cli() -> None:
    """Run `main`; what the user can correct ends as one message and an exit status, without a traceback.

    Exit status 2: a setting was refused and nothing ran; 1: a checkpoint was, the run itself refused something, or runs
    of a sweep failed.
    HYDRA_FULL_ERROR=1 shows the traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to this function
    logging.raiseExceptions = WANTS_TRACEBACK  # a log on a full disk is no reason for a traceback at every line
    # argparse takes overrides on one side of the flag only
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    # OpenMP threads that spin while they wait slow a run tenfold on a machine that does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        sys.argv[1:] = with_former_overrides(sys.argv[1:])
        sys.argv[1:] = with_resumed_run(find_config_dir(), sys.argv[1:])
        if is_main_process():
            _look_at_files(check_command_line(find_config_dir(), sys.argv[1:]))
        with _beside_the_main_process(), naming_failed_runs(), explaining_faults():
            main()
    except Stopped as stopped:
        sys.exit(128 + stopped.number)  # as a shell counts what a signal ended
    except KeyboardInterrupt:  # before the run began, or after its end
        sys.exit(128 + signal.SIGINT)
    except (GkdRlError, HydraException, OmegaConfBaseException) as error:
        if WANTS_TRACEBACK:
            raise
        sys.stderr.write(message(error))
        refused_by_the_run = isinstance(error, GkdRlError) and not isinstance(error, ConfigError)
        sys.exit(1 if refused_by_the_run else 2)


def _look_at_folder(settings: DictConfig, folder: Path, goes_on: bool) -> None:
    """Refuse to go on with other settings, and to start anew over checkpoints; note how a new run was started."""
    if goes_on:
        refuse_other_settings(settings, folder)
    else:
        refuse_to_overwrite(folder)
        overrides = HydraConfig.get().overrides
        keep_command(folder, overrides.task, overrides.hydra)


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    """A signal ends the run with the command that goes on with it."""
    try:
        yield
    except Stopped as stopped:
        if is_main_process():
            sweep = SweepRecord.folder
            how = command(folder) if sweep is None else resuming(sweep)
            sys.stderr.write(f"\n{stopped}. To go on: {how}\n")
            sys.stderr.flush()
        raise


@contextmanager
def _beside_the_main_process() -> Iterator[None]:
    """Meet the other processes, if there are any; all but the main one are silent and write to a passing folder."""
    if processes() == 1:
        yield
        return
    from gkd_rl.training.processes import meet, part

    meet()
    with nullcontext() if is_main_process() else _aside():
        yield
    part()


@contextmanager
def _aside() -> Iterator[None]:
    """No lines on the console but warnings and errors, and Hydra's folder among the temporary ones."""
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        sys.argv += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
        yield


@contextmanager
def _ending_together() -> Iterator[None]:
    """An error of one process ends all of them, with one message.

    The exit is no Exception, so that Hydra does not go on to the next job of a sweep without the others.
    """
    try:
        yield
    except Exception as error:
        if processes() == 1:
            raise
        from gkd_rl.training.processes import first_to_fail

        if first_to_fail():
            told = explained(error) or error
            refused = isinstance(told, GkdRlError) and not WANTS_TRACEBACK
            sys.stderr.write(message(told) if refused else traceback.format_exc())
            sys.stderr.flush()  # before another rank's end ends this one
        raise SystemExit(1) from error


def _look_at_files(configs: list[Config]) -> None:
    """Refuse checkpoints and data that cannot be used, before a folder is made; torch is imported only for these."""
    models = [one for config in configs for one in (config.student, config.teacher) if one is not None]
    teachers = [config.teacher for config in configs if config.teacher is not None]
    placed = any(one.device is not None or one.quantization is not Quantization.none for one in teachers)
    if placed or any(one.path or one.tokenizer for one in models):
        from gkd_rl.pipeline.preflight import check_checkpoints

        check_checkpoints(configs)
    if any(config.task.get("data_files") for config in configs):
        from gkd_rl.pipeline.preflight import check_data

        check_data(configs)


def message(error: BaseException) -> str:
    """What stands on stderr: our own error where one is behind it, each problem on its line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, GkdRlError):
        cause = cause.__cause__
    shown = cause or error
    if isinstance(shown, ConfigError):
        lines = "".join(f"  - {problem}\n" for problem in shown.problems)
        return f"These settings are refused:\n{lines}"
    hint = "" if cause else "\nHYDRA_FULL_ERROR=1 shows the traceback."
    return f"{shown}{hint}\n"


if __name__ == "__main__":
    cli()
