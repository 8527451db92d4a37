"""A run's command in a process of its own, forked from one that has imported all of it: importing takes 15 seconds.

Commands that have to begin with a new interpreter (other files on its path, workers of a launcher, what libraries
print) are started as a user starts them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from gkd_rl import run
from gkd_rl.cli import single_run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["gkd_rl.pipeline.experiment", "hydra_plugins.hydra_optuna_sweeper._impl"])
SECONDS = 300
PRINTED = ("stdout", "stderr")


@dataclass
class Started:
    """A command that goes on, with what it has printed in files."""

    arguments: list[str]
    process: BaseProcess
    place: tempfile.TemporaryDirectory[str]

    def finish(self, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Its end, which is waited for."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.arguments}: {seconds} s")
        with self.place as place:
            out, err = (Path(place, name).read_text(encoding="utf-8") for name in PRINTED)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, err)


def start_forked(arguments: list[str], folder: Path, before: str = "", **variables: str) -> Started:
    """`python -m gkd_rl.run` with `arguments` in `folder`, after the Python statements `before`."""
    place = tempfile.TemporaryDirectory()
    printed = [Path(place.name, name) for name in PRINTED]
    process = SERVER.Process(target=_command, args=(arguments, folder, before, variables, *printed))
    process.start()
    return Started(arguments, process, place)


def run_forked(
    arguments: list[str], folder: Path, before: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same command when it has ended."""
    return start_forked(arguments, folder, before, **variables).finish()


def _command(arguments: list[str], folder: Path, before: str, variables: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.update(variables)
    run.WANTS_TRACEBACK = single_run.WANTS_TRACEBACK = False
    sys.argv = ["gkd_rl.run", *arguments]
    exec(before, {})
    run.cli()
