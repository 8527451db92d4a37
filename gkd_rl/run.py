"""Entry point: `python -m gkd_rl.run experiment=xsum_rl alpha=0.5`, or `gkd-rl` once installed.

Hydra composes the configuration; `cli/single_run.py` checks it, before torch is imported or a folder is made, and runs
it. A run returns the numbers that `sweep.objectives` names, which Hydra's sweepers maximise. A run that fails does not
end its sweep (`cli/sweeps.py`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gkd_rl.cli.command_line import check_command_line
from gkd_rl.cli.resume import CHECKPOINTS, with_resumed_run
from gkd_rl.cli.single_run import (
    WANTS_TRACEBACK,
    beside_the_main_process,
    check_files,
    check_folder,
    find_config_dir,
    message,
    resumes_here,
    run_in_folder,
    validated,
)
from gkd_rl.cli.sweeps import (
    finished_numbers,
    listing_failed_runs,
    objective_values,
    recording_failure,
    share_threads,
    with_resumed_sweep,
)
from gkd_rl.config.launch import Stopped, is_main_process
from gkd_rl.errors import ConfigError, GkdRlError, explaining_faults


@hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name="config")
def main(settings: DictConfig) -> float | list[float] | None:
    """One run in its own folder.

    Returns:
        The objectives for a sweeper; None for a run of a sweep that failed.
    """
    hydra_settings = HydraConfig.get()
    folder = Path(hydra_settings.runtime.output_dir)
    if hydra_settings.mode is not RunMode.MULTIRUN:
        return _objectives(settings, folder)
    objectives = None
    with recording_failure(folder):
        share_threads(settings, hydra_settings)
        objectives = _objectives(settings, folder)
    return objectives


def _objectives(settings: DictConfig, folder: Path) -> float | list[float]:
    """Of a new or resumed run; of a finished one if its sweep is resumed."""
    config, hydra_settings = validated(settings), HydraConfig.get()
    resumes = resumes_here(config, settings, folder)
    numbers, resumed_sweep = None, config.sweep.resume
    if resumed_sweep is not None:
        settings.sweep.resume = config.sweep.resume = None
        before = Path(resumed_sweep) / hydra_settings.sweep.subdir
        numbers, resumes = finished_numbers(settings, before), (before / CHECKPOINTS).is_dir()
    if numbers is None:
        if is_main_process():
            overrides = hydra_settings.overrides
            check_folder(settings, folder, resumes, (overrides.task, overrides.hydra))
        numbers = run_in_folder(config, settings, folder, resumes).numbers(config.alpha)
    return objective_values(numbers, config.sweep.objectives)


def cli() -> None:
    """Run `main`; an error that the user can correct ends as one message and an exit status, without a traceback.

    Exit status 2: a setting was refused and nothing ran; 1: a checkpoint or data file was refused, the run itself
    failed, or runs of a sweep did. HYDRA_FULL_ERROR=1 shows the traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then passes exceptions on to this function
    logging.raiseExceptions = WANTS_TRACEBACK  # on a full disk every line of the log would print a traceback
    # argparse takes overrides on one side of the flag only
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    # OpenMP threads that spin while they wait slow a run tenfold on a machine that runs anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        sys.argv[1:] = with_resumed_sweep(sys.argv[1:])
        sys.argv[1:] = with_resumed_run(find_config_dir(), sys.argv[1:])
        if is_main_process():
            check_files(check_command_line(find_config_dir(), sys.argv[1:]))
        with beside_the_main_process() as temporary, listing_failed_runs(), explaining_faults():
            if temporary is not None:
                sys.argv += [f"hydra.run.dir={temporary}", f"hydra.sweep.dir={temporary}"]
            main()
    except Stopped as stopped:
        sys.exit(128 + stopped.number)  # the status that a shell gives to a process that a signal ended
    except KeyboardInterrupt:  # before the run began, or after its end
        sys.exit(128 + signal.SIGINT)
    except (GkdRlError, HydraException, OmegaConfBaseException) as error:
        if WANTS_TRACEBACK:
            raise
        sys.stderr.write(message(error))
        run_failed = isinstance(error, GkdRlError) and not isinstance(error, ConfigError)
        sys.exit(1 if run_failed else 2)


if __name__ == "__main__":
    cli()
