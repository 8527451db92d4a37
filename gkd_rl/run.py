"""Entry point: `python -m gkd_rl.run experiment=xsum_rl alpha=0.5`, or `gkd-rl` once installed.

Composes the configuration with Hydra, refuses what is wrong before torch is imported or a folder is made, and hands the
rest to `pipeline.py`. One run returns one number, so that Hydra's sweepers can maximise it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gkd_rl.choices import Quantization
from gkd_rl.config import Config
from gkd_rl.errors import ConfigError, GkdRlError
from gkd_rl.precheck import check_command_line
from gkd_rl.validation import validate


def find_config_dir() -> Path:
    """conf/ inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


ConfigStore.instance().store(name="schema", node=Config)


@hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name="config")
def main(settings: DictConfig) -> float:
    """One run in its own folder.

    Returns:
        The metric that a sweeper maximises.
    """
    config = OmegaConf.to_object(settings)
    assert isinstance(config, Config)
    validate(config)
    OmegaConf.set_readonly(settings, True)
    # OpenMP threads that spin while they wait slow a run tenfold on a machine that does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from gkd_rl.pipeline import run_experiment  # here, so that a wrong setting is refused before torch is imported

    return run_experiment(config, settings, Path(HydraConfig.get().runtime.output_dir))


def cli() -> None:
    """Run `main`; what the user can correct ends as one message and an exit status, without a traceback.

    Exit status 2: a setting was refused and nothing ran; 1: a checkpoint was, or the run itself refused something.
    HYDRA_FULL_ERROR=1 shows the traceback.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to this function
    # argparse takes overrides on one side of the flag only
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    try:
        _look_at_checkpoints(check_command_line(find_config_dir(), sys.argv[1:]))
        main()
    except (GkdRlError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        sys.stderr.write(_message(error))
        refused_by_the_run = isinstance(error, GkdRlError) and not isinstance(error, ConfigError)
        sys.exit(1 if refused_by_the_run else 2)


def _look_at_checkpoints(configs: list[Config]) -> None:
    """Refuse checkpoints that cannot be used, before a folder is made; torch is imported only where there are any."""
    models = [one for config in configs for one in (config.student, config.teacher) if one is not None]
    teachers = [config.teacher for config in configs if config.teacher is not None]
    placed = any(one.device is not None or one.quantization is not Quantization.none for one in teachers)
    if placed or any(one.path or one.tokenizer for one in models):
        from gkd_rl.first_look import check_checkpoints

        check_checkpoints(configs)


def _message(error: BaseException) -> str:
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
