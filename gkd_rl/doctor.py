"""Entry point: `python -m gkd_rl.doctor experiment=xsum_rl scale=single_gpu` checks a run without starting it.

Settings, data, checkpoints, memory, disk and devices are checked; nothing is trained. Small local weights are loaded,
with --weights those of any size. Exit status 0: no check failed; 1: a check failed; 2: the settings are refused.
"""

from __future__ import annotations

import sys

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gkd_rl.cli.command_line import check_command_line
from gkd_rl.cli.single_run import find_config_dir, message
from gkd_rl.config import Config
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError, GkdRlError


def main(arguments: list[str]) -> int:
    """Check the run that `arguments` configure, print the result of each check, and return the exit status."""
    large = "--weights" in arguments
    try:
        config = _configured([argument for argument in arguments if argument != "--weights"])
    except GkdRlError as error:
        sys.stderr.write(message(error))
        return 2
    from gkd_rl.pipeline.doctor_checks import run_checks  # after the settings are checked: these import torch
    from gkd_rl.planning.checks import FAILED, summary

    results = []
    for result in run_checks(config, large=large):
        print(result, flush=True)  # noqa: T201
        results.append(result)
    print(summary(results))  # noqa: T201
    return int(any(result.state == FAILED for result in results))


def _configured(arguments: list[str]) -> Config:
    """The configuration of one run.

    Raises:
        ConfigError: a setting is refused.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        raise ConfigError(
            [f"{flags[0]}: the doctor checks one run and takes its settings and --weights only, e.g. alpha=0.5."]
        )
    check_command_line(find_config_dir(), arguments)
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", arguments))
    assert isinstance(config, Config)
    validate(config)
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
